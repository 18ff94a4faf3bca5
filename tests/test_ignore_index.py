"""A class that is also the ignore label would make classes of pixels without one: refused wherever C is known."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import selftrain_seg
from selftrain_seg import confidence, datasets, losses, mining, restyle, selectors, store, thresholds

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
    "paste_classes": lambda **k: mining.paste_classes(LOGITS, LABELS, THRESHOLDS, **k),
    "ConfusionMatrix": lambda **k: restyle.ConfusionMatrix(C, **k),
    "restyled_confusion": lambda **k: restyle.restyled_confusion(torch.nn.Conv2d(3, C, 1), [], [], num_classes=C, **k),
    "PseudoLabelStore": lambda **k: store.PseudoLabelStore("nowhere", C, **k),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_class_is_refused_as_the_ignore_label(name):
    CALLS[name](ignore_index=255)
    for value in (0, C - 1):
        message = rf"`ignore_index`: expected a value outside the classes \[0, {C}\), got {value}"
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
        with pytest.raises(ValueError, match=r"got 255; with more than 255 classes, use -1"):
            call()
        call(ignore_index=-1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_label_maps_of_8_bits_may_have_more_classes_than_values(dtype):
    """torch converts a number to the dtype of the tensor that it is compared with: 300 is 44 in 8 bits."""
    classes, labels = 300, torch.tensor([[[0, 44, 100, 127]]]).to(dtype)
    prior = confidence.SpatialPrior(classes, (1, 4), sigma_px=0, ignore_index=-156)  # 100 in uint8
    sketch, statistics = thresholds.ConfidenceSketch(classes), selectors.SelectionStatistics(classes, ignore_index=-156)
    prior.update(labels)
    sketch.update(torch.ones(labels.shape), labels)
    pseudo = selftrain_seg.PseudoLabels(labels, torch.ones(labels.shape), predicted=labels)
    statistics.update(pseudo, target=labels)
    assert prior.frequencies.sum() == 4
    assert sketch.class_counts().sum() == 4
    assert statistics.counts.sum(1).tolist() == [4, 4, 4, 4]
    with selftrain_seg.value_checks():
        assert losses.cross_entropy(torch.zeros(1, classes, 1, 4), labels, ignore_index=-156).isfinite()
    two = labels.expand(2, 1, 4)
    mixed = mining.cut_mix(torch.zeros(2, 1, 1, 4), two, area=(1, 1), paste_ignored=False, ignore_index=-156)
    assert mixed.pasted.all()


# These do not know how many classes there are: the ignore label is whichever value is named.
OF_LABELS_ALONE = {"class_mix", "cut_mix", "mine_crops", "SmallClassCrop"}


def test_no_entrance_is_forgotten():
    """Everything public that takes ``ignore_index`` is in the table."""
    known = {name.split(",")[0] for name in CALLS} | OF_LABELS_ALONE
    names = {room.name for room in pkgutil.iter_modules(selftrain_seg.__path__)} - {
        "ops",
        "visualize",
    }  # these paint any
    rooms = [importlib.import_module(f"selftrain_seg.{name}") for name in names]
    takes = set()
    for room in rooms:
        for name in getattr(room, "__all__", ()):
            thing = getattr(room, name)
            methods = (
                [value for key, value in vars(thing).items() if not key.startswith("_")]
                if inspect.isclass(thing)
                else []
            )
            for each in filter(callable, [thing, *(getattr(method, "__func__", method) for method in methods)]):
                takes |= {name} if "ignore_index" in inspect.signature(each).parameters else set()
    assert known - takes == set()
    assert takes - known == {"LabelMap", "RoundSettings"}  # with a message of its own; what a store has checked
    with pytest.raises(ValueError, match=r"`ignore_index`: expected a value outside \[0, 1\), got 0"):
        datasets.LabelMap({0: 0}, ["road"], [(0, 0, 0)], ignore_index=0)
