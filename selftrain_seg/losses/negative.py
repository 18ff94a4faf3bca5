"""Negative learning: push down the classes that a teacher is sure a pixel does not have (DT-ST)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selftrain_seg import _checks
from selftrain_seg._numerics import blocks
from selftrain_seg.losses._core import fold_and_apply, follow_layout, statistics_dtype
from selftrain_seg.losses._module import LossModule
from selftrain_seg.losses._reduce import REDUCTIONS, Term, reduce, weigh

__all__ = ["NegativeLoss", "negative_loss"]


def negative_loss(
    logits: Tensor,
    teacher_probs: Tensor,
    *,
    weight: float = 0.5,
    pixel_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Compute binary cross entropy against 0 for the classes below chance in the teacher's eyes.

    ``weight · (1/K) Σ_{(pixel, class): t_c ≤ 1/C} log(1 + exp(z_c))`` where K counts these (pixel, class) pairs;
    weights do not enter it. Matches the negative learning of DT-ST, ``z_c`` being its own binary logit.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure to
            reach; ``pixel_weight`` gets one if it requires it, ``teacher_probs`` never.
        teacher_probs: (B, C, H, W) floating point in [0, 1]. Fill pixels that shall not take part, such as
            padding, with 1.
        weight: factor of the whole, not negative. DT-ST: 0.5.
        pixel_weight: (B, H, W) factor of a pixel's sum over its classes; None is 1.
        reduction: "mean" as above; "sum" without the division; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without any such pair exactly 0
        with gradients of exactly 0.

    Raises:
        TypeError: ``logits`` or ``teacher_probs`` is no floating-point tensor, ``weight`` no number, or
            ``pixel_weight`` no tensor.
        ValueError: a shape or device does not fit ``logits``, ``weight`` is negative, or ``reduction`` is unknown.
            Negative probabilities, only inside ``value_checks()``.

    References:
        DT-ST (Zhao et al., Towards Better Stability and Adaptability: Improve Online Self-Training for Model
        Adaptation in Semantic Segmentation, CVPR 2023).

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)
        >>> teacher_probs = torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1)
        >>> negative_loss(logits, teacher_probs)  # only class 1: 0.5 · ln 2
        tensor(0.3466)
    """
    _checks.check_logits(logits)
    _checks.check_class_maps(teacher_probs, logits, "teacher_probs")
    _checks.check_real(weight, "weight", 0.0, math.inf)
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, logits, "pixel_weight")
    _checks.check_choice(reduction, "reduction", REDUCTIONS)
    values, pairs = _NegativeMap.apply(logits, teacher_probs.detach())
    return reduce([Term(weight, weigh(values, pixel_weight, pairs > 0), pairs.sum())], reduction)


class _NegativeMap(torch.autograd.Function):
    """``Σ_{c: t_c ≤ 1/C} softplus(z_c)`` and the number of such c for each pixel; only the inputs are saved."""

    @staticmethod
    def forward(logits: Tensor, teacher_probs: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return _negative(logits, teacher_probs)
        shape = (logits.shape[0], *logits.shape[2:])
        values = torch.empty(shape, dtype=statistics_dtype(logits), device=logits.device)
        pairs = torch.empty(shape, dtype=torch.int64, device=logits.device)
        for images, rows in blocks(logits):
            value, number = _negative(logits[images, :, rows], teacher_probs[images, :, rows])
            values[images, rows] = value
            pairs[images, rows] = number
        return values, pairs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _pairs: None) -> tuple[Tensor | None, None]:
        logits, teacher_probs = ctx.saved_tensors
        if grad is None:
            return None, None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return follow_layout(_negative_gradient(logits, teacher_probs, grad), logits), None
        result = torch.empty_like(logits)
        for images, rows in blocks(logits):
            z, t = logits[images, :, rows], teacher_probs[images, :, rows]
            result[images, :, rows] = _negative_gradient(z, t, grad[images, rows]).to(result.dtype)
        return result, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], logits: Tensor, teacher_probs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return fold_and_apply(_NegativeMap, info, in_dims, logits, teacher_probs)


def _surely_not(t: Tensor) -> Tensor:
    return t <= 1 / t.shape[1]


def _negative(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    mask = _surely_not(t)
    # -log sigmoid(-z) is softplus without the switch to the identity above 20.
    value = -functional.logsigmoid(-z.to(statistics_dtype(z)))
    return torch.where(mask, value, 0).sum(1), mask.sum(1)


def _negative_gradient(z: Tensor, t: Tensor, grad: Tensor) -> Tensor:
    slope = torch.sigmoid(z.to(statistics_dtype(z))) * grad.unsqueeze(1)
    return torch.where(_surely_not(t), slope, 0)


class NegativeLoss(LossModule):
    """``negative_loss`` with its settings kept: ``NegativeLoss(weight=0.5)(logits, teacher_probs)``."""

    def __init__(self, *, weight: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        _checks.check_real(weight, "weight", 0.0, math.inf)
        _checks.check_choice(reduction, "reduction", REDUCTIONS)
        self.weight = weight
        self.reduction = reduction

    def forward(self, logits: Tensor, teacher_probs: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Call ``negative_loss`` with the settings of this module."""
        return negative_loss(
            logits, teacher_probs, weight=self.weight, pixel_weight=pixel_weight, reduction=self.reduction
        )
