"""Select the images of a folder and find the mask of each."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from selftrain_seg.datasets._files import IMAGE_SUFFIXES, duplicate_message, first_few, list_tree

Pair = Callable[[str], "str | os.PathLike[str]"]
Names = str | os.PathLike[str] | Sequence[str]
Unpaired = Literal["error", "leave out"]


def find_images(folder: Path, masks: Path | None, mask_suffix: str) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Map name -> path for the images below ``folder``, sorted; and list (path, reason) for the files left out.

    Names are paths relative to ``folder`` without the suffix. Masks may lie below the same folder.
    """
    listed, left = list_tree(folder, "images"), []
    inside = _relative(folder, masks)
    found: dict[str, Path] = {}
    for relative in listed:
        name, suffix = os.path.splitext(relative)
        if suffix.lower() not in IMAGE_SUFFIXES:
            left.append((folder / relative, f"not an image: ends in {suffix or 'nothing'}"))
        elif inside and relative.startswith(f"{inside}/"):
            left.append((folder / relative, "lies in the folder of masks"))
        elif inside == "" and _is_mask(relative, mask_suffix):
            left.append((folder / relative, f"a mask: ends in {mask_suffix}"))
        elif name in found:
            raise ValueError(
                duplicate_message("images", name, found[name], folder / relative)
                + (", or tell masks from images with `mask_suffix`" if inside == "" else "")
            )
        else:
            found[name] = folder / relative
    if not found:
        kinds = Counter(os.path.splitext(relative)[1] or "no suffix" for relative in listed)
        others = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise FileNotFoundError(
            f"`images`: expected images ({' '.join(IMAGE_SUFFIXES)}) in {folder}, found none: it holds {others}"
        )
    return dict(sorted(found.items())), left


def _relative(folder: Path, masks: Path | None) -> str | None:
    """Path of the masks relative to the images: ``""`` in the same folder or if unknown, None if not below it."""
    if masks is None:
        return ""
    try:
        inside = masks.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return None
    return "" if inside == "." else inside


def _is_mask(relative: str, mask_suffix: str) -> bool:
    if not mask_suffix:
        return False
    if _has_ending(mask_suffix):
        return relative.lower().endswith(mask_suffix.lower())
    return os.path.splitext(relative)[0].endswith(mask_suffix)


def _has_ending(mask_suffix: str) -> bool:
    return mask_suffix.lower().endswith(IMAGE_SUFFIXES)


