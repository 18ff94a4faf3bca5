import pytest
import torch

from selftrain_seg import thresholds
from selftrain_seg.thresholds import linear_portion, source_subset


def test_linear_portion():
    assert [linear_portion(r, start=0.3, step=0.1, stop=0.5) for r in range(4)] == [0.3, 0.4, 0.5, 0.5]
    assert linear_portion(0) == 0.2  # the papers' start


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("CBST_SP_PORTIONS", [0.15, 0.2, 0.25], 0.5),
        ("DST_CBC_PORTIONS", [0.2, 0.4, 0.6, 0.8, 1.0], 1.0),
        ("IAST_PORTIONS", [0.2, 0.25, 0.3], 0.3),
        ("GTA5_SOURCE_PORTIONS", [0.03, 0.0325, 0.035], 0.06),
        ("SYNTHIA_SOURCE_PORTIONS", [0.02, 0.0225, 0.025], 0.06),
    ],
)
def test_the_papers_schedules(name, first, last):
    schedule = getattr(thresholds, name)
    assert schedule.rounds(len(first)) == first
    assert schedule(100) == last
    assert "start=" in repr(schedule)


def test_source_subset():
    whole = source_subset(50, 1.0, seed=3)
    assert sorted(whole.tolist()) == list(range(50))
    for portion in (0.02, 0.1, 0.5):
        part = source_subset(50, portion, seed=3)
        assert torch.equal(part, whole[: len(part)])
        assert len(part) == round(50 * portion)
    assert len(source_subset(3, 0.01)) == 1
    assert not torch.equal(source_subset(50, 1.0, seed=4), whole)
    redrawn = [source_subset(50, 0.5, seed=3, redraw=r) for r in range(3)]
    assert not torch.equal(redrawn[0], redrawn[1])
    assert torch.equal(redrawn[2], source_subset(50, 0.5, seed=3, redraw=2))


def test_global_generator_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    source_subset(50, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_errors():
    with pytest.raises(ValueError, match="`round`"):
        linear_portion(-1)
    with pytest.raises(TypeError, match="`round`"):
        linear_portion(0.5)
    with pytest.raises(ValueError, match="`start`"):
        linear_portion(0, start=0.0)
    with pytest.raises(ValueError, match="`step`"):
        linear_portion(0, step=-0.1)
    with pytest.raises(ValueError, match="`stop`"):
        linear_portion(0, start=0.4, stop=0.3)
    with pytest.raises(ValueError, match="`stop`"):
        linear_portion(0, stop=1.1)
    with pytest.raises(ValueError, match="`num_images`"):
        source_subset(0, 0.5)
    with pytest.raises(ValueError, match="`portion`"):
        source_subset(5, 0.0)
    with pytest.raises(TypeError, match="`seed`"):
        source_subset(5, 0.5, seed=0.5)
    with pytest.raises(ValueError, match="`redraw`"):
        source_subset(5, 0.5, redraw=-1)
