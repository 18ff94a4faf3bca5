"""Base class of the data sets of image and label files."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

from torch import Tensor
from torch.utils.data import Dataset

from selftrain_seg import _checks
from selftrain_seg.datasets._images import Channels, Picture, read_picture
from selftrain_seg.datasets._masks import MaskFile, Reading, classes_of, read_mask_file
from selftrain_seg.datasets._report import FolderReport
from selftrain_seg.datasets._verify import train_ids_hint, verify
from selftrain_seg.datasets.label_map import LabelMap

Labels = bool | Callable[[str], Tensor]

_TURNED = "; the image was turned by its EXIF orientation: save it upright, or turn its mask in the same way"


class _Folder(Dataset[tuple[Any, Any]]):
    """Images and their label maps, paired by name.

    Subclasses list the files in their constructor and define how they are read.
    """

    _channels: Channels = 3
    _white: int | None = None
    _reading: Reading = "auto"

    def __init__(
        self,
        root: Path,
        images: Mapping[str, Path],
        masks: Mapping[str, Path],
        labels: Labels,
        label_map: LabelMap | None,
        transforms: Callable[..., Any] | None,
        left_out: list[tuple[Path, str]] | None = None,
    ) -> None:
        self.root = root
        self.left_out = [] if left_out is None else left_out
        self.names = tuple(images)
        self._images, self._masks = dict(images), dict(masks)
        self.labels = labels
        self.label_map = label_map
        self.transforms = transforms

    def _image_path(self, name: str) -> Path:
        return self._images[name]

    def _label_path(self, name: str) -> Path:
        return self._masks[name]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, Any]:
        from torchvision import tv_tensors

        name = self.names[self._checked_index(index)]
        picture = self._read_picture(name)
        image = tv_tensors.Image(picture.image)
        if self.labels is False:
            return (image if self.transforms is None else self.transforms(image)), name
        labels = tv_tensors.Mask(self._read_labels(name))
        self._check_sizes(name, image.shape[-2:], labels, picture.turned)
        if self.transforms is None:
            return image, labels
        transformed: tuple[Any, Any] = self.transforms(image, labels)
        return transformed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {len(self)} samples)"

    @property
    def _required_label_map(self) -> LabelMap:
        if self.label_map is None:
            raise ValueError("`label_map`: expected a data set with a label map, got one without")
        return self.label_map

    @property
    def num_classes(self) -> int:
        """Number of classes C of the label map."""
        return self._required_label_map.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The C class names of the label map."""
        return tuple(self._required_label_map.classes)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The C colours of the label map."""
        return tuple(self._required_label_map.palette)

    @property
    def ignore_index(self) -> int:
        """The label of pixels without a class."""
        return self._required_label_map.ignore_index

    def masks(self) -> Dataset[Tensor]:
        """Return the label maps alone, in order. Images are not decoded, and ``transforms`` is not applied.

        Pass it to :meth:`ClassIndex.from_masks <selftrain_seg.mining.ClassIndex.from_masks>`, directly or through a
        DataLoader with ``batch_size=None``.

        Returns:
            A data set of (H, W) int64 tensors.

        Raises:
            ValueError: this data set was made with ``labels=False``.
        """
        if self.labels is False:
            raise ValueError("`labels`: expected a data set with labels, got one with labels=False")
        return _Masks(self)

    def draw_labelled(self, one_in: int, *, seed: int = 0) -> tuple[list[int], list[int]]:
        """Split the samples into labelled and unlabelled for semi-supervised training, one labelled in ``one_in``.

        Samples are ranked by the SHA-256 digest of ``f"{seed}/{name}"``. The first N / ``one_in``, rounded to nearest
        (halves up), are labelled. The split does not depend on the machine or on library versions. Splits of one seed
        are nested: 1/106 is part of 1/50, which is part of 1/20, and so on. Classes are not balanced, so a small
        labelled part may lack one.

        Args:
            one_in: from 1 to N; 106, 50, 20 and 8 in the literature on VOC.
            seed: at least 0; each seed gives another split.

        Returns:
            Ascending indices of the labelled samples and of all others, for ``torch.utils.data.Subset``.

        Raises:
            TypeError: ``one_in`` or ``seed`` is not an int.
            ValueError: ``one_in`` is below 1 or above N, or ``seed`` is below 0.
        """
        _checks.check_count(one_in, "one_in")
        _checks.check_count(seed, "seed", 0)
        if one_in > len(self):
            raise ValueError(f"`one_in`: expected at most {len(self)} samples, got {one_in}")

        def digest(index: int) -> bytes:
            return hashlib.sha256(f"{seed}/{self.names[index]}".encode("utf-8", "surrogateescape")).digest()

        order = sorted(range(len(self)), key=digest)
        count = (2 * len(self) + one_in) // (2 * one_in)
        return sorted(order[:count]), sorted(order[count:])

    def verify(
        self, *, progress: bool = False, images: bool = True, most: int | None = None, check_meaning: bool = True
    ) -> FolderReport:
        """Read every file once, and report all problems together.

        Finds files that are missing, broken or of the wrong kind, unknown ids and colours, masks whose size differs
        from their image, and images with NaN or infinite values. If there are none, checks two common mistakes:
        nearly all labels are ignored, or the files hold Cityscapes' train ids where label ids are expected.

        Args:
            progress: show a progress bar, if tqdm is installed.
            images: also read the images; False reads only the labels, which is faster.
            most: check at most this many samples, spread over the data set; None for all.
            check_meaning: raise an error if nearly all labels are ignored or look like train ids.

        Returns:
            Counts, which print as a table.

        Raises:
            BrokenFilesError: lists every problem, if there is one.
            ValueError: less than 5 % of the pixels have a class, or the ids look like train ids.
        """
        if most is not None:
            _checks.check_count(most, "most")
        return verify(self, progress, images, most, check_meaning)

    def _checked_index(self, index: SupportsIndex) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"`index`: expected a value in [{-len(self)}, {len(self)}), got {number}")
        return number

    def _read_labels(self, name: str) -> Tensor:
        """(H, W) int64, training classes."""
        if callable(self.labels):
            labels = self.labels(name)
            _checks.check_integer(labels, f"labels({name!r})")
            if labels.ndim != 2:
                raise ValueError(f"`labels({name!r})`: expected (H, W), got {tuple(labels.shape)}")
            return labels.long()
        path = self._label_path(name)
        return self._to_classes(path, self._read_mask_file(path))

    def _to_classes(self, path: Path, mask: MaskFile) -> Tensor:
        try:
            return classes_of(mask, self._reading, self._required_label_map)
        except ValueError as error:
            raise ValueError(f"{path}: {error}{train_ids_hint(mask, self._required_label_map)}") from error

    def _read_picture(self, name: str) -> Picture:
        return read_picture(self._image_path(name), self._channels, self._white)

    def _read_mask_file(self, path: Path) -> MaskFile:
        return read_mask_file(path)

    def _check_sizes(self, name: str, size: tuple[int, ...], labels: Tensor, turned: int = 1) -> None:
        if tuple(size) != tuple(labels.shape):
            source = f"`labels({name!r})`" if callable(self.labels) else self._label_path(name)
            raise ValueError(
                f"{source}: expected (H, W) = {tuple(size)} as in {self._image_path(name)},"
                f" got {tuple(labels.shape)}{_TURNED if turned > 1 else ''}"
            )


class _Masks(Dataset[Tensor]):
    """See ``_Folder.masks``."""

    def __init__(self, folder: _Folder) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: SupportsIndex) -> Tensor:
        return self.folder._read_labels(self.folder.names[self.folder._checked_index(index)])

    def made_of(self) -> tuple[str, list[Path] | None]:
        """The settings and files that determine the label maps, for caches; None if the files are unknown."""
        folder = self.folder
        if callable(folder.labels):
            return "", None
        return repr((folder._reading, folder.label_map.__reduce__()[1])), [
            folder._label_path(name) for name in folder.names
        ]


def checked_label_map(labels: Any, label_map: LabelMap | None, default: Callable[[], LabelMap]) -> LabelMap:
    """Check both arguments; return the label map to use."""
    check_label_arguments(labels, label_map)
    return default() if label_map is None else label_map


def check_label_arguments(labels: Any, label_map: LabelMap | None) -> None:
    if not isinstance(labels, bool) and not callable(labels):
        raise TypeError(f"`labels`: expected a bool or a function of the name, got {type(labels).__name__}")
    if label_map is not None and not isinstance(label_map, LabelMap):
        raise TypeError(f"`label_map`: expected a LabelMap, got {type(label_map).__name__}")
