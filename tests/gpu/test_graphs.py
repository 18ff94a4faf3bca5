"""CUDA graphs, made by hand and by the compiler: what they replay equals what is done step by step."""

import pytest
import torch

from selftrain_seg.losses import mrkld_loss, region_guided_loss
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
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.helpers import random_logits
from tests.losses.cases import every_loss, make_labels, together

pytestmark = pytest.mark.gpu
SHAPE = (2, 19, 33, 65)
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])


def logits_of(seed, layout=torch.contiguous_format, dtype=torch.float32):
    return random_logits(*SHAPE, seed=seed).to("cuda", dtype, memory_format=layout)


def tensors(result):
    return [part for part in result if part is not None] if isinstance(result, tuple) else [result]


def replayed(call, steps, inputs):
    """The results of a call, captured once, for each of the inputs; ``steps`` is run before the capture, to warm up."""
    static = inputs[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            steps(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = tensors(call(static))
    for one in inputs:
        static.copy_(one)
        graph.replay()
        yield [result.clone() for result in results]


def step_of(estimator, kc):
    def step(logits):
        estimator.update(logits)
        labels = select_reweighted(logits, kc).labels
        leaf = logits.detach().requires_grad_()
        loss = mrkld_loss(leaf, labels)
        return labels, loss.detach(), *torch.autograd.grad(loss, leaf)

    return step


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_selection_loss_and_gradient(layout, dtype):
    estimators = [ClassBalancedThreshold(SHAPE[1], 0.2).cuda() for _ in range(3)]
    kc = torch.full((SHAPE[1],), 0.5, dtype=torch.float64, device="cuda")
    warm, captured, eager = (step_of(estimator, kc) for estimator in estimators)
    inputs = [logits_of(seed, layout, dtype) for seed in range(4)]
    for found, one in zip(replayed(captured, warm, inputs), inputs, strict=True):
        expected = eager(one)
        assert all(map(torch.equal, found, expected))
        assert expected[0].ne(255).any()
        assert expected[2].ne(0).any()
    assert estimators[1].class_counts().sum() == len(inputs) * inputs[0][:, 0].numel()
    assert torch.equal(estimators[1].compute(), estimators[2].compute())


@every_loss
def test_losses_with_all_that_they_take(case):
    shape = (2, 5, 9, 16)
    _, *rest = case.inputs(shape, torch.float32)
    settings = together(case, shape)
    settings = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    rest = [tensor.cuda() for tensor in rest]

    def step(logits):
        leaf = logits.detach().requires_grad_()
        loss = case.function(leaf, *rest, **{**case.settings, **settings})
        return loss.detach(), *torch.autograd.grad(loss, leaf)

    inputs = [random_logits(*shape, seed=seed).cuda() for seed in range(3)]
    for found, one in zip(replayed(step, step, inputs), inputs, strict=True):
        for ours, expected in zip(found, step(one), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("select", [select_hard, select_reweighted, select_soft, select_fixed])
def test_selections(select):
    kc = torch.full((SHAPE[1],), 0.5, dtype=torch.float64, device="cuda")

    def step(logits):
        return select(logits, threshold=0.5) if select is select_fixed else select(logits, kc)

    inputs = [logits_of(seed) for seed in range(3)]
    for found, one in zip(replayed(step, step, inputs), inputs, strict=True):
        assert all(map(torch.equal, found, tensors(step(one))))


@pytest.mark.parametrize(
    "kind",
    [
        FlexMatchSelector,
        FreeMatchSelector,
        InstanceAdaptiveSelector,
        RunningConfidenceSelector,
        SoftMatchSelector,
    ],
)
def test_selectors_with_a_state(kind):
    warm, captured, eager = (kind(SHAPE[1], momentum=0.5).cuda() for _ in range(3))
    inputs = [logits_of(seed) for seed in range(4)]
    for found, one in zip(replayed(captured, warm, inputs), inputs, strict=True):
        expected = tensors(eager(one))
        assert (found[0] == expected[0]).float().mean() > 0.999  # sums of floats may be added up in another order
    for name, state in eager.state_dict().items():
        torch.testing.assert_close(captured.state_dict()[name], state, msg=name)


@pytest.mark.parametrize("loss", [mrkld_loss, region_guided_loss])
def test_the_compilers_graphs_follow_a_ramped_weight(loss):
    """Each value of the weight is used: none is kept in a graph, and none is compiled anew."""
    name = "reg_weight" if loss is mrkld_loss else "ignored_weight"
    labels, values, graphs = make_labels(SHAPE).cuda(), [], []

    def weighted(logits, weight):
        return loss(logits, labels, **{name: weight})

    torch.compiler.reset()
    compiled = torch.compile(weighted, mode="reduce-overhead", fullgraph=True)
    for step in range(8):
        weight, logits = 0.1 + 0.2 * step, logits_of(step % 2)
        torch.compiler.cudagraph_mark_step_begin()
        found, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value = compiled(found, weight)
        (gradient,) = torch.autograd.grad(value, found)
        reference = weighted(expected, weight)
        torch.testing.assert_close(value.detach(), reference.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(reference, expected)[0])
        values.append(value.item())
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(values)) == len(values)
    assert graphs[-1] == graphs[2]  # one for the first number, one for all others
    torch.compiler.reset()
