"""Every module that declares state, how to make one over ``CLASSES`` classes, and how to show it a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg._state import Stateful
from selftrain_seg.confidence import SpatialPrior
from selftrain_seg.mining import ReliabilityBank
from selftrain_seg.restyle import ConfusionMatrix
from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    SelectionStatistics,
    SoftMatchSelector,
    select_hard,
)
from selftrain_seg.teachers import AgreementStatistics
from selftrain_seg.thresholds import (
    ClassAgreement,
    ClassBalancedThreshold,
    ConfidenceSketch,
    GlobalThreshold,
    PrecisionThreshold,
)

CLASSES, SIZE = 4, (6, 5)


class Kind(NamedTuple):
    make: Callable[[], Stateful]
    feed: Callable[[Stateful, Tensor], object]


def _update(module, logits):
    return module.update(logits)


def _call(module, logits):
    return module(logits)


def _bank(module, logits):
    """Images of the snapshot that have not come yet: a second time would be passed over."""
    module.update(module.fresh.sum() + torch.arange(len(logits)), logits.argmax(1), logits.softmax(1).amax(1))


def _ramp() -> Tensor:
    return 0.5 + torch.arange(CLASSES * SIZE[0] * SIZE[1]).view(CLASSES, *SIZE) / 100


KINDS = {
    "balanced": Kind(lambda: ClassBalancedThreshold(CLASSES, 0.3), _update),
    "balanced by class": Kind(lambda: ClassBalancedThreshold(CLASSES, torch.full((CLASSES,), 0.3)), _update),
    "balanced, exact": Kind(lambda: ClassBalancedThreshold(CLASSES, 0.3, exact=True), _update),
    "balanced, prior": Kind(lambda: ClassBalancedThreshold(CLASSES, 0.3, prior=_ramp()), _update),
    "global": Kind(lambda: GlobalThreshold(CLASSES, 0.3, pool="all"), _update),
    "sketch": Kind(
        lambda: ConfidenceSketch(CLASSES), lambda m, z: m.update(z.flatten(), z.flatten().argsort() % CLASSES)
    ),
    "spatial prior": Kind(lambda: SpatialPrior(CLASSES, (3, 5), sigma_px=1.0), lambda m, z: m.update(z.argmax(1))),
    "statistics": Kind(
        lambda: SelectionStatistics(CLASSES), lambda m, z: m.update(select_hard(z, 0.5), z.roll(1, 3).argmax(1))
    ),
    "agreement": Kind(lambda: AgreementStatistics(CLASSES), lambda m, z: m.update(z, z.roll(1, 3))),
    "confusion": Kind(lambda: ConfusionMatrix(CLASSES), lambda m, z: m.update(z, z.roll(1, 3).argmax(1))),
    "agreement of classes": Kind(
        lambda: ClassAgreement(CLASSES), lambda m, z: m.update(z.argmax(1), z.roll(1, 3).argmax(1))
    ),
    "precision": Kind(lambda: PrecisionThreshold(CLASSES), lambda m, z: m.update(z, z.roll(1, 3).argmax(1))),
    "freematch": Kind(lambda: FreeMatchSelector(CLASSES, momentum=0.5), _call),
    "flexmatch": Kind(lambda: FlexMatchSelector(CLASSES, threshold=0.5, momentum=0.5), _call),
    "softmatch": Kind(lambda: SoftMatchSelector(CLASSES, momentum=0.5), _call),
    "softmatch, aligned": Kind(lambda: SoftMatchSelector(CLASSES, momentum=0.5, align=True), _call),
    "instance adaptive": Kind(lambda: InstanceAdaptiveSelector(CLASSES), _call),
    "bank": Kind(lambda: ReliabilityBank(12, CLASSES), _bank),
    "running confidence": Kind(lambda: RunningConfidenceSelector(CLASSES), _call),
}


def states(module: Stateful) -> dict[str, Tensor]:
    """Copies of all states, those of states' modules too, by their names in ``state_dict``."""
    found = {name: value.clone() for name, value in module.state_dict().items() if not name.endswith("saved_by")}
    assert found
    return found


def assert_states(module: Stateful, expected: dict[str, Tensor]) -> None:
    found = states(module)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
