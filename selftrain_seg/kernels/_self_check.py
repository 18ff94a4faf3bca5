"""Whether a kernel computes on this device what it should: found out once, on a small batch, against the formulas.

The formulas are written out in float64, without the functions that the kernels stand in for.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg.kernels import launch

# Rows and columns. Odd ones, and such that Triton reads several elements at once.
_BATCHES = (
    ((5, 37), torch.contiguous_format),
    ((4, 32), torch.contiguous_format),
    ((5, 37), torch.channels_last),
)
_ALPHA = 0.25
_IGNORE = -1
_LOW, _BIN_WIDTH, _BINS = -64.0, 0.25, 512

_passed: set[tuple[str, torch.device, torch.dtype, int]] = set()
_failed = False


def passed(kernel: str, logits: Tensor) -> bool:
    """Whether this kernel, and every one before it, passed; checked here unless a CUDA graph is being captured."""
    global _failed
    key = (kernel, logits.device, logits.dtype, logits.shape[1])
    if _failed or key in _passed:
        return not _failed
    with torch.cuda.device(logits.get_device()), torch.no_grad():
        if torch.cuda.is_current_stream_capturing():
            return False
        mode = torch.cuda.get_sync_debug_mode() if logits.is_cuda else 0
        if mode:
            torch.cuda.set_sync_debug_mode("default")  # the check waits for the device; nothing after it does
        try:
            check(*key)
        except torch.OutOfMemoryError:  # says nothing about the kernel: asked again next time
            return False
        except Exception as error:  # whatever it is, the plain path does the same
            _failed = True
            _raise_if_broken(logits.device, error)
            warnings.warn(
                f"the kernel for `{kernel}` failed its self-check on {logits.device} with {logits.dtype} and "
                f"{logits.shape[1]} classes ({type(error).__name__}: {error}); from here on this process uses the "
                "plain path, which gives the same results",
                RuntimeWarning,
                stacklevel=4,
            )
            return False
        finally:
            if mode:
                torch.cuda.set_sync_debug_mode(mode)
    _passed.add(key)
    return True


def _raise_if_broken(device: torch.device, error: Exception) -> None:
    """After an illegal access no path works in this process: say so, instead of falling back."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        raise RuntimeError(
            f"a kernel of selftrain_seg broke {device}; start again with SELFTRAIN_SEG_KERNELS=0"
        ) from error


def check(kernel: str, device: torch.device, dtype: torch.dtype, num_classes: int) -> None:
    """Raise unless a kernel is right for contiguous and channels_last batches."""
    for size, memory_format in _BATCHES:
        logits = _awkward((2, num_classes, *size), device).to(dtype, memory_format=memory_format)
        if kernel == "losses":
            _check_losses(logits, memory_format)
        elif kernel == "top":
            labels, log_confidence = launch.top(logits)
            expected = _read(logits)
            _equal("labels", labels, expected.labels, expected.usable)
            _close("log-confidence", log_confidence, -expected.rest.log1p(), 1e-37)
        elif kernel == "count_scores":
            _check_counts(logits)
        else:
            _check_selection(kernel, logits)


