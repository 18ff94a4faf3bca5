"""Kernels against the plain path: on a CUDA device, or in Triton's interpreter when test_interpreter.py runs this file.

What may differ is float rounding, so a pixel within TOLERANCE of a bin's edge or of a threshold may fall on either
side; everything else must be equal.
"""

import os

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from selftrain_seg import kernels
from selftrain_seg.confidence import top_confidence
from selftrain_seg.confidence._scores import pixel_scores
from selftrain_seg.kernels import launch
from selftrain_seg.selectors import select_hard, select_reweighted, select_soft
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold
from tests.helpers import layouts, random_logits

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),  # its interpreter is NumPy, which warns of NaN
    *([] if INTERPRETED else [pytest.mark.gpu]),
]

TOLERANCE = 4e-6  # of 1 + |log-odds|


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "_enabled", True)


def plain(function, *arguments, **settings):
    kernels.enable(False)
    try:
        return function(*arguments, **settings)
    finally:
        kernels.enable()


def score_and_slack(logits):
    """Plain scores, NaN where unusable, and how far float rounding may move each."""
    score = plain(pixel_scores, logits).score
    return score, TOLERANCE * (1 + score.abs().nan_to_num(posinf=0.0))


def moved(view):
    """The view on the device under test, with the very strides it has."""
    memory = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage()).to(DEVICE)
    logits = memory.as_strided(view.shape, view.stride(), view.storage_offset())
    assert torch.equal(logits.cpu(), view)
    return logits


def compare_top(logits):
    assert kernels.chosen(logits)
    mine, expected = top_confidence(logits), plain(top_confidence, logits)
    usable = ~expected.log_confidence.isnan()
    assert mine.labels.dtype == torch.int64
    assert mine.labels.shape == expected.labels.shape
    assert torch.equal(mine.labels[usable], expected.labels[usable])
    assert bool(((mine.labels >= 0) & (mine.labels < logits.shape[1])).all())
    torch.testing.assert_close(mine.log_confidence, expected.log_confidence, rtol=2e-5, atol=1e-37, equal_nan=True)


def counted(logits, estimator=ClassBalancedThreshold, **settings):
    statistics = estimator(logits.shape[1], 0.5, **settings).to(logits.device)
    statistics.update(logits)
    statistics.update(logits)  # adds to what is there
    assert statistics.updates.tolist() == [2, 0]
    return statistics.sketch.counts


def compare_counts(logits):
    """At or above each bin's lower edge lie at least the pixels that surely do and at most those that may."""
    counts, expected = counted(logits), plain(counted, logits)
    assert counts.dtype == torch.int64
    assert torch.equal(counts.sum(dim=1), expected.sum(dim=1))
    score, slack = score_and_slack(logits)
    labels = plain(top_confidence, logits).labels
    sketch = ClassBalancedThreshold(logits.shape[1], 0.5).to(logits.device).sketch
    from_top = []
    for moved in (score - slack, score + slack):
        sketch.reset()
        sketch.update(moved, labels)
        from_top.append(2 * sketch.counts.flip(1).cumsum(1))
    mine = counts.flip(1).cumsum(1)
    assert bool(((from_top[0] <= mine) & (mine <= from_top[1])).all())


def compare_selected(mine, expected, sure):
    assert torch.equal(mine.labels[sure], expected.labels[sure])
    assert mine.labels.dtype == mine.predicted.dtype == torch.int64
    usable = expected.confidence > 0
    assert torch.equal(mine.predicted[usable], expected.predicted[usable])
    torch.testing.assert_close(mine.confidence, expected.confidence, rtol=2e-6, atol=1e-7)
    assert (mine.soft is None) == (expected.soft is None)
    assert mine.weight is None


