"""The fused operator of negative learning against its formula in float64."""

import pytest
import torch
from torch.nn import functional as F

from selftrain_seg import ops
from selftrain_seg.ops import _blocks
from tests.helpers import layouts
from tests.losses.cases import make_logits

SHAPES = [(2, 4, 3, 5), (2, 5, 70, 300), (1, 19, 7, 1), (3, 1, 2, 2), (0, 3, 4, 5), (2, 3, 0, 5)]


def teacher(shape):
    probs = torch.softmax(make_logits(shape, torch.float32, seed=1), 1)
    return probs.masked_fill(make_logits((shape[0], 1, *shape[2:]), seed=2) > 3, 1)  # some pixels take no part


def formula(logits, probs):
    mask = probs <= 1 / probs.shape[1]
    return (F.softplus(logits.double(), threshold=1000) * mask).sum(1), mask.sum(1)


def upstream(values):
    return make_logits((values.shape[0], 1, *values.shape[1:]), torch.float32, seed=3)[:, 0].to(values.dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_formula(shape, layout, dtype):
    logits = layouts(make_logits(shape, dtype))[layout].detach().requires_grad_()
    probs = layouts(teacher(shape))[layout]
    values = ops.negative_loss(logits, probs, reduction="none")
    leaf = logits.detach().double().requires_grad_()
    expected, count = formula(leaf, probs)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    mean = ops.negative_loss(logits.detach(), probs, factor=0.5)
    one = 0.5 * expected.detach().sum() / count.sum().clamp(min=1)
    torch.testing.assert_close(mean.double(), one, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(values.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    (gradient,) = torch.autograd.grad(values, logits, upstream(values))
    (exact,) = torch.autograd.grad(expected, leaf, upstream(expected))
    assert gradient.dtype == dtype
    rtol = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, tolerance)
    torch.testing.assert_close(
        gradient.double(), exact, rtol=rtol, atol=max(tolerance, 2**-24) * (dtype != torch.float64)
    )
    assert gradient.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("pixels", [1, 7])
def test_blocks_make_no_difference(monkeypatch, pixels):
    logits, probs = make_logits((2, 4, 3, 5), torch.float32), teacher((2, 4, 3, 5))
    whole = [ops.negative_loss(logits, probs, reduction=reduction) for reduction in ("mean", "sum", "none")]
    monkeypatch.setattr(_blocks, "_CPU_BLOCK_PIXELS", pixels)
    blocks = [ops.negative_loss(logits, probs, reduction=reduction) for reduction in ("mean", "sum", "none")]
    torch.testing.assert_close(blocks, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_higher_derivatives(dtype):
    shape = (2, 3, 2, 2)
    probs = teacher(shape)

    def pixel_sums(logits):
        return ops.negative_loss(logits, probs, reduction="none")

    def derivatives(logits, function):
        value, found = function(logits), []
        value = (value * upstream(value)).sum()
        for order in range(3):
            (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
            found.append(gradient.detach().double())
            value = (gradient * make_logits(shape, gradient.dtype, seed=20 + order)).sum()
        return found

    logits = make_logits(shape, torch.float32)
    ours = derivatives(logits.to(dtype).requires_grad_(), pixel_sums)
    exact = derivatives(logits.double().requires_grad_(), lambda z: formula(z, probs)[0])
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())
    if dtype == torch.float64:
        leaf = make_logits(shape).requires_grad_()
        assert torch.autograd.gradcheck(pixel_sums, leaf)
        assert torch.autograd.gradgradcheck(pixel_sums, leaf)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_classes_that_do_not_count_are_not_looked_at(bad):
    logits, probs = make_logits((2, 4, 3, 5), torch.float32), teacher((2, 4, 3, 5))
    spoilt = logits.masked_fill(probs > 1 / 4, bad)
    results = []
    for leaf in (logits.requires_grad_(), spoilt.requires_grad_()):
        values = ops.negative_loss(leaf, probs, reduction="none")
        results.append((values.detach(), torch.autograd.grad(values, leaf, upstream(values))[0]))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_operators_are_as_the_compiler_expects(layout, dtype):
    logits, probs = make_logits((2, 4, 3, 5), dtype), teacher((2, 4, 3, 5))
    logits, probs = layouts(logits)[layout], layouts(probs)[layout]
    weight = make_logits((2, 1, 3, 5), torch.float32, seed=5)[:, 0]
    operators, factor = torch.ops.selftrain_seg, torch.tensor([0.5], dtype=torch.float64)
    for reduction in ("mean", "none"):
        for given in (None, weight):
            arguments = (probs, given, factor, reduction)
            torch.library.opcheck(operators.negative_loss, (logits.detach().requires_grad_(), *arguments))
            loss, scale = operators.negative_loss(logits.detach(), *arguments)
            arguments = (torch.rand_like(loss), logits.detach(), probs, given, scale)
            torch.library.opcheck(operators.negative_loss_backward, arguments)
