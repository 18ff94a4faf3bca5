"""The mined crop as a torchvision transform, for data sets read by DataLoader workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from selftrain_seg import _checks
from selftrain_seg.mining.crops import mine_crops
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["SmallClassCrop"]

_MAX_CLASSES = 256


class SmallClassCrop(v2.Transform):  # type: ignore[misc]
    """Crop an image and its label map, with probability ``chance`` around a pixel of a small class.

    Works like :func:`mine_crops`, for one image: the crop is drawn from the ``tv_tensors.Mask`` of the sample and
    applied to its images, masks and boxes. A sample smaller than the crop is padded at the bottom and on the right,
    its mask with ``ignore_index``.

    The classes are in shared memory, so :meth:`set_classes` also reaches DataLoader workers that are already running.
    Random numbers come from torch's default generator, which a DataLoader seeds reproducibly in every worker.

    Args:
        classes: (K,) integers in [0, 256), on any device: the classes to mine; K may be 0.
        size: (h, w) of the crop in pixels.
        fallback: (F,) integers in [0, 256), the classes to mine in images that show none of ``classes``; None
            for none.
        chance: probability of mining, in [0, 1]; 0.8 in CBST and CRST.
        fill: padding value of images.
        ignore_index: padding value of masks; never mined.

    Attributes:
        mined: (2, 256) bool buffer in shared memory: row 0 marks the classes, row 1 those of the fallback.

    State / distributed:
        ``mined`` is in the state_dict. Ranks are independent: set the same classes on all.

    Raises:
        TypeError: ``classes`` or ``fallback`` is not an integer tensor, an element of ``size`` is not an int,
            ``chance`` or ``fill`` is not a number, ``ignore_index`` is not an int.
        ValueError: ``classes`` or ``fallback`` is not one-dimensional or has values outside [0, 256), ``size``
            is not two values of at least 1, ``chance`` is outside [0, 1]; when called, the sample has no mask
            or several masks, or its dtype cannot hold the padding value.

    References:
        Zou et al., Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training,
        ECCV 2018, arXiv:1810.07911.

    Example:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> from selftrain_seg.mining import SmallClassCrop
        >>> image, mask = torch.rand(3, 6, 8), torch.zeros(6, 8, dtype=torch.uint8)
        >>> mask[2, 5] = 7
        >>> transform = SmallClassCrop(torch.tensor([7]), (4, 4), chance=1.0)
        >>> image, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        >>> image.shape, mask[2, 2]  # the pixel of class 7 is in the middle
        (torch.Size([3, 4, 4]), tensor(7, dtype=torch.uint8))
    """

    mined: Tensor

    def __init__(
        self,
        classes: Tensor,
        size: tuple[int, int],
        *,
        fallback: Tensor | None = None,
        chance: float = 0.8,
        fill: float = 0,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        self.size = _checks.check_size(size)
        _checks.check_real(chance, "chance", 0.0, 1.0)
        _checks.check_real(fill, "fill", -torch.inf, torch.inf)
        _checks.check_count(ignore_index, "ignore_index", minimum=-(2**63))
        self.chance, self.fill, self.ignore_index = chance, fill, ignore_index
        self.register_buffer("mined", torch.zeros(2, _MAX_CLASSES, dtype=torch.bool))
        self._share()
        self.set_classes(classes, fallback=fallback)

    def set_classes(self, classes: Tensor, *, fallback: Tensor | None = None) -> None:
        """Set the classes to mine, also for DataLoader workers that are already running.

        Args:
            classes: as in the constructor.
            fallback: as in the constructor; None for none.
        """
        rows = []
        for name, wanted in (("classes", classes), ("fallback", fallback)):
            row = torch.zeros(_MAX_CLASSES, dtype=torch.bool)
            if wanted is not None or name == "classes":
                row[_checked_values(wanted, name)] = True
            rows.append(row)
        self.mined.copy_(torch.stack(rows))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop of one sample; called by torchvision.

        Args:
            flat_inputs: the parts of the sample.

        Returns:
            The padding and the corner of the crop, for :meth:`transform`.
        """
        masks = [part for part in flat_inputs if isinstance(part, tv_tensors.Mask)]
        if not masks:
            raise ValueError("`sample`: expected a tv_tensors.Mask with the labels, got none")
        labels = masks[0].as_subclass(Tensor)
        if len(masks) > 1 or labels.numel() != labels.shape[-2] * labels.shape[-1]:
            shapes = [tuple(mask.shape) for mask in masks]
            raise ValueError(f"`sample`: expected one mask (H, W) or (1, H, W), got {shapes}")
        labels = labels.reshape(1, *labels.shape[-2:])
        classes, fallback = (row.nonzero()[:, 0].to(labels.device) for row in self.mined)
        corner = mine_crops(
            labels,
            classes,
            self.size,
            fallback=fallback,
            chance=self.chance,
            ignore_index=self.ignore_index,
        )
        top, left = (int(place) for place in corner[0])
        bottom, right = (max(0, want - have) for want, have in zip(self.size, labels.shape[-2:], strict=True))
        return {"padding": [0, 0, right, bottom], "top": top, "left": left}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut one part of the sample; called by torchvision.

        Args:
            inpt: an image, mask or boxes.
            params: from :meth:`make_params`.

        Returns:
            The padded and cropped part, of the same type.
        """
        if any(params["padding"]):
            fill = self.ignore_index if isinstance(inpt, tv_tensors.Mask) else self.fill
            if isinstance(inpt, Tensor):
                fill = _checks.fill_value(inpt, fill, "ignore_index" if isinstance(inpt, tv_tensors.Mask) else "fill")
            inpt = F.pad(inpt, params["padding"], fill=fill)
        return F.crop(inpt, params["top"], params["left"], *self.size)

    # torchvision before 0.21 calls the two methods by these names.
    def _get_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return self.make_params(flat_inputs)

    def _transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self.transform(inpt, params)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Move the classes to shared memory, so that workers (by fork or spawn) see later changes."""
        self.mined.share_memory_()  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        classes, fallback = (row.nonzero()[:, 0].tolist() for row in self.mined)
        return f"classes={classes}, fallback={fallback}, size={self.size}, chance={self.chance}"


def _checked_values(classes: Any, name: str) -> Tensor:
    """The classes on the CPU, where ``mined`` is; ``rare_classes`` returns them on the device of the counts."""
    _checks.check_integer(classes, name)
    if classes.ndim != 1:
        raise ValueError(f"`{name}`: expected (K,), got {tuple(classes.shape)}")
    here: Tensor = classes.to("cpu", torch.int64)  # indices of uint8 would be a mask
    if here.numel() and not 0 <= int(here.min()) <= int(here.max()) < _MAX_CLASSES:
        raise ValueError(f"`{name}`: expected values in [0, {_MAX_CLASSES}), got {here.tolist()}")
    return here
