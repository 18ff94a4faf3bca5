import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain_seg.mining import classes_below, crop, mine_crops, rare_classes
from tests.oracles.mining import below_by_loops, rare_by_loops


def test_by_hand():
    # Shares of 10,000 pixels: 0.5, 0.0004, 0, 0.0003, 0.4993 -> rarest first: 3, 1, 4; class 2 does not occur.
    counts = torch.tensor([5000, 4, 0, 3, 4993])
    assert rare_classes(counts).tolist() == [3, 1, 4]
    assert classes_below(counts).tolist() == [3, 1]
    assert classes_below(counts, share=3.5e-4).tolist() == [3]


def test_the_share_itself_is_not_below():
    counts = torch.tensor([9990, 10, 0])
    assert classes_below(counts, share=1e-3).tolist() == []
    assert classes_below(counts, share=1.1e-3).tolist() == [1]
    assert classes_below(counts, share=0.0).tolist() == []
    assert classes_below(counts, share=1.0).tolist() == [1, 0]
    assert classes_below(torch.tensor([7]), share=1.0).tolist() == []


def test_many_ties_and_shares_beyond_single_precision():
    assert rare_classes(torch.ones(5000), k=5000).tolist() == list(range(5000))
    assert classes_below(torch.ones(5000)).tolist() == list(range(5000))
    # 2**24 of 2**25 + 1 pixels are just below one half.
    assert classes_below(torch.tensor([2**24 + 1, 2**24]), share=0.5).tolist() == [1]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.data())
def test_by_loops(counts, data):
    k = data.draw(st.integers(1, len(counts)))
    share = data.draw(st.sampled_from([0.0, 0.05, 0.1, 0.25, 1.0]))
    assert rare_classes(torch.tensor(counts), k=k).tolist() == rare_by_loops(counts, k)
    assert classes_below(torch.tensor(counts), share=share).tolist() == below_by_loops(counts, share)


def test_no_pixel_counted_yet():
    counts = torch.zeros(4, dtype=torch.long)
    assert rare_classes(counts).tolist() == []
    assert classes_below(counts).tolist() == []


def test_mining_on_synthia_finds_what_occurs():
    """SYNTHIA has 16 of 19 classes. The three rarest were those that no image shows, and every crop was uniform."""
    counts = torch.full((19,), 10**6)
    counts[torch.tensor([9, 14, 16])] = 0
    counts[12] = 50  # riders
    labels = torch.zeros(200, 40, 80, dtype=torch.long)
    labels[:, 30, 70] = 12
    corners = mine_crops(labels, classes_below(counts), (10, 10), fallback=rare_classes(counts), chance=1.0)
    assert bool((crop(labels, corners, (10, 10)) == 12).flatten(1).any(1).all())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_dtypes_and_large_counts(dtype):
    counts = torch.tensor([2**40, 2**20, 3, 2**20], dtype=torch.float64)
    if dtype == torch.int32:
        counts = (counts / 2**10).clamp(min=3)
    counts = counts.to(dtype)
    before = counts.clone()
    rare, below = rare_classes(counts, k=2), classes_below(counts)
    assert rare.tolist() == [2, 1]
    assert below.tolist() == [2, 1, 3]
    assert rare.dtype == below.dtype == torch.int64
    assert torch.equal(counts, before)


@pytest.mark.parametrize("function", [rare_classes, classes_below])
def test_bad_counts(function):
    with pytest.raises(TypeError, match=r"`class_counts`: expected a torch.Tensor, got list"):
        function([1, 2, 3])
    with pytest.raises(TypeError, match=r"`class_counts`: expected counts, got torch.bool"):
        function(torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"`class_counts`: expected counts, got torch.complex64"):
        function(torch.ones(3, dtype=torch.complex64))
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"`class_counts`: expected finite values of at least 0, got {value}"):
            function(torch.tensor([4.0, value, 2.0]))
    for shape in ((2, 3), (0,), ()):
        with pytest.raises(ValueError, match=r"`class_counts`: expected \(C,\)"):
            function(torch.ones(shape))


def test_bad_k_and_share():
    counts = torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match="`k`: expected at most the 3 classes, got 4"):
        rare_classes(counts, k=4)
    with pytest.raises(ValueError, match="`k`: expected at least 1, got 0"):
        rare_classes(counts, k=0)
    with pytest.raises(TypeError, match="`k`: expected an int"):
        rare_classes(counts, k=1.5)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="`share`: expected a value in"):
            classes_below(counts, share=share)
    with pytest.raises(TypeError, match="`share`: expected a number"):
        classes_below(counts, share="1e-3")