def find_masks(
    folder: Path, images: Mapping[str, Path], everything: Mapping[str, Path], mask_suffix: str, pair: Pair | None
) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Map name -> path of the mask for each image that has one; and list the masks without an image.

    ``everything`` also has the images that are not used; none of them is a mask.
    """
    if pair is not None:
        wanted = {name: folder / os.fspath(pair(name)) for name in images}
        return {name: path for name, path in wanted.items() if path.is_file()}, []
    own = {*map(os.path.realpath, everything.values())} if _holds_images(folder, everything) else set()
    by_name: dict[str, Path] = {}
    for relative in list_tree(folder, "masks"):
        path = folder / relative
        stem = _image_name(relative, mask_suffix)
        if stem is None or (own and os.path.realpath(path) in own):
            continue
        key = _normalised(stem)
        if key in by_name:
            raise ValueError(duplicate_message("masks", stem, by_name[key], path))
        by_name[key] = path
    # Match by path. If no stem occurs twice, a mask may also lie in another subfolder than its image.
    stems, mask_stems = Counter(map(_stem, images)), Counter(map(_stem, by_name))
    loose = max(stems.values()) == 1 and max(mask_stems.values(), default=1) == 1
    by_stem = {_stem(key): path for key, path in by_name.items()} if loose else {}
    found = {}
    for name in images:
        path_ = by_name.get(_normalised(name)) or by_stem.get(_stem(name))
        if path_ is not None:
            found[name] = path_
    taken = {*found.values()}
    return found, [(path, "a mask without an image") for path in by_name.values() if path not in taken]


def _holds_images(masks: Path, images: Mapping[str, Path]) -> bool:
    """Whether the folder of masks also holds images."""
    root = os.path.join(os.path.realpath(masks), "")
    folders = {path.parent for path in images.values()}
    return any(os.path.join(os.path.realpath(folder), "").startswith(root) for folder in folders)


def _image_name(relative: str, mask_suffix: str) -> str | None:
    """The name of the image that a mask belongs to; None if the file is not a mask."""
    if _has_ending(mask_suffix):
        return relative[: -len(mask_suffix)] if relative.lower().endswith(mask_suffix.lower()) else None
    stem, suffix = os.path.splitext(relative)
    if suffix.lower() not in IMAGE_SUFFIXES or not stem.endswith(mask_suffix):
        return None
    return stem[: len(stem) - len(mask_suffix)]


def _normalised(name: str) -> str:
    """Apply Unicode normalisation: some systems store an accent as a separate character."""
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return _normalised(name).rpartition("/")[2]


def select_names(images: Mapping[str, Path], names: Names) -> dict[str, Path]:
    """Select the images named by a text file, a pattern or a list."""
    if isinstance(names, str) and not Path(names).is_file() and any(sign in names for sign in "*?["):
        pattern = _normalised(names)
        whole = pattern.lower().endswith(IMAGE_SUFFIXES)  # else "*[!k]" would match x_mask.png by its "g"
        found = {
            name: path
            for name, path in images.items()
            if fnmatchcase(_normalised(name + path.suffix if whole else name), pattern)
        }
        if not found:
            raise ValueError(f"`names`: no image matches {names!r}; images are named {first_few(images)}")
        return found
    if isinstance(names, (str, os.PathLike)):
        lines, where = _read_lines(Path(names)), f" of {os.fspath(names)}"
    else:
        lines, where = [os.fspath(name) for name in names], ""
    return _select_listed(images, lines, where)


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"`names`: expected a file of names, or a pattern with *, got {path}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"`names`: expected text in UTF-8 in {path} ({error})") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"`names`: expected names in {path}, found none")
    return lines


def _select_listed(images: Mapping[str, Path], lines: Sequence[str], where: str) -> dict[str, Path]:
    by_name = {_normalised(name): name for name in images}
    by_stem: dict[str, list[str]] = {}
    for name in images:
        by_stem.setdefault(_stem(name), []).append(name)

    def fitting(forms: Sequence[str]) -> list[str]:
        """Names that differ from a form at most by folders in front."""
        each = ([name for name in by_stem.get(_stem(form), ()) if _same_end(form, _normalised(name))] for form in forms)
        return next(filter(None, each), [])

    found: list[str] = []
    unknown: list[str] = []
    for line in lines:
        # A name may contain spaces, or the line may have several columns, of which the first is the name.
        whole, first = _with_and_without_suffix(line), _with_and_without_suffix((line.split() or [""])[0])
        matches = [by_name[form] for form in (*whole, *first) if form in by_name][:1]
        if not matches:
            by_line = fitting(whole)  # if the name has no space, it may be that of the last column
            matches = [name for name in by_line if " " in name] or fitting(first) or by_line
        if len(matches) == 1:
            found += matches
        else:
            unknown.append(line)
    if unknown:
        raise ValueError(
            f"`names`: {len(unknown)} of {len(lines)} names{where} match no image, or several:"
            f" {first_few(map(repr, unknown))}; images are named {first_few(images)}"
        )
    if not found:
        raise ValueError("`names`: expected names, got none")
    double = [name for name, count in Counter(found).items() if count > 1]
    if double:
        raise ValueError(f"`names`: expected every name{where} once, {double[0]!r} occurs twice")
    return {name: images[name] for name in sorted(found)}


def _same_end(one: str, other: str) -> bool:
    """Whether two paths differ at most by folders in front: ``0001``, ``north/0001`` and ``images/north/0001``."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _with_and_without_suffix(text: str) -> list[str]:
    """The name as given and, if it ends in the suffix of an image, without it."""
    plain = _normalised(text).lstrip("/").removeprefix("./")
    stem, suffix = os.path.splitext(plain)
    return [plain, stem] if suffix.lower() in IMAGE_SUFFIXES else [plain]
