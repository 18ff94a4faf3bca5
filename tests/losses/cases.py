"""Every loss as a case: what to call, with what, which oracle, and another value for each argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

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
        normalizers: all that ``normalize`` may be.
    """

    name: str
    oracle: Callable[..., dict[str, Any]]
    target: Callable[..., Tensor]
    nothing: Callable[..., Tensor] | None
    other: dict[str, Callable[[Any], Any]]
    more: Callable[..., tuple[Tensor, ...]] = lambda shape: ()
    settings: dict[str, Any] = field(default_factory=dict)
    normalizers: tuple[str, ...] = ("labelled", "all")

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(losses, self.name)

    @property
    def parameters(self):
        return inspect.signature(self.function).parameters

    def inputs(self, shape=(2, 4, 3, 5), dtype=torch.float64) -> tuple[Tensor, ...]:
        return make_logits(shape, dtype), self.target(shape), *self.more(shape)


HARD = {
    "target": make_labels,
    "nothing": lambda shape: torch.full((shape[0], *shape[2:]), 255),
}
SOFT = {"target": make_soft, "nothing": lambda shape: torch.zeros(shape, dtype=torch.float64)}
WEIGHTS = {
    "pixel_weight": make_map,
    "normalize": lambda shape: "all",
    "ignore_index": lambda shape: 1,
    "reduction": lambda shape: "sum",
}
CROSS_ENTROPY = {
    **WEIGHTS,
    "normalize": lambda shape: "labelled",
    "valid": lambda shape: make_map(shape, seed=4) < 0.7,
}
REGULARIZED = {
    "reg_weight": lambda shape: 0.7,
    # The second image opts out, and a weight that is neither 0 nor 1.
    "image_weight": lambda shape: torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)[: shape[0]],
    **WEIGHTS,
}
SOFT_CROSS_ENTROPY = {name: value for name, value in CROSS_ENTROPY.items() if name != "ignore_index"}
SOFT_REGULARIZED = {name: value for name, value in REGULARIZED.items() if name != "ignore_index"}

CASES = [
    # `valid` goes with "all" only.
    Case("cross_entropy", oracle.cross_entropy, **HARD, settings={"normalize": "all"}, other=CROSS_ENTROPY),
    Case("cross_entropy", oracle.cross_entropy, **SOFT, settings={"normalize": "all"}, other=SOFT_CROSS_ENTROPY),
    Case("mrkld_loss", partial(oracle.regularized, "kld"), **HARD, other=REGULARIZED),
    Case("mrent_loss", partial(oracle.regularized, "ent"), **HARD, other=REGULARIZED),
    Case("mrl2_loss", partial(oracle.regularized, "l2"), **HARD, other=REGULARIZED),
    Case("mrkld_loss", partial(oracle.regularized, "kld"), **SOFT, other=SOFT_REGULARIZED),
    Case("mrent_loss", partial(oracle.regularized, "ent"), **SOFT, other=SOFT_REGULARIZED),
    Case("mrl2_loss", partial(oracle.regularized, "l2"), **SOFT, other=SOFT_REGULARIZED),
    Case(
        "region_guided_loss",
        oracle.region_guided,
        target=make_labels,
        nothing=None,  # its ignored pixels take part
        other={
            "confident_weight": lambda shape: 0.7,
            "ignored_weight": lambda shape: 0.4,
            "per_class": lambda shape: False,
            **WEIGHTS,
        },
    ),
    Case(
        "dynamic_loss",
        oracle.dynamic,
        **HARD,
        settings={"gamma": 2.5},
        other={"gamma": lambda shape: 0.5, "is_pseudo": flags, **WEIGHTS},
    ),
    Case(
        "dynamic_mutual_loss",
        oracle.dynamic_mutual,
        **HARD,
        more=lambda shape: (make_map(shape, seed=3),),
        settings={"gamma_agree": 2.5, "gamma_disagree": 0.5},
        other={
            "gamma_agree": lambda shape: 0.3,
            "gamma_disagree": lambda shape: 1.5,
            "is_pseudo": flags,
            "flip": lambda shape: True,
            "normalize": lambda shape: "all",
            "ignore_index": lambda shape: 1,
            "reduction": lambda shape: "sum",
        },
    ),
    Case(
        "negative_loss",
        oracle.negative,
        target=lambda shape: torch.softmax(make_logits(shape, seed=1), 1),
        nothing=lambda shape: torch.ones(shape, dtype=torch.float64),
        other={"loss_weight": lambda shape: 2.0, "pixel_weight": make_map, "reduction": lambda shape: "sum"},
    ),
    Case(
        "class_weighted_loss",
        oracle.class_weighted,
        **HARD,
        more=lambda shape: (classes(shape),),
        other=WEIGHTS,
        normalizers=("labelled", "all", "weights"),
    ),
    Case(
        "symmetric_loss",
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
        oracle.fairness,
        target=lambda shape: torch.softmax(classes(shape), 0),
        nothing=None,
        more=lambda shape: (classes(shape, seed=6),),
        other={
            "mask": lambda shape: make_map(shape) < 0.6,
            "loss_weight": lambda shape: 0.5,
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


def together(case, shape, but=("reduction", "ignore_index")):
    """The settings with every argument changed that can be."""
    settings = {**case.settings, **{name: value(shape) for name, value in case.other.items() if name not in but}}
    return {**settings, "normalize": "all"} if "valid" in settings else settings


def variants(case, shape):
    """The settings, with one argument changed, and with all of them, each under every divisor and reduction."""
    apart = ("normalize", "reduction", "ignore_index")
    changes = [{}, *({name: case.other[name](shape)} for name in case.other if name not in apart)]
    for changed in [*changes, together(case, shape, but=apart)]:
        settings = {**case.settings, **changed}
        if "reduction" not in case.parameters:
            yield settings
            continue
        for reduction in ("none", "sum"):
            yield {**settings, "reduction": reduction}
        if "normalize" not in case.parameters:
            yield {**settings, "reduction": "mean"}
            continue
        for normalize in ("all",) if "valid" in settings else case.normalizers:
            yield {**settings, "normalize": normalize, "reduction": "mean"}


def loss_and_gradient(case, logits, *rest, **settings):
    leaf = logits.detach().requires_grad_()
    loss = case.function(leaf, *rest, **{**case.settings, **settings})
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def recording():
    """Two lists for the sets of operators in the forward and backward graphs, and a backend that fills them."""
    forward, backward = [], []

    def keep(graphs):
        def compiler(module, example_inputs):
            graphs.append(
                {str(n.target).removesuffix(".default") for n in module.graph.nodes if n.op.startswith("call")}
            )
            return make_boxed_func(module.forward)

        return compiler

    # The partition that inductor takes; the default one cannot do symbolic sizes in torch 2.9.
    compilers = {"fw_compiler": keep(forward), "bw_compiler": keep(backward)}
    return (forward, backward), aot_autograd(**compilers, partition_fn=min_cut_rematerialization_partition)
