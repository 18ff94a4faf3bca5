"""The kernels on maps of labels and confidences, and on vectors of C, against the plain implementations."""

import pytest
import torch

from selftrain_seg.ops import adapting, deciding, ranking, running, table
from selftrain_seg.selectors import InstanceAdaptiveSelector
from tests.helpers import random_logits
from tests.ops.test_triton import DEVICE, launched, pytestmark  # noqa: F401

SHAPES = pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 1), (3, 40, 61), (0, 4, 5), (2, 0, 3)])


def maps(shape, classes, seed=0):
    """Labels and confidences, some of which are 0, 1, or far below and above the middle."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    odds = 4.0 * torch.randn(shape, generator=generator) + 2.0
    m = torch.sigmoid(odds.clamp(min=-6.0))
    m[torch.rand(shape, generator=generator) < 0.1] = 0.0
    m[torch.rand(shape, generator=generator) < 0.1] = 1.0
    return labels.to(DEVICE), m.to(DEVICE)


@SHAPES
@pytest.mark.parametrize("classes", [1, 5, 19])
@pytest.mark.parametrize("strict", [False, True])
def test_decide(shape, classes, strict, launched):  # noqa: F811
    labels, m = maps(shape, classes)
    bars = torch.rand(shape[0], classes, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    m.view(-1)[: m.numel() // 2] = bars.float()[:1, :1].expand(1, m.numel() // 2) if shape[0] else 0.0  # equality
    for thresholds in (bars, bars.float(), bars[:1], bars.t().contiguous().t(), bars.new_zeros(classes)):
        if thresholds.ndim == 2 and not len(thresholds):
            continue
        arguments = (labels, m, thresholds, strict, 255)
        mine, expected = deciding._decide(*arguments), deciding._decide_plain(*arguments)
        assert mine.dtype == expected.dtype
        assert torch.equal(mine, expected)
    launched.append("none")  # without pixels there is nothing to launch


@SHAPES
@pytest.mark.parametrize("variance", [0.0, 1e-4, 0.5])
def test_weigh(shape, variance, launched):  # noqa: F811
    labels, m = maps(shape, 5)
    belief = maps(shape, 5, seed=1)[1]
    state = torch.tensor([variance, 0.8], dtype=torch.float64, device=DEVICE)
    arguments = (labels, m, belief, state, 2.0, 255)
    mine, expected = deciding._weigh(*arguments), deciding._weigh_plain(*arguments)
    assert torch.equal(mine[0], expected[0])
    torch.testing.assert_close(mine[1], expected[1], rtol=1e-5, atol=1e-7)
    launched.append("none")


@pytest.mark.parametrize("size", [2, 5, 39])
@pytest.mark.parametrize("number", [0.0, 1.0, 777.0])
@pytest.mark.parametrize("variance", [False, True])
def test_follow(size, number, variance):
    generator = torch.Generator().manual_seed(size)
    old, sums = (torch.rand(size, dtype=torch.float64, generator=generator).to(DEVICE) for _ in range(2))
    packed = torch.cat([sums * number, sums.new_tensor([number])])
    mine, expected = old.clone(), old.clone()
    for running_average, function in ((mine, running._follow), (expected, running._follow_plain)):
        function(running_average, packed[:-1], packed[-1], 0.999, variance)
    torch.testing.assert_close(mine, expected, rtol=1e-14, atol=1e-16)
    assert torch.equal(mine, old) == (number == 0.0)


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("classes", [1, 5, 19])
@pytest.mark.parametrize("number", [None, 0.0, 100.0])
def test_discount(images, classes, number):
    generator = torch.Generator().manual_seed(classes)
    peaks = torch.rand(images, classes, generator=generator).to(DEVICE)
    r = (0.01 * torch.rand(classes, dtype=torch.float64, generator=generator)).to(DEVICE)
    seen = (torch.rand(classes, generator=generator) < 0.5).to(DEVICE)
    shares = torch.rand(classes, dtype=torch.float64, generator=generator).to(DEVICE)
    shares[::2] *= 1e-10  # not seen
    sums = None if number is None else torch.cat([number * shares, shares.new_tensor([number])])
    found = []
    for function in (running._discount, running._discount_plain):
        state = r.clone(), seen.clone()
        found.append((function(peaks, *state, sums, 0.8, 0.2, 1e-3, 0.9), *state))
    for mine, expected in zip(*found, strict=True):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=2e-7, atol=0)
    assert torch.equal(found[0][1], r) == (not number)


@SHAPES
@pytest.mark.parametrize("classes", [1, 5, 19])
@pytest.mark.parametrize("ignore_index", [255, 0, -1])
def test_tabulate(shape, classes, ignore_index, launched):  # noqa: F811
    (predicted, m), labels = maps(shape, classes), maps(shape, classes + 2, seed=1)[0]
    labels = torch.where(labels == classes, ignore_index, labels)  # some are not selected, and some of no class
    target = maps(shape, classes + 2, seed=2)[0]
    for truth in (
        None,
        target - 1,
        target.to(torch.uint8),
        target.to(torch.int32).transpose(0, 1).contiguous().transpose(0, 1),
    ):
        arguments = (predicted, labels, m, truth, classes, ignore_index)
        mine, expected = table._tabulate(*arguments), table._plain(*arguments)
        assert torch.equal(mine[:4], expected[:4])
        torch.testing.assert_close(mine[4], expected[4], rtol=1e-12, atol=0)
    launched.append("none")


@pytest.mark.parametrize("bins", [1, 7, 1024, 3000])
@pytest.mark.parametrize("rule", ranking.RULES)
def test_ranked(bins, rule):
    counts = torch.poisson(torch.full((6, bins), 2.0), generator=torch.Generator().manual_seed(bins)).long()
    counts[1] = 0
    counts[2, bins // 2] = 1000  # ties
    counts[3] = 0
    counts[3, -1] = 5
    counts = counts.to(DEVICE)
    for share in (0.0, 0.2, 0.5, 0.999, 1.0, torch.linspace(0, 1, 6, dtype=torch.float64, device=DEVICE)):
        share = share if isinstance(share, torch.Tensor) else torch.tensor(share, dtype=torch.float64)
        mine, expected = (function(counts, share, rule, -3.0, 0.3) for function in (ranking._ranked, ranking._plain))
        torch.testing.assert_close(mine, expected, rtol=1e-15, atol=1e-15, equal_nan=True)


@SHAPES
@pytest.mark.parametrize("by_image", [False, True])
@pytest.mark.parametrize("settings", [(0.2, 8.0, 0.9), (0.5, 0.0, 0.0), (1.0, 1.0, 0.3), (0.0, 2.0, 1.0)])
def test_adapt(shape, by_image, settings):
    """Every quantile is less than 0.001 off, and so are thresholds that are quantiles (momentum 0)."""
    (labels, m), (portion, gamma, initial) = maps(shape, 4), settings
    theta = torch.full((4,), initial, dtype=torch.float64, device=DEVICE)
    for momentum in (0.0, 0.9):
        arguments = (labels, m, theta, portion, momentum, gamma, by_image)
        mine, expected = adapting._adapt(*arguments), adapting._plain(*arguments)
        assert mine.dtype == expected.dtype
        assert torch.equal(mine[0], theta)
        assert torch.equal(mine == theta, expected == theta)
        first = slice(0, 2)  # later ones start from other thresholds
        assert not bool(((mine - expected)[first].abs() > 1e-3 * (1 - momentum)).any())
        for step in range(1, len(mine) - 1):
            again = adapting._plain(labels[step : step + 1], m[step : step + 1], mine[step], *arguments[3:-1], False)
            assert not bool(((mine[step + 1] - again[1]).abs() > 1e-3 * (1 - momentum)).any())


def test_saturated_confidences_are_exactly_1():
    logits = torch.tensor([80.0, -80.0]).reshape(1, 2, 1, 1).expand(1, 2, 5, 5).to(DEVICE)
    selector = InstanceAdaptiveSelector(2, momentum=0.0).to(DEVICE)
    assert (selector(logits).labels == 0).all()
    assert selector.thresholds[0] == 0.999
    selector(random_logits(2, 2, 9, 9).to(DEVICE))
    assert 0.5 < selector.thresholds.min() < 0.999