def compare_selections(logits, thresholds, ignore_index=255):
    score, slack = score_and_slack(logits)
    bar = torch.logit(thresholds.to(logits.device, torch.float64).clamp(max=1.0))[plain(top_confidence, logits).labels]
    # The bar itself is lowered by some roundings, so leave room on both sides.
    sure = ~((score - bar).abs() <= 3 * slack)
    arguments, settings = (logits, thresholds), {"ignore_index": ignore_index}
    compare_selected(select_hard(*arguments, **settings), plain(select_hard, *arguments, **settings), sure)
    mine, expected = select_reweighted(*arguments, **settings), plain(select_reweighted, *arguments, **settings)
    # Which class wins is decided by the very same float32 numbers; whether it passes, by log1p of the rest.
    read = plain(pixel_scores, logits)
    weighted = read.gaps - thresholds.to(logits.device).double().clamp(max=1.0).log().view(-1, 1, 1)
    value = weighted.amax(dim=1)
    sure = ~((value - read.log_norm).abs() <= 3 * TOLERANCE * (1 + value.abs()))
    compare_selected(mine, expected, sure)
    mine, expected = select_soft(*arguments, **settings), plain(select_soft, *arguments, **settings)
    # Here the values come multiplied, in another order, so of two that lie close either may win.
    value, slack = value.clamp(max=1e4), 3 * TOLERANCE * (1 + value.abs().clamp(max=1e4))
    logsumexp = (4 * weighted.clamp(max=1e4)).logsumexp(1)
    sure = ~((logsumexp - 4 * read.log_norm).abs() <= 4 * slack)
    each = sure.unsqueeze(1).expand_as(expected.soft)
    assert mine.soft.stride() == expected.soft.stride()
    error = (mine.soft - expected.soft).abs() - 8 * slack.unsqueeze(1) * expected.soft
    assert not bool((error[each] > 1e-7).any()), error[each].max()
    clear = (weighted.clamp(max=1e4) > (value - slack).unsqueeze(1)).sum(1) <= 1
    compare_selected(mine, expected, sure & clear)


def compare_all(logits, seed=0):
    compare_top(logits)
    compare_counts(logits)
    generator = torch.Generator().manual_seed(seed)
    compare_selections(logits, torch.rand(logits.shape[1], generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 3, 19, 200, 256])
def test_classes_and_dtypes(classes, dtype):
    compare_all(random_logits(1, classes, 1, 41).to(DEVICE, dtype))


@pytest.mark.parametrize("alpha", [1e-6, 0.03, 1.0, 40.0, torch.inf])
def test_sharpness(alpha):
    logits, thresholds = random_logits(1, 19, 3, 41).to(DEVICE), torch.full((19,), 0.4)
    mine, expected = (f(select_soft, logits, thresholds, alpha=alpha) for f in (lambda f, *a, **k: f(*a, **k), plain))
    assert torch.equal(mine.labels, expected.labels)
    torch.testing.assert_close(mine.soft, expected.soft, rtol=1e-4, atol=1e-7)
    assert 0 < mine.soft.sum() <= 123.001


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 300), (2, 300, 1), (3, 7, 9), (1, 5, 129), (2, 16, 17)])
def test_sizes(size):
    batch, height, width = size
    compare_all(random_logits(batch, 19, height, width).to(DEVICE))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype):
    compare_all(moved(layouts(random_logits(2, 5, 7, 9).to(dtype))[layout]))


def views():
    """Views that are no memory format: crops, every other of something, broadcast, permuted."""
    base = random_logits(2, 6, 9, 14)
    return {
        "crop": base[:, :, 2:9, 3:16],
        "stride": base[:, :, ::4, ::4],
        "classes": base[:, 1::2],
        "images": base[1::2],
        "one image for all": base[:1].expand(2, -1, -1, -1),
        "one row for all": base[:, :, :1].expand(-1, -1, 5, -1),
        "one column for all": base[..., :1].expand(-1, -1, -1, 5),
        "one pixel for all": base[..., :1, :1].expand(-1, -1, 5, 7),
        "one class for all": base[:, :1].expand(-1, 4, -1, -1),
        "permuted": base.permute(2, 3, 0, 1),
        "mirrored": base.flip(-1),
        "offset": base.flatten()[1 : 1 + 2 * 3 * 5 * 7].view(2, 3, 5, 7),
    }


@pytest.mark.parametrize("name", views())
def test_views(name):
    compare_all(moved(views()[name]))


@pytest.mark.parametrize("shape", [(0, 19, 4, 4), (2, 19, 0, 4), (2, 19, 4, 0)])
def test_no_pixels(shape):
    compare_all(torch.zeros(shape, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_specials(classes, dtype):
    """Every combination of awkward values, one a pixel, for up to five classes (the others random)."""
    awkward = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 80.0, -80.0, 1.0])
    grid = torch.cartesian_prod(awkward, awkward).T.reshape(2, 8, 8)
    logits = random_logits(1, classes, 8, 8)
    for at in {(0, 1), (1, 0), (classes - 2, classes - 1)} if classes > 1 else {(0,)}:
        here = logits.clone()
        for row, channel in zip(grid, at, strict=False):
            here[0, channel] = row
        compare_top(here.to(DEVICE, dtype))
        compare_counts(here.to(DEVICE, dtype))
        compare_selections(here.to(DEVICE, dtype), torch.full((classes,), 0.7, dtype=torch.float64))


