"""Whole graphs: everything public about confidence, thresholds and selection compiles, and exports, without a break."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from selftrain_seg.confidence import log_odds, top_confidence
from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    SoftMatchSelector,
    select_fixed,
    select_hard,
    select_reweighted,
    select_soft,
)
from selftrain_seg.thresholds import ClassBalancedThreshold, ConfidenceSketch
from tests.helpers import random_logits
from tests.stateful import CLASSES, KINDS, SIZE, assert_states, states

KC = torch.tensor([0.7, 0.35, 0.6, 0.2], dtype=torch.float64)
PRIOR = 0.5 + torch.rand(CLASSES, *SIZE, generator=torch.Generator().manual_seed(1))
VALID = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(2)) < 0.7


def logits_of(seed=0):
    logits = random_logits(2, CLASSES, *SIZE, seed=seed)
    logits[0, 1, 0, 0] = torch.nan
    return logits


FUNCTIONS = {
    "hard": lambda z: select_hard(z, KC),
    "hard, number": lambda z: select_hard(z, 0.7, ignore_index=-1),
    "hard, all": lambda z: select_hard(z, KC, prior=PRIOR, valid=VALID),
    "reweighted": lambda z: select_reweighted(z, KC),
    "reweighted, all": lambda z: select_reweighted(z, KC, prior=PRIOR, valid=VALID),
    "soft": lambda z: select_soft(z, KC),
    "soft, all": lambda z: select_soft(z, KC, alpha=torch.tensor(0.5), prior=PRIOR, valid=VALID),
    "fixed": lambda z: select_fixed(z, threshold=0.7),
    "fixed, image": lambda z: select_fixed(z, threshold=0.7, weigh_by="image", valid=VALID),
    "fixed, batch": lambda z: select_fixed(z, threshold=0.7, weigh_by="batch"),
    "top": top_confidence,
    "top, prior": lambda z: top_confidence(z, prior=PRIOR),
    "log_odds": lambda z: log_odds(top_confidence(z).log_confidence),
}


def whole(function, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def assert_same(found, expected):
    found, expected = (
        [value for value in (result if isinstance(result, tuple) else (result,)) if value is not None]
        for result in (found, expected)
    )
    assert found
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        if a.is_floating_point():  # a division may be compiled into a product
            torch.testing.assert_close(a, b, equal_nan=True)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compile(name):
    function = FUNCTIONS[name]
    compiled = whole(lambda z: function(z))
    for seed in range(2):
        assert_same(compiled(logits_of(seed)), function(logits_of(seed)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compile_for_any_size(name):
    size = SIZE if any(word in name for word in ("all", "prior", "image")) else (9, 11)  # a prior has a size of its own
    compiled = whole(lambda z: FUNCTIONS[name](z), dynamic=True)
    logits = random_logits(2, CLASSES, *size, seed=3)
    assert_same(compiled(logits), FUNCTIONS[name](logits))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in KINDS if "exact" not in name])  # which no graph can know the size of
def test_modules_compile(name, training):
    """Selectors are called, all else is updated: states change in the graph as they do outside of it."""
    kind = KINDS[name]
    eager, module = kind.make().train(training), kind.make().train(training)
    compiled = whole(lambda z: kind.feed(module, z))
    for seed in range(3):
        found, expected = compiled(logits_of(seed)), kind.feed(eager, logits_of(seed))
        if expected is not None:
            assert_same(found, expected)
        assert_states(module, states(eager))


@pytest.mark.parametrize("name", ["sketch", "statistics", "agreement", "spatial prior"])
def test_what_is_read_off_compiles(name):
    module = KINDS[name].make()
    KINDS[name].feed(module, logits_of())
    reads = (
        [lambda: module.quantile(0.3), lambda: module.cdf(torch.tensor(0.5)), module.total, module.class_counts]
        if isinstance(module, ConfidenceSketch)
        else [module.compute]
    )
    for read in reads:
        assert_same(whole(lambda read=read: read())(), read())


@pytest.mark.parametrize(
    ("what", "by"),
    [
        *((what, by) for what in ("alpha", "hard", "reweighted", "soft") for by in ("float", "tensor")),
        ("fixed", "float"),
    ],
)
def test_a_ramp_of_values_compiles_at_most_twice(what, by):
    functions = {
        "alpha": lambda z, value: select_soft(z, KC, alpha=value),
        "hard": select_hard,
        "reweighted": select_reweighted,
        "soft": select_soft,
        "fixed": lambda z, value: select_fixed(z, threshold=value, weigh_by="image"),
    }
    function, counter = functions[what], CompileCounterWithBackend("aot_eager")
    compiled, seen = whole(function, counter), set()
    for step in range(20):
        value = 1.0 - 0.04 * step
        if by == "tensor":
            value = torch.tensor(value) if what == "alpha" else torch.full((CLASSES,), value)
        found, expected = compiled(logits_of(), value), function(logits_of(), value)
        assert_same(found, expected)
        shown = next(part for part in (expected.soft, expected.pixel_weight, expected.labels) if part is not None)
        seen.add(tuple(shown.flatten().tolist()))
    assert len(seen) > 10  # the value did matter, in the compiled graph too
    assert counter.frame_count <= (2 if by == "float" else 1)


class Labels(nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.net, self.rule = nn.Conv2d(3, CLASSES, 1), rule

    def forward(self, images):
        return tuple(value for value in self.rule(self.net(images)) if value is not None)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "rule",
    [
        lambda z: select_hard(z, 0.4),
        lambda z: select_reweighted(z, KC.to(z.device)),
        lambda z: select_soft(z, 0.4),
        lambda z: select_fixed(z, threshold=0.4, weigh_by="image"),
        top_confidence,
        FreeMatchSelector(CLASSES, momentum=0.5),
        SoftMatchSelector(CLASSES, momentum=0.5, align=True),
        RunningConfidenceSelector(CLASSES),
        InstanceAdaptiveSelector(CLASSES),
        FlexMatchSelector(CLASSES, threshold=0.4, momentum=0.5),
    ],
    ids=["hard", "reweighted", "soft", "fixed", "top", "freematch", "softmatch", "running", "instance", "flexmatch"],
)
def test_exported_programs_are_the_eager_ones(rule, dynamic, tmp_path):
    torch.manual_seed(0)
    model = Labels(copy.deepcopy(rule))
    if isinstance(rule, nn.Module):
        for seed in range(2):
            model.rule(logits_of(seed))
    model.eval()
    images = torch.randn(2, 3, 8, 9)
    shapes = ({0: torch.export.Dim("batch", min=1, max=8), 2: torch.export.Dim("height", min=2, max=64)},)
    program = torch.export.export(model, (images,), dynamic_shapes=shapes if dynamic else None)
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    names = {str(node.target).split(".")[0] for graph in graphs for node in graph.nodes if node.op == "call_function"}
    assert "selftrain_seg" in names  # its operators are opaque to the exporter
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    for shape in ((2, 3, 8, 9), (5, 3, 13, 9)) if dynamic else ((2, 3, 8, 9),):
        images = torch.randn(shape)
        with torch.no_grad():
            assert_same(program.module()(images), model(images))
            assert_same(loaded.module()(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hard, all", "soft, all", "fixed, image"])
def test_by_the_default_compiler(name):
    compiled = whole(lambda z: FUNCTIONS[name](z), "inductor")
    for a, b in zip(compiled(logits_of()), FUNCTIONS[name](logits_of()), strict=True):
        assert (a is None and b is None) or a.dtype == b.dtype
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_one_estimator_step_in_a_compiled_training_step():
    """As users do it: labels, counts and loss in one graph."""
    kc, eager = (ClassBalancedThreshold(CLASSES, 0.3) for _ in range(2))

    def step(kc, z):
        kc.update(z, valid=VALID)
        labels = select_hard(z, KC, valid=VALID).labels
        return nn.functional.cross_entropy(z, labels, ignore_index=255)

    clean = random_logits(2, CLASSES, *SIZE)
    for seed in range(2):
        z, other = ((clean + seed).requires_grad_() for _ in range(2))
        loss, expected = whole(lambda z: step(kc, z))(z), step(eager, other)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(z.grad, other.grad)
    assert_states(kc, states(eager))
    assert torch.equal(kc.compute(), eager.compute())
