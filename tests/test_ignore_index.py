"""A class that is also the ignore label would make classes of pixels without one: refused wherever C is known."""

import inspect

import pytest
import torch

from selftrain_seg import PseudoLabels, confidence, losses, mining, selectors, store

C = 4
LOGITS = torch.zeros(1, C, 2, 2)
LABELS = torch.zeros(1, 2, 2, dtype=torch.long)
THRESHOLDS = torch.full((C,), 0.5)

CALLS = {
    "select_hard": lambda **k: selectors.select_hard(LOGITS, THRESHOLDS, **k),
    "select_reweighted": lambda **k: selectors.select_reweighted(LOGITS, THRESHOLDS, **k),
    "select_soft": lambda **k: selectors.select_soft(LOGITS, THRESHOLDS, **k),
    "select_fixed": lambda **k: selectors.select_fixed(LOGITS, threshold=0.5, **k),
    "select_fixed, weighed": lambda **k: selectors.select_fixed(LOGITS, threshold=0.5, weigh_by="image", **k),
    "InstanceAdaptiveSelector": lambda **k: selectors.InstanceAdaptiveSelector(C, **k),
    "RunningConfidenceSelector": lambda **k: selectors.RunningConfidenceSelector(C, **k),
    "FlexMatchSelector": lambda **k: selectors.FlexMatchSelector(C, **k),
    "FreeMatchSelector": lambda **k: selectors.FreeMatchSelector(C, **k),
    "SoftMatchSelector": lambda **k: selectors.SoftMatchSelector(C, **k),
    "SelectionStatistics": lambda **k: selectors.SelectionStatistics(C, **k),
    "SpatialPrior": lambda **k: confidence.SpatialPrior(C, (2, 2), sigma_px=1.0, **k),
    "cross_entropy": lambda **k: losses.cross_entropy(LOGITS, LABELS, **k),
    "mrkld_loss": lambda **k: losses.mrkld_loss(LOGITS, LABELS, **k),
    "mrent_loss": lambda **k: losses.mrent_loss(LOGITS, LABELS, **k),
    "mrl2_loss": lambda **k: losses.mrl2_loss(LOGITS, LABELS, **k),
    "symmetric_loss": lambda **k: losses.symmetric_loss(LOGITS, LABELS, **k),
    "class_weighted_loss": lambda **k: losses.class_weighted_loss(LOGITS, LABELS, THRESHOLDS, **k),
    "region_guided_loss": lambda **k: losses.region_guided_loss(LOGITS, LABELS, **k),
    "dynamic_loss": lambda **k: losses.dynamic_loss(LOGITS, LABELS, gamma=1.0, **k),
    "dynamic_mutual_loss": lambda **k: losses.dynamic_mutual_loss(
        LOGITS, LABELS, LABELS.float(), gamma_agree=1.0, gamma_disagree=1.0, **k
    ),
    "ClassIndex": lambda **k: mining.ClassIndex.from_masks([], C, **k),
    "ReliabilityBank": lambda **k: mining.ReliabilityBank(1, C, **k),
    "PseudoLabelStore": lambda **k: store.PseudoLabelStore("nowhere", C, **k),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_class_is_refused_as_the_ignore_label(name):
    CALLS[name](ignore_index=255)
    for value in (0, C - 1):
        message = rf"`ignore_index`: expected a value outside \[0, {C}\), where classes are, got {value}"
        with pytest.raises(ValueError, match=message):
            CALLS[name](ignore_index=value)


def test_255_is_a_class_of_many():
    many = torch.zeros(1, 300, 2, 2)
    for call in (
        lambda **k: selectors.select_hard(many, 0.5, **k),
        lambda **k: selectors.SelectionStatistics(300, **k),
        lambda **k: losses.cross_entropy(many, LABELS, **k),
        lambda **k: mining.ClassIndex.from_masks([], 300, **k),
    ):
        with pytest.raises(
            ValueError, match=r"got 255; with more than 255 classes, or with 255 as one of them, say -1"
        ):
            call()
        call(ignore_index=-1)


def test_no_entrance_is_forgotten():
    """Everything public of these families that takes ``ignore_index`` is in the table."""
    known = {name.split(",")[0] for name in CALLS}
    takes = set()
    for family in (selectors, losses, confidence, store):
        for name in family.__all__:
            thing = getattr(family, name)
            if callable(thing) and not issubclass(type(thing), type(PseudoLabels)):
                takes |= {name} if "ignore_index" in inspect.signature(thing).parameters else set()
            elif inspect.isclass(thing) and "ignore_index" in inspect.signature(thing.__init__).parameters:
                takes.add(name)
    assert takes - known == set()
    assert len(takes) > 15
