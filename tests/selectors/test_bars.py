"""Thresholds exactly at a confidence, a rounding beside it, and at the ends of their range."""

import math

import pytest
import torch

from selftrain_seg.ops._thresholds import LARGE, SLACK
from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    select_fixed,
    select_hard,
    select_reweighted,
    select_soft,
)
from tests.helpers import random_logits

REACHED = pytest.mark.parametrize(
    "select",
    [
        select_hard,
        select_reweighted,
        lambda z, t: select_fixed(z, threshold=t if isinstance(t, float) else t[0].item()),
    ],
    ids=["hard", "reweighted", "fixed"],
)
ALL = pytest.mark.parametrize("select", [select_hard, select_reweighted, select_soft])


def two_classes(margin: float) -> torch.Tensor:
    """One pixel of class 0, whose log-odds are ``margin``."""
    return torch.tensor([margin, 0.0]).reshape(1, 2, 1, 1)


def not_above(margin: float) -> float:
    """The probability of that margin, which float32 holds, in float64; the next lower one where it rounded up."""
    prob = 1 / (1 + math.exp(-torch.tensor(margin).item()))
    return prob if math.log(prob / (1 - prob)) <= torch.tensor(margin).item() else math.nextafter(prob, 0)


@REACHED
def test_a_confidence_of_exactly_the_threshold_is_selected(select):
    # p = 1/2 and p = 3/4 are exact in float32, and so are their thresholds.
    assert select(two_classes(0.0), 0.5).labels.item() == 0
    logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)
    assert select(logits, 0.75).labels.item() == 0
    assert select(logits, 0.75 + 1e-5).labels.item() == 255
    for value in torch.linspace(0.5, 36, 72).tolist():
        assert select(two_classes(value), not_above(value)).labels.item() == 0, value


@ALL
def test_every_saturated_pixel_passes_its_own_threshold(select):
    """Where the exponent's rounding is more than 8 roundings of log m, but not of the log-odds."""
    for margin in torch.linspace(8.01, 32.9, 800).tolist():
        thresholds = torch.tensor([not_above(margin), 1.0], dtype=torch.float64)
        assert select(two_classes(margin), thresholds).labels.item() == 0, margin


@REACHED
@pytest.mark.parametrize("margin", [0.25, 1.0, 2.5, 7.0, 15.0, 22.0])
def test_both_sides_of_the_slack(select, margin):
    for share, label in ((0.5, 0), (-0.5, 0), (2.0, 255)):
        odds = margin + share * SLACK * (1 + margin)
        tau = torch.tensor([1 / (1 + math.exp(-odds)), 1.0], dtype=torch.float64)
        assert select(two_classes(margin), tau).labels.item() == label, share


def test_slack_is_some_roundings_and_no_more():
    assert SLACK == 8 * 2.0**-23


def test_soft_selects_above_its_bar_and_not_at_it():
    """The other class is 0 in float32, p = kc = 1: the regularised cost ties with that of the zero vector, exactly."""
    certain, ones = two_classes(200.0), torch.ones(2)  # Σ (p / kc)^(1/α) = 1
    assert select_soft(certain, ones).labels.item() == 255
    assert (select_soft(certain, ones).soft == 0).all()
    assert select_reweighted(certain, ones).labels.item() == select_hard(certain, ones).labels.item() == 0
    # At kc = p of the winner the other class adds what is needed, however little that is.
    assert select_soft(torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1), torch.tensor([0.75, 1.0])).labels.item() == 0


@ALL
def test_at_zero_all_are_selected(select):
    logits = random_logits(2, 5, 20, 20, scale=4.0)
    logits[0, 0, 0, 0] = torch.nan
    result = select(logits, 0.0)
    assert torch.equal(result.labels != 255, ~logits.isnan().any(1))
    assert torch.equal(result.labels[1], logits[1].argmax(0))
    assert select_fixed(logits, threshold=0.0).labels[0, 0, 0] == 255
    assert (select_fixed(logits, threshold=0.0).labels.flatten()[1:] != 255).all()


@REACHED
def test_at_one_only_certainty_is_selected(select):
    assert select(two_classes(200.0), 1.0).labels.item() == 0
    for margin in (20.0, 60.0, 80.0):  # 1 in float32, and yet not certain
        assert select_hard(two_classes(margin), 1.0).confidence.item() == 1.0
        assert select(two_classes(margin), 1.0).labels.item() == 255


