"""Every loss as a case: what to call, with what, which oracle, and another value for each argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from selftrain_seg import losses
from tests.oracles import losses as oracle


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_logits(shape=(2, 4, 3, 5), dtype=torch.float64, seed=0, scale=2.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)).to(dtype)


def make_labels(shape, seed=1, ignore_index=255, ignored=0.3) -> Tensor:
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator(seed))
    away = torch.rand(labels.shape, generator=generator(seed + 1)) < ignored
    return labels.masked_fill(away, ignore_index)


def make_soft(shape, seed=1, dtype=torch.float64, ignored=0.3) -> Tensor:
    soft = torch.softmax(make_logits(shape, seed=seed), 1)
    away = torch.rand((shape[0], 1, *shape[2:]), generator=generator(seed + 1)) < ignored
    return soft.masked_fill(away, 0).to(dtype)


def make_map(shape, seed=2) -> Tensor:
    return torch.rand((shape[0], *shape[2:]), generator=generator(seed), dtype=torch.float64)


def flags(shape) -> Tensor:
    return torch.arange(shape[0]) % 2 == 0


def classes(shape, seed=5) -> Tensor:
    return torch.rand(shape[1], generator=generator(seed), dtype=torch.float64) + 0.1


@dataclass
class Case:
    """A loss.

    Attributes:
        target: makes the second argument for a shape.
        nothing: makes one that leaves nothing to learn from, where there is such a thing.
        more: makes further positional tensors.
        settings: keyword arguments used unless a test says otherwise.
        other: for each keyword argument, another value, as a function of the shape.
    """

    name: str
    module: type
    oracle: Callable[..., dict[str, Any]]
    target: Callable[..., Tensor]
    nothing: Callable[..., Tensor] | None
    other: dict[str, Callable[[Any], Any]]
    more: Callable[..., tuple[Tensor, ...]] = lambda shape: ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(losses, self.name)

    @property
    def parameters(self):
        return inspect.signature(self.function).parameters

    @property
    def reductions(self) -> tuple[str, ...]:
        return ("none", "sum", "mean") if "reduction" in self.parameters else ("mean",)

    def inputs(self, shape=(2, 4, 3, 5), dtype=torch.float64) -> tuple[Tensor, ...]:
        return make_logits(shape, dtype), self.target(shape), *self.more(shape)


HARD = {
    "target": make_labels,
    "nothing": lambda shape: torch.full((shape[0], *shape[2:]), 255),
}
SOFT = {"target": make_soft, "nothing": lambda shape: torch.zeros(shape, dtype=torch.float64)}
WEIGHTS = {"pixel_weight": make_map, "ignore_index": lambda shape: 1, "reduction": lambda shape: "sum"}
REGULARIZED = {
    "weight": lambda shape: 0.7,
    # The second image opts out, and a weight that is neither 0 nor 1.
    "image_weight": lambda shape: torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)[: shape[0]],
    **WEIGHTS,
}
SOFT_REGULARIZED = {name: value for name, value in REGULARIZED.items() if name != "ignore_index"}

CASES = [
    Case("mrkld_loss", losses.MRKLDLoss, partial(oracle.regularized, "kld"), **HARD, other=REGULARIZED),
    Case("mrent_loss", losses.MRENTLoss, partial(oracle.regularized, "ent"), **HARD, other=REGULARIZED),
    Case("mrl2_loss", losses.MRL2Loss, partial(oracle.regularized, "l2"), **HARD, other=REGULARIZED),
    Case("mrkld_loss", losses.MRKLDLoss, partial(oracle.regularized, "kld"), **SOFT, other=SOFT_REGULARIZED),
    Case("mrent_loss", losses.MRENTLoss, partial(oracle.regularized, "ent"), **SOFT, other=SOFT_REGULARIZED),
    Case("mrl2_loss", losses.MRL2Loss, partial(oracle.regularized, "l2"), **SOFT, other=SOFT_REGULARIZED),
    Case(
        "lrent_loss",
        losses.LRENTLoss,
        oracle.soft_cross_entropy,
        **SOFT,
        other={"pixel_weight": make_map, "reduction": lambda shape: "sum"},
    ),
    Case(
        "region_guided_loss",
        losses.RegionGuidedLoss,
        oracle.region_guided,
        target=make_labels,
        nothing=None,  # its ignored pixels take part
        other={
            "confident_weight": lambda shape: 0.7,
            "ignored_weight": lambda shape: 0.4,
            "normalize": lambda shape: "pixels",
            **WEIGHTS,
        },
    ),
    Case(
        "dynamic_loss",
        losses.DynamicLoss,
        oracle.dynamic,
        **HARD,
        settings={"gamma": 2.5},
        other={"gamma": lambda shape: 0.5, "is_pseudo": flags, **WEIGHTS},
    ),
    Case(
        "dynamic_mutual_loss",
        losses.DynamicMutualLoss,
        oracle.dynamic_mutual,
        **HARD,
        more=lambda shape: (make_map(shape, seed=3),),
        settings={"gamma_agree": 2.5, "gamma_disagree": 0.5},
        other={
            "gamma_agree": lambda shape: 0.3,
            "gamma_disagree": lambda shape: 1.5,
            "is_pseudo": flags,
            "flip": lambda shape: True,
            "ignore_index": lambda shape: 1,
            "reduction": lambda shape: "sum",
        },
    ),
    Case(
        "negative_loss",
        losses.NegativeLoss,
        oracle.negative,
        target=lambda shape: torch.softmax(make_logits(shape, seed=1), 1),
        nothing=lambda shape: torch.ones(shape, dtype=torch.float64),
        other={"weight": lambda shape: 2.0, "pixel_weight": make_map, "reduction": lambda shape: "sum"},
    ),
    Case(
        "class_weighted_loss",
        losses.ClassWeightedLoss,
        oracle.class_weighted,
        **HARD,
        more=lambda shape: (classes(shape),),
        other={"normalize": lambda shape: "weights", **WEIGHTS},
    ),
    Case(
        "symmetric_loss",
        losses.SymmetricLoss,
        oracle.symmetric,
        **HARD,
        other={
            "alpha": lambda shape: 0.6,
            "beta": lambda shape: 0.3,
            "log_zero": lambda shape: -7.0,
            **WEIGHTS,
        },
    ),
    Case(
        "fairness_loss",
        losses.FairnessLoss,
        oracle.fairness,
        target=lambda shape: torch.softmax(classes(shape), 0),
        nothing=None,
        more=lambda shape: (classes(shape, seed=6),),
        other={
            "mask": lambda shape: make_map(shape) < 0.6,
            "weight": lambda shape: 0.5,
        },
    ),
]
IDS = [f"{case.name}-soft" if case.target is make_soft else case.name for case in CASES]


def losses_where(condition: Callable[[Case], Any]) -> pytest.MarkDecorator:
    """Run a test with every case that the condition holds for."""
    chosen = [(case, name) for case, name in zip(CASES, IDS, strict=True) if condition(case)]
    return pytest.mark.parametrize("case", [case for case, _ in chosen], ids=[name for _, name in chosen])


every_loss = losses_where(lambda case: True)
loss_with_hard_labels = losses_where(lambda case: case.target is make_labels)
loss_with_nothing = losses_where(lambda case: case.nothing)


def variants(case, shape):
    """The settings, and the settings with one argument changed, each under every reduction."""
    for name in [None, *case.other]:
        if name in ("reduction", "ignore_index"):
            continue
        settings = {**case.settings, **({name: case.other[name](shape)} if name else {})}
        for reduction in case.reductions:
            yield settings if len(case.reductions) == 1 else {**settings, "reduction": reduction}


def loss_and_gradient(case, logits, *rest, **settings):
    leaf = logits.detach().requires_grad_()
    loss = case.function(leaf, *rest, **{**case.settings, **settings})
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
