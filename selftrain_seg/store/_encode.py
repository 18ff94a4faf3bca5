"""Encode a batch of pseudo-labels as bytes: check and round on its device, then copy to the host once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.store._png import Bytes
from selftrain_seg.store.soft import pack_soft, wrong_soft
from selftrain_seg.types import PseudoLabels

# Fields of PseudoLabels that a round can store in addition to the labels.
KINDS = ("confidence", "soft", "pixel_weight", "predicted")


class HostBatch(NamedTuple):
    """Maps of each kind, (B, n, H, W) bytes, and (B, 2) the mass of soft labels that was dropped."""

    maps: dict[str, Bytes]
    dropped: np.ndarray[Any, np.dtype[np.int64]] | None


def check_batch(pseudo: Any, batch: int, num_classes: int) -> None:
    """Check types, shapes, dtypes and devices; ``to_host`` checks values."""
    if not isinstance(pseudo, PseudoLabels):
        raise TypeError(f"`pseudo`: expected PseudoLabels, got {type(pseudo).__name__}")
    _checks.check_label_maps(pseudo.labels)
    shape = tuple(pseudo.labels.shape)
    if shape[0] != batch:
        raise ValueError(f"`names`: expected one for each of the {shape[0]} images, got {batch}")
    if 0 in shape[1:]:
        raise ValueError(f"`labels`: expected at least one pixel per image, got {shape}")
    like = pseudo.labels.unsqueeze(1)
    for name in ("confidence", "pixel_weight", "predicted"):
        value = getattr(pseudo, name)
        if value is not None:
            _checks.check_map(value, like, name)
            if name == "predicted":
                _checks.check_integer(value, name)
            elif not value.is_floating_point():
                raise TypeError(f"`{name}`: expected a floating-point dtype, got {value.dtype}")
    if pseudo.soft is not None:
        _checks.check_class_maps(pseudo.soft, like.expand(-1, num_classes, -1, -1), "soft")


def to_host(
    pseudo: PseudoLabels, names: list[str], kinds: tuple[str, ...], num_classes: int, ignore_index: int, top_k: int
) -> HostBatch:
    """Encode the labels, the given kinds and the predicted classes, which are counted even if they are not stored."""
    planes: dict[str, Tensor] = {}
    wrong: dict[str, Tensor] = {}
    dropped = None
    for kind in ("labels", *kinds, "predicted"):
        value = getattr(pseudo, kind)
        if value is None or kind in planes:
            continue
        if kind == "soft":
            planes[kind], wrong[kind], dropped = pack_soft(value, top_k)
        else:
            wrong[kind] = _wrong(kind, value, num_classes, ignore_index).flatten(1).any(1)
            planes[kind] = _as_bytes(value).unsqueeze(1)
    parts = [*planes.values(), *wrong.values(), *([] if dropped is None else [dropped])]
    flat = torch.cat([part.contiguous().view(torch.uint8).flatten() for part in parts]).to("cpu")
    host = iter(np.split(np.asarray(flat), np.cumsum([part.nbytes for part in parts])[:-1]))

    maps = {kind: next(host).reshape(value.shape) for kind, value in planes.items()}
    for kind in wrong:
        bad = next(host).nonzero()[0]
        if len(bad):
            _report(kind, getattr(pseudo, kind)[int(bad[0])], names[int(bad[0])], num_classes, ignore_index)
    return HostBatch(maps, None if dropped is None else next(host).view(np.int64).reshape(-1, 2))


def _wrong(kind: str, value: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    if kind in ("labels", "predicted"):
        return (value != ignore_index) & ((value < 0) | (value >= num_classes))
    return ~((value >= 0) & (value <= (1.0 if kind == "pixel_weight" else torch.finfo(value.dtype).max)))


def _as_bytes(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.detach().to(torch.uint8)
    return value.detach().float().clamp(0.0, 1.0).mul_(255.0).round_().to(torch.uint8)


def _report(kind: str, value: Tensor, name: str, num_classes: int, ignore_index: int) -> None:
    if kind == "soft":
        found = value[:, wrong_soft(value[None])[0]][:, 0].float()
        what, got = "entries of at least 0 that sum to 1 or are all 0", f"a sum of {float(found.sum())}"
        if not bool((found >= 0).all()):
            got = f"{float(found[~(found >= 0)][0])}"
    else:
        first = value[_wrong(kind, value, num_classes, ignore_index)][0]
        got = f"{float(first) if first.is_floating_point() else int(first)}"
        what = {"confidence": "finite values of at least 0", "pixel_weight": "values in [0, 1]"}.get(
            kind, f"values in [0, {num_classes}) or ignore_index {ignore_index}"
        )
    raise ValueError(f"`{kind}`: expected {what}, got {got} in image {name!r}")