def test_unusable_pixels_are_never_counted_or_selected():
    logits = torch.zeros(1, 3, 1, 4, device=DEVICE)
    logits[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    logits[0, 1, 0, 2] = logits[0, 2, 0, 2] = -torch.inf
    assert top_confidence(logits).log_confidence.isnan().tolist() == [[[True, True, True, False]]]
    assert counted(logits).sum(dim=1).tolist() == [2, 0, 0]
    for select in (select_hard, select_reweighted, select_soft):
        selected = select(logits, torch.zeros(3))
        assert selected.labels.tolist() == [[[255, 255, 255, 0]]]
        assert selected.confidence[0, 0, :3].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("classes", [2, 19, 40])
def test_first_of_equals_wins(classes):
    logits = random_logits(1, classes, 5, 33).round().clamp(-1, 1).to(DEVICE)  # most pixels tie
    compare_all(logits)
    assert not top_confidence(torch.zeros_like(logits)).labels.any()
    # Two equal gains on two equal logits: the first again.
    compare_selections(logits, torch.full((classes,), 0.05, dtype=torch.float64))


def margins(values, classes):
    """Pixels won by changing classes by the given margins over one other, the rest far below."""
    values = torch.as_tensor(values, dtype=torch.float32)
    place = torch.arange(len(values))
    logits = torch.full((1, classes, 1, len(values)), -1e4)
    logits[0, place % classes, 0, place] = values
    logits[0, (place + 1) % classes, 0, place] = 0.0
    return logits.to(DEVICE)


def test_counts_are_equal_away_from_edges():
    """Margins in the middle of bins, from saturated to close: then not one pixel may be elsewhere."""
    middle = torch.arange(0.5, 44 * 128, 37.0) / 128
    logits = margins(middle, 3)
    assert torch.equal(counted(logits), plain(counted, logits))
    assert int(counted(logits).sum()) == 2 * len(middle)


@pytest.mark.parametrize("margin", [0.0, 60.0, 80.0, 87.0, 95.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 19])
def test_saturated(margin, classes):
    """Every pixel of a class in one bin. From 87 on a float32 exponential is subnormal, from 104 on 0."""
    logits = margins([margin + 1 / 256] * 270, classes)
    compare_top(logits)
    assert torch.equal(counted(logits), plain(counted, logits))
    for threshold in (1.0, 1 - 1e-12, 0.5, 0.0):
        compare_selections(logits, torch.full((classes,), threshold, dtype=torch.float64))


def test_one_bin_for_all():
    """The worst contention: a whole batch of one class in one bin, many programs and many groups in each."""
    logits = torch.zeros(3, 7, 40, 40, device=DEVICE)
    logits[:, 4] = 90.0
    counts = counted(logits)
    assert counts[4, -1] == counts.sum() == 2 * 3 * 40 * 40


def test_thresholds_of_every_kind():
    logits = random_logits(2, 5, 7, 9).to(DEVICE)
    for thresholds in (
        torch.tensor([0.0, 1.0, 0.5, 2.0, 1e-300], dtype=torch.float64),
        torch.tensor([0.3, torch.nan, 0.5, 0.2, 0.9], dtype=torch.float64),
        torch.tensor([0.3, -0.1, 0.5, 0.2, 0.9], dtype=torch.float32),
        torch.full((5,), 0.25, dtype=torch.bfloat16),
        torch.rand(10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))[::2],
    ):
        for ignore_index in (255, -1, 0, 2**40):
            compare_selections(logits, thresholds, ignore_index)


def test_a_threshold_keeps_its_own_pixels():
    """Statistics and selection by kernels or by the plain path, in any combination: the same portion."""
    logits = margins(torch.linspace(0.5, 43, 400), 2)
    for estimate in (lambda f, *a: f(*a), plain):
        statistics = ClassBalancedThreshold(2, 0.25).to(DEVICE)
        estimate(statistics.update, logits)
        for choose in (lambda f, *a: f(*a), plain):
            labels = choose(select_hard, logits, statistics.compute()).labels
            assert [int((labels == c).sum()) for c in range(2)] == [50, 50]


