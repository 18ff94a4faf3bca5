"""The one pass over the logits that the losses share.

A loss of this family needs, per pixel, a few numbers: ``-log p_y``, the cross entropy with uniform, the entropy,
``Σ p²``. ``pixel_maps`` computes those asked for in one pass over cache-sized blocks, and its backward writes the
gradient of all of them in another. Only the logits (which the network keeps anyway) and maps of one number a
pixel are saved: no softmax, no one-hot tensor. What a loss does with the maps (weights, means) is plain torch on
(B, H, W), in ``_reduce``.

Differentiable twice: with ``create_graph=True``, and under ``torch.func.grad`` and ``vmap`` of it, backward takes
plain operations, which keep softmax tensors; not inside ``torch.compile``, where torch loses the second derivative
of any ``autograd.Function`` without an error. Forward-mode AD raises torch's ``NotImplementedError``. Tensors of
more than 2^31 elements are fine: no index is computed here, and ATen's are 64-bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from selftrain_seg import kernels
from selftrain_seg._numerics import blocks
from selftrain_seg.kernels import launch
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["Scratch", "fold_and_apply", "follow_layout", "pixel_maps", "statistics_dtype"]

_ENTROPIES = ("entropy", "ignored_entropy")
_NEED_VALUES = (*_ENTROPIES, "square")  # maps whose gradient is computed with the map
_LOG2_E = math.log2(math.e)
_LOG_ZERO = -1e4  # in place of log p = -inf of a class masked out by its logit: p is 0 long before, 0 · log 0 too


def pixel_maps(logits: Tensor, target: Tensor, *kinds: str, ignore_index: int = IGNORE_INDEX) -> tuple[Tensor, ...]:
    """Compute per-pixel maps in one pass; differentiable in ``logits``, not in ``target``.

    A pixel is valid if it has a label: not ``ignore_index``, or soft labels that are not all zero. A map is
    exactly 0 outside its region, and no gradient flows there, whatever the logits hold.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer labels, or (B, C, H, W) floating-point soft labels.
        kinds: the maps wanted. On valid pixels "nll": ``-log p_y``, for soft labels ``-Σ_c y_c log p_c``;
            "kld": ``-(1/C) Σ_c log p_c``; "entropy": ``-Σ_c p_c log p_c``; "square": ``Σ_c p_c²``. On all other
            pixels "ignored_entropy": ``-Σ_c p_c log p_c``.
        ignore_index: label of the pixels that are not valid; not used with soft labels.

    Returns:
        ``(valid, *maps)``, each (B, H, W): bool, and float32 (float64 for float64 logits) in the order asked for.
    """
    out: tuple[Tensor, ...] = _PixelMaps.apply(logits, target.detach(), ignore_index, kinds)
    return out


def statistics_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, float32 for everything narrower."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def follow_layout(gradient: Tensor, logits: Tensor) -> Tensor:
    """Bring a gradient made of plain operations to dtype and, if channels-last, memory format of the logits."""
    last = not logits.is_contiguous() and logits.is_contiguous(memory_format=torch.channels_last)
    gradient = gradient.to(logits.dtype)
    return gradient.contiguous(memory_format=torch.channels_last) if last else gradient


class Scratch:
    """Named buffers that all blocks of a pass share; fresh ones for each block would be paged in every time."""

    def __init__(self, logits: Tensor) -> None:
        self._dtype, self.device = statistics_dtype(logits), logits.device
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: torch.Size) -> Tensor:
        size = shape.numel()
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self._dtype, device=self.device)
        return self._buffers[name][:size].view(shape)


def fold_and_apply(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Apply under ``vmap`` a function that treats pixels independently: the mapped dimension joins the batch."""
    pairs = zip(args, in_dims, strict=True)
    out = function.apply(*(_fold(info, dim, arg) if isinstance(arg, Tensor) else arg for arg, dim in pairs))
    sizes = (info.batch_size, out[0].shape[0] // info.batch_size)
    return tuple(part.unflatten(0, sizes) for part in out), (0,) * len(out)


def _fold(info: Any, dim: int | None, arg: Tensor) -> Tensor:
    mapped = arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
    return mapped.flatten(0, 1)


def _cut(tensor: Tensor, block: tuple[slice, slice]) -> Tensor:
    """View the (images, rows) block of a (B, H, W) or (B, C, H, W) tensor."""
    images, rows = block
    return tensor[images, rows] if tensor.ndim == 3 else tensor[images, :, rows]


class _PixelMaps(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, ignore_index: int, kinds: tuple[str, ...]) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            if _opaque(logits):
                return tuple(_maps_operator(logits, target, ignore_index, _SEPARATOR.join(kinds)))
            return _maps(logits, target, ignore_index, kinds, None)
        if kernels.chosen(logits, "losses"):
            return launch.pixel_maps(logits, target, kinds, ignore_index)
        return _maps_in_blocks(logits, target, ignore_index, kinds)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, target, ctx.ignore_index, ctx.kinds = inputs
        valid, *maps = output
        ctx.mark_non_differentiable(valid)
        ctx.set_materialize_grads(False)
        # The gradients of the entropies and of Σ p² need their values, the others' do not.
        values = [m if kind in _NEED_VALUES else None for kind, m in zip(ctx.kinds, maps, strict=True)]
        ctx.save_for_backward(logits, target, *values)

    @staticmethod
    def backward(ctx: Any, _valid: None, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits, target, *values = ctx.saved_tensors
        arrived = [
            (kind, grad, value) for kind, grad, value in zip(ctx.kinds, grads, values, strict=True) if grad is not None
        ]
        if not arrived:
            return None, None, None, None
        if torch.compiler.is_compiling() and _opaque(logits):
            kinds = _SEPARATOR.join(kind for kind, _, _ in arrived)
            given, known = [grad for _, grad, _ in arrived], [value for _, _, value in arrived if value is not None]
            return _gradient_operator(logits, target, given, known, ctx.ignore_index, kinds), None, None, None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            terms = {kind: (grad, value) for kind, grad, value in arrived}
            gradient = _gradient(logits, target, terms, ctx.ignore_index, None)
            return follow_layout(gradient, logits), None, None, None
        if kernels.chosen(logits, "losses"):
            by_kind = {kind: grad for kind, grad, _ in arrived}
            return launch.pixel_gradient(logits, target, by_kind, ctx.ignore_index), None, None, None
        return _gradient_in_blocks(logits, target, arrived, ctx.ignore_index), None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        logits: Tensor,
        target: Tensor,
        ignore_index: int,
        kinds: tuple[str, ...],
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return fold_and_apply(_PixelMaps, info, in_dims, logits, target, ignore_index, kinds)


def _maps_in_blocks(logits: Tensor, target: Tensor, ignore_index: int, kinds: tuple[str, ...]) -> tuple[Tensor, ...]:
    shape, scratch = (logits.shape[0], *logits.shape[2:]), Scratch(logits)
    valid = torch.empty(shape, dtype=torch.bool, device=logits.device)
    maps = [torch.empty(shape, dtype=statistics_dtype(logits), device=logits.device) for _ in kinds]
    for block in blocks(logits):
        parts = _maps(_cut(logits, block), _cut(target, block), ignore_index, kinds, scratch)
        for whole, part in zip((valid, *maps), parts, strict=True):
            _cut(whole, block).copy_(part)
    return (valid, *maps)


def _gradient_in_blocks(
    logits: Tensor, target: Tensor, arrived: list[tuple[str, Tensor, Tensor | None]], ignore_index: int
) -> Tensor:
    result, scratch = torch.empty_like(logits), Scratch(logits)
    for block in blocks(logits):
        terms = {
            kind: (_cut(grad, block), None if value is None else _cut(value, block)) for kind, grad, value in arrived
        }
        gradient = _gradient(_cut(logits, block), _cut(target, block), terms, ignore_index, scratch)
        _cut(result, block).copy_(gradient)
    return result


# The same as operators, which torch.compile does not look into: on CPU, what the compiler makes of the plain
# operations is up to twice as slow as the blocks. An operator takes no tuple of strings: they come joined.
_OPAQUE = ("cpu",)
_SEPARATOR = ","


def _opaque(logits: Tensor) -> bool:
    """Whether the operators are used; an exported program must not depend on this library."""
    return logits.device.type in _OPAQUE and not torch.compiler.is_exporting()


@torch.library.custom_op("selftrain_seg::pixel_maps", mutates_args=(), device_types="cpu")
def _maps_operator(logits: Tensor, target: Tensor, ignore_index: int, kinds: str) -> list[Tensor]:
    return list(_maps_in_blocks(logits, target, ignore_index, tuple(kinds.split(_SEPARATOR))))


@_maps_operator.register_fake
def _(logits: Tensor, target: Tensor, ignore_index: int, kinds: str) -> list[Tensor]:
    valid = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=torch.bool)
    return [valid, *(torch.empty_like(valid, dtype=statistics_dtype(logits)) for _ in kinds.split(_SEPARATOR))]


@_maps_operator.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], logits: Tensor, target: Tensor, ignore_index: int, kinds: str
) -> tuple[list[Tensor], list[int]]:
    logits, target = (_fold(info, dim, arg) for arg, dim in zip((logits, target), in_dims[:2], strict=True))
    out = _maps_operator(logits, target, ignore_index, kinds)
    sizes = (info.batch_size, logits.shape[0] // info.batch_size)
    return [part.unflatten(0, sizes) for part in out], [0] * len(out)


@torch.library.custom_op("selftrain_seg::pixel_maps_gradient", mutates_args=(), device_types="cpu")
def _gradient_operator(
    logits: Tensor, target: Tensor, grads: list[Tensor], known: list[Tensor], ignore_index: int, kinds: str
) -> Tensor:
    left = iter(known)
    arrived = [
        (kind, grad, next(left) if kind in _NEED_VALUES else None)
        for kind, grad in zip(kinds.split(_SEPARATOR), grads, strict=True)
    ]
    return _gradient_in_blocks(logits, target, arrived, ignore_index)


@_gradient_operator.register_fake
def _(
    logits: Tensor, target: Tensor, grads: list[Tensor], known: list[Tensor], ignore_index: int, kinds: str
) -> Tensor:
    return torch.empty_like(logits)


def _maps(
    z: Tensor, y: Tensor, ignore_index: int, kinds: tuple[str, ...], scratch: Scratch | None
) -> tuple[Tensor, ...]:
    """``valid`` and the maps of one block."""
    y, valid, _ = _read_labels(y, z, ignore_index, scratch)
    log_p = _log_softmax(z, scratch)
    p = log_p if set(kinds) <= {"nll", "kld"} else _exp(log_p, scratch)
    work = None if scratch is None else scratch("work", z.shape)
    maps = [valid]
    for kind in kinds:
        if kind == "nll" and y.ndim == 3:
            value = log_p.gather(1, _index(y, valid)).squeeze(1).neg()
        elif kind == "nll":
            # A class masked out by its logit has log p = -inf; where its label is 0 that must add 0.
            finite = torch.clamp(log_p, min=torch.finfo(log_p.dtype).min, out=work)
            value = finite.mul_(y).sum(1).neg()
        elif kind == "kld":
            value = log_p.mean(1).neg()
        elif kind == "square":
            value = torch.mul(p, p, out=work).sum(1)
        else:
            value = torch.clamp(log_p, min=_LOG_ZERO, out=work).mul_(p).sum(1).neg()
        # Not in place: torch 2.11's compiler loses the gradient of an output that was changed in place.
        maps.append(value.masked_fill(valid if kind == "ignored_entropy" else ~valid, 0.0))
    return tuple(maps)


def _gradient(
    z: Tensor,
    y: Tensor,
    terms: dict[str, tuple[Tensor, Tensor | None]],
    ignore_index: int,
    scratch: Scratch | None,
) -> Tensor:
    """Gradient of one block of logits: in ``scratch`` or, without it, made of differentiable operations.

    d nll = m p - y with m = Σ y, d kld = p - 1/C, d entropy = -p (log p + H), d square = 2 p (p - S). They add up
    to ``p · slope + offset - g_nll · y``. ``terms`` holds, for each map that a gradient arrived for, that gradient
    and the map itself where needed.
    """

    def buffer(name: str) -> Tensor | None:
        return None if scratch is None else scratch(name, z.shape)

    y, valid, mass = _read_labels(y, z, ignore_index, scratch)
    zero = torch.zeros((), dtype=statistics_dtype(z), device=z.device)

    # 0 · NaN is NaN: logits that no map uses are taken out before they can spoil a gradient of zero. On CPU one
    # look at the outcome (softmax spreads a NaN over all classes of its pixel) is cheaper than always masking.
    look = scratch is not None and z.device.type == "cpu"
    unused = "ignored_entropy" not in terms
    if unused and not look:
        z = torch.where(valid.unsqueeze(1), z, zero.to(z.dtype))
    with_log = any(kind in terms for kind in _ENTROPIES)
    p, log_p = _softmax(z, with_log, scratch)
    if unused and look and not bool(p[:, 0].sum().isfinite()):
        p, log_p = _softmax(torch.where(valid.unsqueeze(1), z, zero.to(z.dtype)), with_log, scratch)

    slope, offset, nll = zero, zero, None
    for kind, (grad, value) in terms.items():
        grad = torch.where(~valid if kind == "ignored_entropy" else valid, grad, zero).unsqueeze(1)
        if kind == "nll":
            nll = grad
            slope = slope + (grad if mass is None else grad * mass.unsqueeze(1))
        elif kind == "kld":
            slope, offset = slope + grad, grad / -z.shape[1]
        elif kind == "square" and value is not None:
            centred = torch.sub(p, value.unsqueeze(1), out=buffer("work"))
            slope = torch.addcmul(slope, centred, grad, value=2, out=buffer("slope"))
        elif value is not None:
            centred = torch.add(log_p, value.unsqueeze(1), out=buffer("work"))
            slope = torch.addcmul(slope, centred, grad, value=-1, out=buffer("slope"))

    result = torch.addcmul(offset, p, slope, out=buffer("p"))
    if nll is None:
        return result
    if mass is not None:
        return torch.addcmul(result, nll, y, value=-1, out=buffer("p"))
    index = _index(y, valid)
    return result.scatter_add(1, index, -nll) if scratch is None else result.scatter_add_(1, index, -nll)


def _log_softmax(z: Tensor, scratch: Scratch | None) -> Tensor:
    if scratch is None:
        return torch.log_softmax(z, 1, dtype=statistics_dtype(z))
    if z.device.type == "cpu":  # it would make contiguous copies of its own; on a GPU it need not
        z = scratch("z", z.shape).copy_(z)
    return torch.log_softmax(z, 1, dtype=statistics_dtype(z), out=scratch("log_p", z.shape))


def _exp(log_p: Tensor, scratch: Scratch | None) -> Tensor:
    if scratch is None:
        return log_p.exp()
    out = scratch("p", log_p.shape)
    if log_p.device.type != "cpu":
        return torch.exp(log_p, out=out)
    # On CPU exp goes through a vendor library that can take three times as long as exp2.
    return torch.exp2(torch.mul(log_p, _LOG2_E, out=out), out=out)


def _softmax(z: Tensor, with_log: bool, scratch: Scratch | None) -> tuple[Tensor, Tensor]:
    """``p`` and, only if asked for (else it is not to be used), ``log p`` without -inf."""
    if with_log:
        log_p = _log_softmax(z, scratch)
        log_p = torch.clamp(log_p, min=_LOG_ZERO, out=None if scratch is None else log_p)
        return _exp(log_p, scratch), log_p
    out = None if scratch is None else scratch("p", z.shape)
    if scratch is None or z.device.type != "cpu":
        p = torch.softmax(z, 1, dtype=statistics_dtype(z), out=out)
        return p, p
    # On CPU softmax is slow next to exp2, so 2^(z · log2 e - top · log2 e), one multiply-add each. The rounding
    # of top · log2 e is the same for all classes of a pixel and cancels in the division.
    if z.dtype != statistics_dtype(z) or z.stride(3) != 1:
        z = scratch("z", z.shape).copy_(z)
    p = torch.add(z.amax(1, keepdim=True).mul_(-_LOG2_E), z, alpha=_LOG2_E, out=out).exp2_()
    return p.div_(p.sum(1, keepdim=True)), p


def _read_labels(
    y: Tensor, z: Tensor, ignore_index: int, scratch: Scratch | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Labels in a type to compute with, which pixels have one, and what soft labels sum to."""
    if y.ndim == 3:
        y = y.long()  # as uint8, the label 156 would equal an ignore_index of -100
        return y, y != ignore_index, None
    y = y.to(statistics_dtype(z)) if scratch is None else scratch("y", y.shape).copy_(y)
    mass = y.sum(1)
    return y, mass != 0, mass


def _index(y: Tensor, valid: Tensor) -> Tensor:
    """Labels to gather or scatter by: class 0 where there is no label."""
    return (y * valid).unsqueeze(1)  # where() would be three times slower on the speckled masks of pseudo-labels
