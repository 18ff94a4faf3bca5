"""How many launches selectors, thresholds and statistics need on a GPU, and that the host waits for none of them."""

import pytest
import torch

from selftrain_seg.confidence import top_confidence
from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    SelectionStatistics,
    SoftMatchSelector,
    select_fixed,
    select_hard,
    select_reweighted,
    select_soft,
)
from selftrain_seg.thresholds import ClassBalancedThreshold
from selftrain_seg.types import PseudoLabels
from tests.launches import GPU, launched

B, C, H, W = 2, 19, 128, 256
pytest.importorskip("triton")


def logits():
    return torch.empty(B, C, H, W, device=GPU)


def thresholds():
    return torch.empty(C, dtype=torch.float64, device=GPU)


def maps():
    labels = torch.empty(B, H, W, dtype=torch.int64, device=GPU)
    return PseudoLabels(labels, torch.empty(B, H, W, device=GPU), predicted=labels)


def module(kind, *arguments, **options):
    return kind(C, *arguments, **options).to(GPU)


FUNCTIONS = {
    "top": (top_confidence, ["read_kernel"]),
    "hard": (lambda z: select_hard(z, thresholds()), ["select_kernel"]),
    "hard, number": (lambda z: select_hard(z, 0.9), ["select_kernel"]),
    "reweighted": (lambda z: select_reweighted(z, thresholds()), ["select_kernel"]),
    "reweighted, number": (lambda z: select_reweighted(z, 0.9), ["select_kernel"]),
    "soft": (lambda z: select_soft(z, thresholds()), ["soft_kernel"]),
    "soft, numbers": (lambda z: select_soft(z, 0.9, alpha=0.5), ["soft_kernel"]),
    "soft, tensor": (lambda z: select_soft(z, thresholds(), alpha=torch.empty((), device=GPU)), ["soft_kernel"]),
    "fixed": (select_fixed, ["select_kernel"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_launch(name):
    function, expected = FUNCTIONS[name]
    assert launched(function, logits()) == expected


# Of a module: how it is made, and the most launches of a call in training and in eval mode.
MODULES = {
    "freematch": (lambda: module(FreeMatchSelector), 7, 5),
    "flexmatch": (lambda: module(FlexMatchSelector), 8, 6),
    "softmatch": (lambda: module(SoftMatchSelector), 4, 2),
    "softmatch, aligned": (lambda: module(SoftMatchSelector, align=True), 7, 3),
    "running confidence": (lambda: module(RunningConfidenceSelector), 5, 4),
    "instance adaptive": (lambda: module(InstanceAdaptiveSelector), 6, 2),
    "instance adaptive, batch": (lambda: module(InstanceAdaptiveSelector, per="batch"), 6, 2),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    make, training, eval_mode = MODULES[name]
    selector = make()
    for train, most in ((True, training), (False, eval_mode)):
        names = launched(selector.train(train), logits())
        assert len(names) == most, names


@pytest.mark.parametrize("portion", [0.2, torch.full((C,), 0.2)])
def test_thresholds(portion):
    estimator = module(ClassBalancedThreshold, portion)
    assert launched(estimator.update, logits()) == ["count_kernel", "add_"]
    shares = portion.to(GPU) if isinstance(portion, torch.Tensor) else portion
    names = launched(estimator._thresholds, estimator.sketch.counts, shares)
    assert len(names) <= 8, names  # and two of `compute`, which waits


def test_statistics():
    statistics = module(SelectionStatistics)
    for target in (None, maps().labels):
        assert launched(statistics.update, maps(), target) == ["table_kernel", "sum", "_to_copy", "add_", "add_"]
