"""The one pass over the logits that the losses share.

A loss of this family needs, per pixel, a few numbers: ``-log p_y``, the cross entropy with uniform, the entropy,
``Σ p²``. ``pixel_maps`` computes those asked for in one pass over cache-sized blocks, and its backward writes the
gradient of all of them in another. Only the logits (which the network keeps anyway) and maps of one number a
pixel are saved: no softmax, no one-hot tensor. What a loss does with the maps (weights, means) is plain torch on
(B, H, W), in ``_reduce``.

Differentiable twice (``create_graph=True``, ``torch.func.grad`` and ``vmap`` of it then take plain operations, which
keep softmax tensors); forward-mode AD raises torch's ``NotImplementedError``. Tensors of more than 2^31 elements
are fine: no index is computed here, and ATen's are 64-bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg._numerics import blocks

__all__ = ["PixelMaps", "class_dim", "cut", "pixel_maps", "statistics_dtype"]


class PixelMaps(NamedTuple):
    """(B, H, W) maps in float32 (float64 for float64 logits); None where not asked for.

    A map is exactly 0 outside its region, and no gradient flows there, whatever the logits hold.

    Attributes:
        valid: bool, the pixels that have a label: not ``ignore_index``, or a soft label that is not all zero.
        nll: on valid pixels ``-log p_y``, for soft labels ``-Σ_c y_c log p_c``.
        kld: on valid pixels ``-(1/C) Σ_c log p_c``.
        entropy: on valid pixels ``-Σ_c p_c log p_c``.
        square: on valid pixels ``Σ_c p_c²``.
        ignored_entropy: on all other pixels ``-Σ_c p_c log p_c``.
    """

    valid: Tensor
    nll: Tensor | None = None
    kld: Tensor | None = None
    entropy: Tensor | None = None
    square: Tensor | None = None
    ignored_entropy: Tensor | None = None


_KINDS = PixelMaps._fields[1:]
_ENTROPIES = ("entropy", "ignored_entropy")


def pixel_maps(logits: Tensor, target: Tensor, *kinds: str, ignore_index: int = 255) -> PixelMaps:
    """Compute the maps named in ``kinds``; differentiable in ``logits``, not in ``target``.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer labels, or (B, C, H, W) floating-point soft labels (all zero: not valid).
        kinds: names of the fields of ``PixelMaps`` wanted.
        ignore_index: label of the pixels that are not valid; not used with soft labels.
    """
    wanted = tuple(kind for kind in _KINDS if kind in kinds)
    valid, *maps = _PixelMaps.apply(logits, target.detach(), ignore_index, wanted)  # type: ignore[no-untyped-call]
    return PixelMaps(valid, **dict(zip(wanted, maps, strict=True)))


def statistics_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, float32 for everything narrower."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def class_dim(logits: Tensor) -> int:
    """3 where the classes of a pixel are neighbours in memory (channels-last), else 1.

    Blocks are worked on with the class dimension there, so that neither logits nor gradient are transposed.
    """
    return 3 if logits.shape[1] > 1 and logits.stride(1) < logits.stride(3) else 1


def cut(tensor: Tensor, block: tuple[slice, slice], dim: int) -> Tensor:
    """View one (images, rows) block of a (B, H, W) map, or of a (B, C, H, W) tensor with its classes at ``dim``."""
    images, rows = block
    return tensor[images, rows] if tensor.ndim == 3 else tensor[images, :, rows].movedim(1, dim)


_EVERYTHING = (slice(None), slice(None))


class _PixelMaps(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, ignore_index: int, kinds: tuple[str, ...]) -> tuple[Tensor, ...]:
        dim = class_dim(logits)
        if torch.compiler.is_compiling():
            return _maps(cut(logits, _EVERYTHING, dim), cut(target, _EVERYTHING, dim), ignore_index, kinds, dim)
        shape, dtype = (logits.shape[0], *logits.shape[2:]), statistics_dtype(logits)
        valid = torch.empty(shape, dtype=torch.bool, device=logits.device)
        maps = [torch.empty(shape, dtype=dtype, device=logits.device) for _ in kinds]
        for block in blocks(logits):
            parts = _maps(cut(logits, block, dim), cut(target, block, dim), ignore_index, kinds, dim)
            for whole, part in zip((valid, *maps), parts, strict=True):
                cut(whole, block, dim).copy_(part)
        return (valid, *maps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, target, ctx.ignore_index, ctx.kinds = inputs
        valid, *maps = output
        ctx.mark_non_differentiable(valid)
        ctx.set_materialize_grads(False)
        # The gradients of the entropies and of Σ p² need their values, the others' do not.
        values = [None if kind in ("nll", "kld") else m for kind, m in zip(ctx.kinds, maps, strict=True)]
        ctx.save_for_backward(logits, target, *values)

    @staticmethod
    def backward(ctx: Any, _valid: None, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits, target, *values = ctx.saved_tensors
        arrived = [entry for entry in zip(ctx.kinds, grads, values, strict=True) if entry[1] is not None]
        dim = class_dim(logits)

        def gradient(block: tuple[slice, slice], out: Tensor | None) -> Tensor:
            terms = {
                kind: (cut(grad, block, dim), None if value is None else cut(value, block, dim))
                for kind, grad, value in arrived
            }
            return _gradient(cut(logits, block, dim), cut(target, block, dim), terms, ctx.ignore_index, dim, out)

        if not arrived:
            return None, None, None, None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return gradient(_EVERYTHING, None).movedim(dim, 1).to(logits.dtype), None, None, None
        result = torch.empty_like(logits)
        for block in blocks(logits):
            part = cut(result, block, dim)
            if part.dtype == statistics_dtype(logits):
                gradient(block, part)
            else:
                part.copy_(gradient(block, torch.empty_like(part, dtype=torch.float32)))
        return result, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], logits: Tensor, target: Tensor, ignore_index: int, kinds: tuple[str, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # Pixels are independent: the mapped dimension joins the batch.
        def fold(tensor: Tensor, dim: int | None) -> Tensor:
            mapped = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return mapped.flatten(0, 1)

        folded = fold(logits, in_dims[0])
        sizes = (info.batch_size, folded.shape[0] // info.batch_size)
        out = _PixelMaps.apply(folded, fold(target, in_dims[1]), ignore_index, kinds)  # type: ignore[no-untyped-call]
        return tuple(part.unflatten(0, sizes) for part in out), (0,) * len(out)


def _maps(z: Tensor, y: Tensor, ignore_index: int, kinds: tuple[str, ...], dim: int) -> tuple[Tensor, ...]:
    """``valid`` and the maps of one block whose classes are at ``dim``."""
    valid = _valid(y, ignore_index, dim)
    log_p = torch.log_softmax(z, dim, dtype=statistics_dtype(z))
    p = log_p if set(kinds) <= {"nll", "kld"} else log_p.exp()
    maps = [valid]
    for kind in kinds:
        if kind == "nll" and y.ndim == 3:
            value = log_p.gather(dim, _index(y, valid, dim)).squeeze(dim).neg_()
        elif kind == "nll":
            value = (y * _no_infinity(log_p)).sum(dim).neg_()
        elif kind == "kld":
            value = log_p.mean(dim).neg_()
        elif kind == "square":
            value = p.square().sum(dim)
        else:
            value = (p * _no_infinity(log_p)).sum(dim).neg_()
        maps.append(value.masked_fill_(valid if kind == "ignored_entropy" else ~valid, 0.0))
    return tuple(maps)


def _gradient(
    z: Tensor,
    y: Tensor,
    terms: dict[str, tuple[Tensor, Tensor | None]],
    ignore_index: int,
    dim: int,
    out: Tensor | None,
) -> Tensor:
    """Gradient of one block of logits: written into ``out`` or, without it, made of differentiable operations.

    d nll = m p - y with m = Σ y, d kld = p - 1/C, d entropy = -p (log p + H), d square = 2 p (p - S). They add up
    to ``p · slope + offset - g_nll · y``.

    Args:
        terms: for each map that a gradient arrived for, that gradient and the map itself where needed.
    """
    valid, dtype = _valid(y, ignore_index, dim), statistics_dtype(z)
    zero = torch.zeros((), dtype=dtype, device=z.device)
    # 0 · NaN is NaN: logits that no map uses are taken out before they can spoil a gradient of zero. On CPU a
    # look at the outcome (softmax spreads a NaN over its pixel's classes) is cheaper than masking every time.
    if "ignored_entropy" not in terms and not (out is not None and z.device.type == "cpu" and _all_finite(z, dim)):
        z = torch.where(valid.unsqueeze(dim), z, zero.to(z.dtype))

    slope, offset, nll = zero, zero, None
    for kind, (grad, _) in terms.items():
        grad = torch.where(~valid if kind == "ignored_entropy" else valid, grad, zero).unsqueeze(dim)
    raise NotImplementedError