@ALL
@pytest.mark.parametrize("number", [0, 1, 0.0, 0.35, 0.75, 1.0])
def test_a_number_is_the_threshold_of_every_class(select, number):
    logits, prior = random_logits(2, 5, 9, 8), 0.5 + torch.rand(5, 9, 8)
    for options in ({}, {"prior": prior}):
        found = select(logits, number, **options)
        expected = select(logits, torch.full((5,), float(number), dtype=torch.float64), **options)
        for a, b in zip(found, expected, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_a_threshold_of_zero_wins_but_stays_finite():
    """Pins LARGE = 10⁴: -log of a threshold of 0, in float32 log-probabilities."""
    assert LARGE == 1e4
    zero = torch.tensor([0.5, 0.0, 1e-300], dtype=torch.float64)

    def best(*logits):
        return select_reweighted(torch.tensor(logits).reshape(1, 3, 1, 1), zero).labels.item()

    assert best(0.0, -1.0, 0.0) == 1
    assert best(9000.0, 0.0, 9000.0) == 1  # though p_1 = e^-9000, and class 2 gains 690 by its threshold
    assert best(0.0, -11_000.0, -800.0) == 0  # beyond it the class is as good as absent
    assert best(0.0, -torch.inf, -1.0) == 2  # p = 0 exceeds nothing, not even 0
    both = torch.zeros(3, dtype=torch.float64)  # between two zeros the more probable class wins, as infinity could not
    logits = random_logits(2, 3, 20, 20)
    assert torch.equal(select_reweighted(logits, both).labels, logits.argmax(1))


@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.05])
def test_soft_labels_at_a_threshold_of_zero_are_finite(alpha):
    logits = random_logits(2, 3, 20, 20)
    soft = select_soft(logits, torch.tensor([0.5, 0.0, 0.9]), alpha=alpha).soft
    torch.testing.assert_close(soft.sum(1), torch.ones(2, 20, 20))
    assert (soft.argmax(1) == 1).all()
    # Between two zeros p^(1/α) decides; differences of 10⁴ / α are known to that many roundings.
    soft = select_soft(logits, 0.0, alpha=alpha).soft
    torch.testing.assert_close(soft, (logits / alpha).softmax(1), rtol=0, atol=10 * LARGE / alpha * 2.0**-24)


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        (FreeMatchSelector(2), True),
        (FlexMatchSelector(2, threshold=0.5), True),
        (InstanceAdaptiveSelector(2, initial=0.5), True),
        (RunningConfidenceSelector(2, upper=0.0, lower=0.5), False),  # m > t, as published
    ],
    ids=["freematch", "flexmatch", "instance-adaptive", "running-confidence"],
)
def test_equality_with_a_running_threshold(selector, kept):
    selector.eval()
    if isinstance(selector, FlexMatchSelector):
        selector.running_shares[0] = 1.0  # so that the threshold of class 0 is 0.5 itself
    assert (selector(torch.zeros(1, 2, 1, 1)).labels != 255).item() == kept  # confidence 0.5


def test_flexmatch_counts_a_pixel_at_the_threshold():
    selector = FlexMatchSelector(2, threshold=0.5, momentum=0.0)
    selector(torch.zeros(1, 2, 1, 1))
    assert selector.running_shares.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("select", [select_hard, select_reweighted, select_soft])
def test_an_infinite_threshold_selects_nothing_of_its_class_only(select):
    """As an estimator gives an absent class under a prior."""
    prior = torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1).expand(3, 1, 2)
    logits = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 0.0]]).reshape(1, 3, 1, 2)
    labels = select(logits, torch.tensor([torch.inf, 0.3, 0.9], dtype=torch.float64), prior=prior).labels
    assert labels.tolist() == [[[1, 255]]]


@pytest.mark.parametrize("select", [select_hard, select_reweighted, select_soft])
def test_a_threshold_above_what_a_prior_lets_a_class_reach(select):
    prior = torch.tensor([1.5, 1.0]).view(2, 1, 1)
    logits = torch.tensor([200.0, 0.0]).reshape(1, 2, 1, 1)  # p q = 1.5 exactly
    for threshold, kept in ((1.5 * (1 - 1e-3), True), (1.5 * (1 + 1e-4), False), (1.6, False)):
        pseudo = select(logits, torch.tensor([threshold, 2.0], dtype=torch.float64), prior=prior)
        assert (pseudo.labels != 255).item() == kept


def test_a_share_does_not_mind_what_ignored_pixels_are_called():
    probs = torch.tensor([0.99, 0.01, 0.6, 0.4])
    logits = torch.stack([probs, 1 - probs]).log().reshape(1, 2, 1, 4)
    for ignore_index in (255, 2, -1):
        weighed = select_fixed(logits, threshold=0.9, weigh_by="image", ignore_index=ignore_index)
        assert weighed.pixel_weight.tolist() == [[[0.5, 0.5, 0.5, 0.5]]]
