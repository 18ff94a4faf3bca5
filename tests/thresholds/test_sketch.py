import pytest
import torch

from selftrain_seg.thresholds import ConfidenceSketch


def scores(n=40_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 6 * torch.randn(n, generator=generator) + 8, torch.randint(0, 3, (n,), generator=generator)


def kth_largest(sketch, k):
    """Of a sketch with one class."""
    return sketch.ranked(sketch.total(), (k + 0.5) / int(sketch.counts.sum()), "last_in")[0]


def test_counts_by_hand():
    sketch = ConfidenceSketch(2, bins=4, low=0.0, high=4.0)
    # -1, 0.5 and -inf in the first bin, 9 and inf in the last; the ignore label and NaN nowhere.
    values = torch.tensor([-1.0, 0.5, 2.5, 9.0, 1.5, float("nan"), -float("inf"), float("inf")])
    sketch.update(values, torch.tensor([0, 0, 0, 0, 255, 1, 1, 1]))
    assert sketch.counts.tolist() == [[2, 0, 1, 1], [1, 0, 0, 1]]
    assert sketch.class_counts().tolist() == [4, 2]


def test_quantile_and_cdf_by_hand():
    sketch = ConfidenceSketch(1, bins=10, low=0.0, high=10.0)
    sketch.update(torch.arange(0.0, 10.0, 0.001), torch.zeros(10_000, dtype=torch.int64))
    # Each bin holds a tenth of all, more than 1/256, so the answer is an edge of a bin: the nearer one.
    assert [sketch.quantile(q).item() for q in (0.0, 0.22, 0.28, 0.5)] == [0.0, 2.0, 3.0, 5.0]
    assert sketch.quantile(0.999).item() == 9.0  # the nearer edge, 10, would leave nothing above
    assert sketch.cdf(torch.tensor(2.5)).item() == pytest.approx(0.25, abs=1e-3)
    assert sketch.cdf(torch.tensor([-5.0])).item() == 0.0
    assert sketch.cdf(torch.tensor([50.0])).item() == 1.0


@pytest.mark.parametrize("q", [0.05, 0.5, 0.8, 0.97])
def test_quantile_inverts_cdf_and_agrees_with_sorting(q):
    sketch = ConfidenceSketch(3)
    values, classes = scores()
    sketch.update(values, classes)
    quantile = sketch.quantile(q)
    torch.testing.assert_close(sketch.cdf(quantile), torch.full((3,), q).double(), atol=5e-4, rtol=0)
    for c in range(3):
        assert abs(quantile[c] - torch.quantile(values[classes == c].double(), q)) <= sketch.bin_width


@pytest.mark.parametrize("value", [-84.0, -20.0, 0.0, 3.0, 36.03, 50.0, float("inf")])
def test_ties_never_select_nothing(value):
    sketch = ConfidenceSketch(1)
    sketch.update(torch.full((1000,), value), torch.zeros(1000, dtype=torch.int64))
    for k in (1, 10, 500, 1000):
        threshold = kth_largest(sketch, k)
        assert threshold.item() <= value


def test_two_ties_give_the_nearer_share():
    sketch = ConfidenceSketch(1)
    values = torch.cat([torch.full((300,), 5.0), torch.full((700,), 2.0)])
    sketch.update(values, torch.zeros(1000, dtype=torch.int64))
    selected = [int((values >= kth_largest(sketch, k)).sum()) for k in (200, 300, 600, 700)]
    assert selected == [300, 300, 300, 1000]


def test_merging_any_split_equals_one_pass():
    values, classes = scores()
    whole = ConfidenceSketch(3)
    whole.update(values, classes)
    generator = torch.Generator().manual_seed(5)
    for parts in (2, 7, 40):
        merged = ConfidenceSketch(3)
        order = torch.randperm(len(values), generator=generator)
        for part in order.chunk(parts):
            piece = ConfidenceSketch(3)
            piece.update(values[part], classes[part])
            merged.merge(piece)
        assert torch.equal(merged.counts, whole.counts)
        assert torch.equal(merged.quantile(0.8), whole.quantile(0.8))


def test_state_dict_continues_where_it_was():
    values, classes = scores()
    straight, first = ConfidenceSketch(3), ConfidenceSketch(3)
    straight.update(values, classes)
    first.update(values[:15_000], classes[:15_000])
    resumed = ConfidenceSketch(3)
    resumed.load_state_dict(first.state_dict())
    resumed.update(values[15_000:], classes[15_000:])
    assert torch.equal(resumed.counts, straight.counts)
    resumed.reset()
    assert resumed.counts.sum() == 0


def test_absent_class_and_empty_update():
    sketch = ConfidenceSketch(2)
    sketch.update(torch.empty(0), torch.empty(0, dtype=torch.int64))
    sketch.update(torch.tensor([1.0]), torch.tensor([0]))
    assert sketch.quantile(0.5).isnan().tolist() == [False, True]
    assert sketch.cdf(torch.tensor(0.0)).isnan().tolist() == [False, True]


def test_errors():
    with pytest.raises(ValueError, match="`num_classes`: expected at least 1, got 0"):
        ConfidenceSketch(0)
    with pytest.raises(ValueError, match="`bins`"):
        ConfidenceSketch(1, bins=0)
    with pytest.raises(ValueError, match="`high`: expected a value above low"):
        ConfidenceSketch(1, low=1.0, high=1.0)
    sketch = ConfidenceSketch(2)
    with pytest.raises(TypeError, match="`scores`"):
        sketch.update(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="`classes`: expected an integer dtype"):
        sketch.update(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"`classes`: expected \(2,\), got \(3,\)"):
        sketch.update(torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="`classes`: expected device cpu"):
        sketch.update(torch.zeros(2), torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(TypeError, match="`other`"):
        sketch.merge("x")
    with pytest.raises(ValueError, match="`other`: expected num_classes = 2, got 3"):
        sketch.merge(ConfidenceSketch(3))
    with pytest.raises(ValueError, match="`q`: expected a value in"):
        sketch.quantile(1.5)
    with pytest.raises(TypeError, match="`q`"):
        sketch.quantile("half")
    with pytest.raises(ValueError, match=r"`scores`: expected \(\) or \(C,\)"):
        sketch.cdf(torch.zeros(3))
    with pytest.raises(TypeError, match="`scores`"):
        sketch.cdf(0.5)


@pytest.mark.parametrize("options", [{}, {"low": -20.0, "high": 36.04}, {"low": -7.3, "high": 9.1}])
def test_no_score_is_counted_above_an_edge_it_lies_below(options):
    """Scores a rounding below an edge: the threshold that should select them all must not be that edge."""
    sketch = ConfidenceSketch(1, **options)
    edges = sketch.low + sketch.bin_width * torch.arange(1, 8191, dtype=torch.float64)
    below = torch.nextafter(edges.float(), torch.tensor(-torch.inf))
    for part in below.split(97):
        sketch.reset()
        sketch.update(part, torch.zeros(len(part), dtype=torch.int64))
        lowest = kth_largest(sketch, len(part))
        assert lowest <= part.min()


def test_total_is_a_copy_and_nan_has_no_cdf():
    sketch = ConfidenceSketch(1)
    before = sketch.total()
    sketch.update(torch.ones(10), torch.zeros(10, dtype=torch.int64))
    assert before.sum() == 0
    assert sketch.cdf(torch.tensor(float("nan"))).shape == (1,)