def _awkward(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Logits without a random generator: any, saturated, tied, NaN and infinite."""
    index = torch.arange(math.prod(shape), dtype=torch.float64, device=device)
    logits = (8 * ((index * 12.9898).sin() * 43758.5453).frac()).view(shape)
    logits[..., ::5] *= 10
    logits[..., ::7] = logits[..., ::7].round()
    logits[..., 8] = 0.0
    logits[0, -1, 0, 3] = torch.nan
    logits[1, 0, 2, 6] = torch.inf
    return logits


class _Reading(NamedTuple):
    gaps: Tensor  # z - max z
    labels: Tensor
    rest: Tensor  # Σ exp(gaps) of all other classes, NaN where a logit is NaN or the largest infinite
    usable: Tensor


def _read(logits: Tensor) -> _Reading:
    z = logits.double()
    top, classes = z.amax(1, keepdim=True), torch.arange(z.shape[1], device=z.device).view(-1, 1, 1)
    labels = torch.where(z == top, classes, z.shape[1]).amin(1)
    others = torch.where(classes == labels.unsqueeze(1), 0.0, (z - top).exp())
    rest = others.sum(1) + (top - top).squeeze(1)
    return _Reading(z - top, labels, rest, ~rest.isnan())


def _check_counts(logits: Tensor) -> None:
    counts = torch.zeros(logits.shape[1], _BINS, dtype=torch.int64, device=logits.device)
    launch.count_scores(logits, counts, low=_LOW, bin_width=_BIN_WIDTH)
    read = _read(logits)
    score, labels = -read.rest[read.usable].log(), read.labels[read.usable]
    slack = 1e-4 * (1 + score.abs().clamp(max=100.0))
    cumulated = counts.cumsum(1)
    for moved, sign in ((score + slack, 1), (score - slack, -1)):  # at most and at least so low
        place = ((moved - _LOW) / _BIN_WIDTH).floor().clamp(0, _BINS - 1).long()
        bound = torch.zeros_like(counts).flatten()
        bound.scatter_add_(0, labels * _BINS + place, torch.ones_like(place))
        if not bool((sign * cumulated >= sign * bound.view_as(counts).cumsum(1)).all()):
            raise ValueError("counts are wrong")


def _check_selection(kernel: str, logits: Tensor) -> None:
    read, levels = _read(logits), torch.linspace(0.0, 2.0, logits.shape[1], dtype=torch.float32, device=logits.device)
    log_norm = read.rest.log1p()
    weighted, norm, slack = read.gaps + levels.double().view(-1, 1, 1), log_norm, 1e-3
    soft = None
    if kernel == "select_hard":
        *maps, best = *launch.select_hard(logits, levels, _IGNORE), read.labels
        value, norm = -read.rest.log(), levels.double()[read.labels.clamp(max=logits.shape[1] - 1)]
    elif kernel == "select_reweighted":
        maps = [*launch.select_reweighted(logits, levels, _IGNORE)]
        value, best = weighted.max(1)
    else:
        *maps, soft = launch.select_soft(logits, levels / _ALPHA, 1.0 / _ALPHA, _IGNORE)
        weighted, norm = weighted / _ALPHA, log_norm / _ALPHA
        value, best = weighted.logsumexp(1), weighted.argmax(1)
    labels, predicted, confidence = maps
    keep = value > norm
    sure = ~((value - norm).abs() <= slack * (1 + value.abs()))
    if soft is not None:
        shares = torch.where(keep.unsqueeze(1), weighted.softmax(1), 0.0)
        _close("soft labels", torch.where(sure.unsqueeze(1), soft, 0.0), torch.where(sure.unsqueeze(1), shares, 0.0))
    if kernel != "select_hard":  # which class wins may be a matter of rounding
        sure = sure & ((weighted > weighted.amax(1, keepdim=True) - slack).sum(1) <= 1)
    _equal("labels", labels, torch.where(keep, best, _IGNORE), sure)
    _equal("predicted classes", predicted, read.labels, read.usable)
    _close("confidence", confidence, (-log_norm).exp().nan_to_num(nan=0.0))


def _check_losses(logits: Tensor, memory_format: torch.memory_format) -> None:
    """Hard and soft labels; -1, or none of the classes, where there is no label."""
    images, _, rows, columns = logits.shape
    num_classes, kinds = logits.shape[1], ("nll", "kld", "entropy", "square", "ignored_entropy")
    index = torch.arange(images * rows * columns, device=logits.device).view(images, rows, columns)
    labels = index * 7 % (num_classes + 1) - 1
    valid = labels >= 0
    classes = torch.arange(num_classes, device=logits.device).view(-1, 1, 1)
    one_hot = (classes == labels.unsqueeze(1)).double()
    soft = (0.75 * one_hot + 0.25 * one_hot.roll(1, 1)).contiguous(memory_format=memory_format)
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    entropy, square = -(p * log_p).sum(1), (p * p).sum(1)
    for target, y in ((labels, one_hot), (soft.float(), soft)):
        values = {
            "nll": -(y * log_p).sum(1),
            "kld": -log_p.mean(1),
            "entropy": entropy,
            "square": square,
            "ignored_entropy": entropy,
        }
        slopes = {
            "nll": y.sum(1, keepdim=True) * p - y,
            "kld": p - 1 / num_classes,
            "entropy": -p * (log_p + entropy.unsqueeze(1)),
            "square": 2 * p * (p - square.unsqueeze(1)),
        }
        slopes["ignored_entropy"] = slopes["entropy"]
        grads, expected = {}, torch.zeros_like(p)
        used, *maps = launch.pixel_maps(logits, target, kinds, _IGNORE)
        _equal("valid pixels", used, valid, torch.ones_like(valid))
        for number, (kind, value) in enumerate(zip(kinds, maps, strict=True)):
            region = ~valid if kind == "ignored_entropy" else valid
            _close(kind, value, torch.where(region, values[kind], 0.0))
            grad = (number + torch.arange(columns, device=logits.device)).float().cos()
            grads[kind] = (grad[:1] if kind == "kld" else grad).expand_as(labels)  # one value for all pixels, or not
            expected += torch.where(region.unsqueeze(1), grads[kind].double().unsqueeze(1) * slopes[kind], 0.0)
        gradient = launch.pixel_gradient(logits, target, grads, _IGNORE)
        _close("gradient", gradient, expected, max(1e-4, torch.finfo(logits.dtype).eps))


def _equal(what: str, mine: Tensor, expected: Tensor, where: Tensor) -> None:
    if not torch.equal(mine[where], expected[where]):
        raise ValueError(f"{what} are wrong")


def _close(what: str, mine: Tensor, expected: Tensor, absolute: float = 1e-4) -> None:
    relative = max(1e-4, torch.finfo(mine.dtype).eps)
    if not torch.allclose(mine.double(), expected, rtol=relative, atol=absolute, equal_nan=True):
        raise ValueError(f"{what} is wrong")
