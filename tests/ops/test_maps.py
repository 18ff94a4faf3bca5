"""Operators on maps and vectors, as torch wants operators to be; what they compute, selectors' oracles tell."""

import pytest
import torch

from selftrain_seg import ops
from tests.ops.cases import CHECKS, CLASSES, logits_of, valid_of

SUMS = torch.linspace(0.0, 2.0, CLASSES + 1, dtype=torch.float64)


def arguments(name):
    batch = ops.observe(logits_of("float32"), valid=valid_of(), peaks=True)
    labels, m, bars = batch.labels, batch.confidence, torch.rand(2, CLASSES, dtype=torch.float64)
    state = torch.full((CLASSES,), 0.3, dtype=torch.float64)
    return {
        "decide": (labels, m, bars, False, 255),
        "weigh": (labels, m, m.flip(0), state, 2.0, 255),
        "follow": (state, SUMS[:-1], SUMS[-1], 0.9, True),
        "discount": (batch.peaks, state, torch.zeros(CLASSES, dtype=torch.bool), SUMS, 0.8, 0.2, 1e-3, 0.9),
        "adapt": (labels, m, state, 0.2, 0.9, 8.0, True),
        "tabulate": (labels, labels.flip(0), m, labels.roll(1), CLASSES, 255),
        "ranked": (torch.randint(0, 9, (CLASSES, 40)), torch.tensor(0.2), "last_in", -3.0, 0.25),
    }[name]


@pytest.mark.parametrize("name", ["decide", "weigh", "follow", "discount", "adapt", "tabulate", "ranked"])
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.selftrain_seg, name).default, arguments(name), test_utils=CHECKS)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_no_pixels(shape):
    labels, m = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    theta = torch.full((3,), 0.9, dtype=torch.float64)
    assert ops.decide(labels, m, theta, ignore_index=255).shape == shape
    assert not ops.tabulate(labels, labels, m, labels, 3, 255).any()
    for by_image in (False, True):
        moved = ops.adapt(labels, m, theta, portion=0.2, momentum=0.9, gamma=8.0, by_image=by_image)
        assert moved.shape == ((shape[0] if by_image else 1) + 1, 3)
        assert (moved == 0.9).all()
