"""A portion is a decimal: 0.29 of 100 pixels is 29, though 0.29 * 100 is 28.999999999999996."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from selftrain_seg.selectors import select_hard
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold, linear_portion

AS = {
    "number": lambda p: p,
    "float64": lambda p: torch.full((2,), p, dtype=torch.float64),
    "float32": lambda p: torch.full((2,), p),
}


def pixels(count: int) -> torch.Tensor:
    """Pixels of class 0 with confidences so far apart that each has a bin of its own."""
    margins = (1 + torch.arange(count) / 10).view(1, 1, 1, -1)
    return torch.cat([margins, torch.zeros_like(margins)], dim=1)


@pytest.mark.parametrize(
    ("estimator", "given"), [(GlobalThreshold, "number"), *((ClassBalancedThreshold, given) for given in AS)]
)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [7, 100])
def test_every_percentage_selects_its_decimals_share(estimator, exact, given, count):
    logits = pixels(count)
    kc = estimator(2, 0.5, exact=exact)
    kc.update(logits)
    for percent in range(1, 101):
        expected = math.floor(Fraction(percent, 100) * count)
        for thresholds in (
            kc.compute(AS[given](percent / 100)),
            kc.compute(AS[given](float(f"0.{percent:02d}") if percent < 100 else 1.0)),
        ):
            selected = int((select_hard(logits, thresholds).labels == 0).sum())
            assert selected == expected, percent
    assert int((select_hard(logits, kc.compute(AS[given](0.29))).labels == 0).sum()) == (29 if count == 100 else 2)


def taken(portion, size: int) -> int:
    """How many of ``size`` pixels ``compute`` takes, found from outside: the k-th largest of pixels in two bins."""
    fraction = math.floor(Fraction(str(portion)) * size)
    kc = ClassBalancedThreshold(2, portion)
    kc.updates += 1
    high, low, found = 12_000, 6_000, []
    for above in (fraction - 1, fraction, fraction + 1):  # the answer lies in the upper bin if k ≤ above
        if not 0 <= above <= size:
            continue
        kc.sketch.counts.zero_()
        kc.sketch.counts[0, high], kc.sketch.counts[0, low] = above, size - above
        middle = kc.sketch.low + 9_000 * kc.sketch.bin_width
        score = torch.logit(kc.compute()[0]).item()
        found.append((above, score > middle))
    if not any(inside for _, inside in found):
        return -1
    return min(above for above, inside in found if inside)


@settings(max_examples=300, deadline=None)
@drawn(st.integers(1, 100), st.integers(1, 10**6))
@example(29, 100)
@example(57, 100)
@example(58, 100)
@example(7, 100)
@example(29, 10**6)
@example(99, 999_900)
def test_share_of_any_number_of_pixels(percent, size):
    portion = percent / 100
    expected = math.floor(Fraction(percent, 100) * size)
    if expected:
        assert taken(portion, size) == expected
    else:
        kc = ClassBalancedThreshold(2, portion)
        kc.updates += 1
        kc.sketch.counts[0, 6_000] = size
        assert kc.compute()[0].item() == 1.0


def test_schedules_give_decimals():
    for round in range(7):
        assert taken(linear_portion(round), 10_000) == 2000 + 500 * round
