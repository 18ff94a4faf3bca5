"""Checkpoints of what is added up over ranks, loaded by a rank that did not save them."""

import pytest
import torch

from selftrain_seg import _state
from selftrain_seg.thresholds import ClassBalancedThreshold


def as_rank(monkeypatch, rank, ranks):
    monkeypatch.setattr(_state, "rank_and_ranks", lambda: (rank, ranks))


@pytest.mark.parametrize("exact", [False, True])
def test_an_empty_one_fits_every_rank(monkeypatch, exact):
    as_rank(monkeypatch, 0, 2)
    saved = ClassBalancedThreshold(2, 0.5, exact=exact)
    saved.update(torch.ones(1, 2, 3, 3))
    saved.reset()
    state = saved.state_dict()
    as_rank(monkeypatch, 1, 2)
    loaded = ClassBalancedThreshold(2, 0.5, exact=exact)
    loaded.update(torch.ones(1, 2, 3, 3))
    loaded.load_state_dict(state)
    assert int(loaded.updates) == int(loaded.sketch.counts.sum()) == 0


@pytest.mark.parametrize("exact", [False, True])
def test_one_with_counts_is_refused(monkeypatch, exact):
    as_rank(monkeypatch, 0, 2)
    saved = ClassBalancedThreshold(2, 0.5, exact=exact)
    saved.update(torch.ones(1, 2, 3, 3))
    state = saved.state_dict()
    as_rank(monkeypatch, 1, 2)
    with pytest.raises(ValueError, match="rank 0 of 2"):
        ClassBalancedThreshold(2, 0.5, exact=exact).load_state_dict(state)