def test_estimators_and_stride():
    logits = random_logits(2, 5, 17, 23).to(DEVICE)
    for estimator in (ClassBalancedThreshold, GlobalThreshold):
        assert torch.equal(counted(logits, estimator, stride=4), plain(counted, logits, estimator, stride=4))


def forbid(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(launch, "_launch", refuse)


def test_falls_back(monkeypatch):
    forbid(monkeypatch)
    logits, prior = random_logits(1, 5, 4, 4).to(DEVICE), torch.ones(5, 4, 4, device=DEVICE)
    thresholds = torch.full((5,), 0.5)
    for call in (
        lambda: top_confidence(logits, prior=prior),
        lambda: top_confidence(logits.double()),
        lambda: top_confidence(torch.zeros(1, 257, 2, 2, device=DEVICE)),
        lambda: select_hard(logits, thresholds, prior=prior),
        lambda: select_reweighted(logits, thresholds, prior=prior),
        lambda: select_soft(logits, thresholds, prior=prior),
        lambda: counted(logits, pool="all"),
        lambda: counted(logits, exact=True),
        lambda: ClassBalancedThreshold(5, 0.5).to(DEVICE).update(logits, prior=prior),
    ):
        call()
    for call in (
        lambda: top_confidence(logits),
        lambda: select_hard(logits, thresholds),
        lambda: select_reweighted(logits, thresholds),
        lambda: select_soft(logits, thresholds),
        lambda: counted(logits),
    ):
        with pytest.raises(AssertionError, match="a kernel was launched"):
            call()


def test_compiled_functions_take_the_plain_path(monkeypatch):
    forbid(monkeypatch)
    logits, thresholds = random_logits(1, 5, 4, 4).to(DEVICE), torch.full((5,), 0.5)
    torch._dynamo.reset()
    top = torch.compile(top_confidence, fullgraph=True, backend="eager")(logits)
    assert torch.equal(top.labels, plain(top_confidence, logits).labels)
    for select in (select_hard, select_reweighted, select_soft):
        labels = torch.compile(select, fullgraph=True, backend="eager")(logits, thresholds).labels
        assert torch.equal(labels, plain(select, logits, thresholds).labels)


def test_traced_functions_take_the_plain_path(monkeypatch):
    forbid(monkeypatch)
    logits = random_logits(1, 5, 4, 4).to(DEVICE)
    graph = make_fx(lambda z: top_confidence(z).labels)(logits)
    assert torch.equal(graph(-logits), plain(top_confidence, -logits).labels)


def test_no_gradient_and_nothing_mutated():
    logits = random_logits(1, 5, 4, 4).to(DEVICE).requires_grad_()
    before = logits.detach().clone()
    outputs = [*top_confidence(logits), *select_hard(logits, torch.full((5,), 0.5))]
    counted(logits)
    assert not any(output.requires_grad for output in outputs if output is not None)
    assert torch.equal(logits, before)


@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(1, 5), st.integers(1, 40)),
    steps=st.tuples(*[st.integers(1, 3)] * 3),
    order=st.permutations(range(4)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.sampled_from([0.0, 1.0, 10.0, 60.0]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_and_strides(shape, steps, order, dtype, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    stored = [shape[axis] * ((1, *steps)[axis]) for axis in order]
    values = (scale * torch.randn(stored, generator=generator)).to(DEVICE, dtype)
    logits = values.permute([order.index(axis) for axis in range(4)])
    logits = logits[:, :: steps[0], :: steps[1], :: steps[2]]
    assert logits.shape == shape
    compare_all(logits, seed)


@pytest.mark.skipif(INTERPRETED, reason="4 GiB of logits are for a GPU")
def test_more_than_2_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    logits = torch.zeros(2, 2, 16400, 32800, device=DEVICE, dtype=torch.float16)  # 2.15e9 elements
    logits[1, 1, -1, -3:] = 3.0
    top = top_confidence(logits)
    assert top.labels.sum() == top.labels[1, -1, -3:].sum() == 3
    counts = counted(logits).sum(dim=1)
    assert counts.tolist() == [2 * (logits.numel() // 2 - 3), 6]
