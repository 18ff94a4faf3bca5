"""Which images of a folder are taken, and which mask belongs to each."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from selftrain_seg.datasets._files import IMAGE_SUFFIXES, duplicate_message, first_few, list_tree

Pair = Callable[[str], "str | os.PathLike[str]"]
Names = str | os.PathLike[str] | Sequence[str]
Unpaired = Literal["error", "leave out"]


def find_images(folder: Path, masks: Path | None, mask_suffix: str) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Name -> path of the images below ``folder``, sorted; and what was left out, and why.

    Names are paths relative to ``folder`` without their suffix. Masks may lie below the same folder.
    """
    listed, left = list_tree(folder, "images"), []
    inside = _relative(folder, masks)
    found: dict[str, Path] = {}
    for relative in listed:
        name, suffix = os.path.splitext(relative)
        if suffix.lower() not in IMAGE_SUFFIXES:
            left.append((folder / relative, f"no image: ends in {suffix or 'nothing'}"))
        elif inside and relative.startswith(f"{inside}/"):
            left.append((folder / relative, "lies in the folder of masks"))
        elif inside == "" and _is_mask(relative, mask_suffix):
            left.append((folder / relative, f"a mask: ends in {mask_suffix}"))
        elif name in found:
            raise ValueError(
                duplicate_message("images", name, found[name], folder / relative)
                + ("; or say with `mask_suffix` which of them are masks" if inside == "" else "")
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
    """Where the masks lie below the images: ``""`` among them, as they may where none are read; None elsewhere."""
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
    folder: Path, images: Mapping[str, Path], mask_suffix: str, pair: Pair | None
) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Name -> path of the mask of each image that has one, and the masks that belong to no image."""
    if pair is not None:
        wanted = {name: folder / os.fspath(pair(name)) for name in images}
        return {name: path for name, path in wanted.items() if path.is_file()}, []
    own = {*map(os.path.realpath, images.values())} if _holds_images(folder, images) else set()
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
    # By path; but where no stem occurs twice, folders need not be the same on both sides.
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
    """Whether an image lies below the folder of masks."""
    root = os.path.join(os.path.realpath(masks), "")
    folders = {path.parent for path in images.values()}
    return any(os.path.join(os.path.realpath(folder), "").startswith(root) for folder in folders)


def _image_name(relative: str, mask_suffix: str) -> str | None:
    """The name of the image that a mask is for; None for what is no mask."""
    if _has_ending(mask_suffix):
        return relative[: -len(mask_suffix)] if relative.lower().endswith(mask_suffix.lower()) else None
    stem, suffix = os.path.splitext(relative)
    if suffix.lower() not in IMAGE_SUFFIXES or not stem.endswith(mask_suffix):
        return None
    return stem[: len(stem) - len(mask_suffix)]


def _normalised(name: str) -> str:
    """In one Unicode form: some systems write an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return _normalised(name).rpartition("/")[2]


def select_names(images: Mapping[str, Path], names: Names) -> dict[str, Path]:
    """The images that a file, a glob or a list names."""
    if isinstance(names, str) and not Path(names).is_file() and any(sign in names for sign in "*?["):
        pattern = _normalised(names)
        whole = pattern.lower().endswith(IMAGE_SUFFIXES)  # else "*[!k]" would match x_mask, by the "g" of its .png
        found = {
            name: path
            for name, path in images.items()
            if fnmatchcase(_normalised(name + path.suffix if whole else name), pattern)
        }
        if not found:
            raise ValueError(f"`names`: no image is called {names!r}; they are called {first_few(images)}")
        return found
    if isinstance(names, (str, os.PathLike)):
        lines, where = _read_lines(Path(names)), f" of {os.fspath(names)}"
    else:
        lines, where = list(names), ""
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
        raise ValueError(f"`names`: expected names in {path}, it has none")
    return lines


def _select_listed(images: Mapping[str, Path], lines: Iterable[str], where: str) -> dict[str, Path]:
    by_name = {_normalised(name): name for name in images}
    counts = Counter(map(_stem, images))
    by_stem = {_stem(name): name for name in images if counts[_stem(name)] == 1}
    found: list[str] = []
    unknown: list[str] = []
    for line in lines:
        # A whole line first: names may hold spaces. Then the first column of several.
        candidates = [
            form
            for text in dict.fromkeys((line, line.split()[0] if line.split() else ""))
            for form in _with_and_without_suffix(text)
        ]
        name = next((by_name[form] for form in candidates if form in by_name), None)
        name = name or next((by_stem[_stem(form)] for form in candidates if _stem(form) in by_stem), None)
        if name is None:
            unknown.append(line)
        else:
            found.append(name)
    if unknown:
        raise ValueError(
            f"`names`: {len(unknown)} names{where} are no images: {first_few(map(repr, unknown))};"
            f" images are called {first_few(images)}"
        )
    if not found:
        raise ValueError("`names`: expected names, got none")
    double = [name for name, count in Counter(found).items() if count > 1]
    if double:
        raise ValueError(f"`names`: expected every name{where} once, {double[0]!r} occurs twice")
    return {name: images[name] for name in sorted(found)}


def _with_and_without_suffix(text: str) -> list[str]:
    """A name as it stands, and without the suffix of an image."""
    plain = _normalised(text).lstrip("/").removeprefix("./")
    stem, suffix = os.path.splitext(plain)
    return [plain, stem] if suffix.lower() in IMAGE_SUFFIXES else [plain]
