"""The kernels against the plain implementations: on a CUDA device, or in Triton's interpreter.

``test_interpreter.py`` runs this file with ``SELFTRAIN_SEG_KERNELS=1`` and ``TRITON_INTERPRET=1``. What may differ is
float rounding, so a pixel within TOLERANCE of a bin's edge or of a threshold may fall on either side; everything else
must be equal.
"""

import os

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from selftrain_seg import losses, ops
from selftrain_seg.ops import counts, fairness, loss, mutual, negative, observing, reading, selection, soft_labels
from selftrain_seg.ops._thresholds import LARGE, log_gain
from selftrain_seg.selectors import FreeMatchSelector, select_hard, select_reweighted, select_soft
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.helpers import layouts, random_logits
from tests.losses.cases import make_labels, make_map, make_soft

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),  # its interpreter is NumPy, which warns of NaN
    pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning"),
    *([] if INTERPRETED else [pytest.mark.gpu]),
]
TOLERANCE = 4e-6  # of 1 + |log-odds|
LOW, WIDTH, BINS = -84.0, 1 / 128, 16384


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The kernels that a test has launched, by name; a test without any would compare the plain path with itself."""
    pytest.importorskip("triton")
    from selftrain_seg.ops.triton import _plan, launch, launch_loss, launch_state

    names, real = [], _plan.run

    def note(kernel, *args, **kwargs):
        names.append(kernel.fn.__name__ if hasattr(kernel, "fn") else kernel.__name__)
        return real(kernel, *args, **kwargs)

    for module in (launch, launch_loss):
        monkeypatch.setattr(module, "run", note)

    def note_one(kernel, *args, real=launch_state.launch_one, **kwargs):
        names.append(kernel.fn.__name__ if hasattr(kernel, "fn") else kernel.__name__)
        return real(kernel, *args, **kwargs)

    monkeypatch.setattr(launch_state, "launch_one", note_one)
    yield names
    assert names


def moved(view):
    """The view on the device under test, with the very strides it has."""
    memory = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage()).to(DEVICE)
    return memory.as_strided(view.shape, view.stride(), view.storage_offset())


def some_valid(logits, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((logits.shape[0], *logits.shape[2:]), generator=generator) < 0.8).to(DEVICE)


def compare_readings(logits, valid=None, relative_to=None):
    log = reading._read(logits, valid, None, True)[1]
    torch.testing.assert_close(log, reading._plain(logits, valid, None, True)[1], rtol=4e-6, atol=4e-6, equal_nan=True)
    mine, expected = reading._read(logits, valid, None), reading._plain(logits, valid, None)
    usable = ~expected[1].isnan()
    assert [part.dtype for part in mine] == [part.dtype for part in expected]
    assert torch.equal(mine[0][usable], expected[0][usable])
    assert bool(((mine[0] >= 0) & (mine[0] < logits.shape[1])).all())
    # Above 87 the sum of the others is subnormal, which a GPU's logarithm takes for 0.
    mine_score, score = (part[1].clamp(max=87.5) for part in (mine, expected))
    torch.testing.assert_close(mine_score, score, rtol=2e-6, atol=4e-6, equal_nan=True)
    for which in ([False] * 4, [True] * 4, [True, False, False, False], [False, False, True, True]):
        # A floor that no confidence is near.
        arguments = (logits, valid, relative_to, which, 0.4000123)
        mine, expected = observing._observe(*arguments), observing._plain(*arguments)
        assert [part.dtype for part in mine] == [part.dtype for part in expected]
        usable = expected[1] > 0
        assert torch.equal(mine[0][usable], expected[0][usable])
        for at in (1, 2, 3):
            torch.testing.assert_close(mine[at], expected[at], rtol=2e-5, atol=1e-4 if at == 2 else 1e-7)


def score_and_slack(logits, valid=None):
    score = reading._plain(logits, valid, None)[1]
    return score, TOLERANCE * (1 + score.abs().nan_to_num(posinf=0.0))


def compare_counts(logits, valid=None):
    """At or above each bin's lower edge lie at least the pixels that surely do and at most those that may."""
    found = [torch.zeros(logits.shape[1], BINS, dtype=torch.int64, device=DEVICE) for _ in range(2)]
    for each in found:
        for _ in range(2):  # adds to what is there
            count = counts._count if each is found[0] else counts._plain
            count(logits, each, valid, None, None, False, LOW, WIDTH)
    assert torch.equal(found[0].sum(dim=1), found[1].sum(dim=1))
    score, slack = score_and_slack(logits, valid)
    labels = reading._plain(logits, valid, None)[0]
    from_top = []
    for bound in (score - slack, score + slack):
        within = torch.zeros_like(found[0])
        index = counts.bin_index(bound, labels, (logits.shape[1], BINS), LOW, WIDTH)
        within += counts.tally(index, within.numel()).view_as(within)
        from_top.append(2 * within.flip(1).cumsum(1))
    mine = found[0].flip(1).cumsum(1)
    assert bool(((from_top[0] <= mine) & (mine <= from_top[1])).all())


def compare_selected(mine, expected, sure):
    labels, predicted, confidence = mine[:3]
    assert labels.dtype == predicted.dtype == torch.int64
    assert torch.equal(labels[sure], expected[0][sure])
    usable = expected[2] > 0
    assert torch.equal(predicted[usable], expected[1][usable])
    torch.testing.assert_close(confidence, expected[2], rtol=4e-6, atol=1e-7)


def compare_selections(logits, thresholds, valid=None, ignore_index=255):
    score, slack = score_and_slack(logits, valid)
    thresholds = thresholds.to(DEVICE)
    bar = torch.logit(thresholds.double().clamp(max=1.0))[reading._plain(logits, valid, None)[0]]
    sure = ~((score - bar).abs() <= 3 * slack)
    arguments = (logits, thresholds, False, valid, None, ignore_index)
    compare_selected(selection._select(*arguments), selection._plain(*arguments), sure)
    # Whether the best class passes is decided by log1p of the rest, which of two close ones is best by rounding.
    gaps, log_norm = ops.pixel_scores(logits, valid)[2:4]
    weighted = gaps + log_gain(thresholds, None).view(-1, 1, 1)
    value, slack = weighted.amax(dim=1), 3 * TOLERANCE * (1 + weighted.amax(dim=1).abs().clamp(max=1e4))
    clear = ~((weighted > (value - slack).unsqueeze(1)).sum(1) > 1)
    sure = ~((value - log_norm).abs() <= slack)
    arguments = (logits, thresholds, True, valid, None, ignore_index)
    compare_selected(selection._select(*arguments), selection._plain(*arguments), sure & clear)
    alpha = torch.tensor([0.25], dtype=torch.float64, device=DEVICE)
    arguments = (logits, thresholds, alpha, valid, None, ignore_index)
    mine, expected = soft_labels._soften(*arguments), soft_labels._plain(*arguments)
    sure = ~(((4 * weighted).logsumexp(1) - 4 * log_norm).abs() <= 4 * slack)
    each = sure.unsqueeze(1).expand_as(expected[3])
    assert mine[3].stride() == expected[3].stride()
    error = (mine[3] - expected[3]).abs() - 8 * slack.unsqueeze(1) * expected[3]
    assert not bool((error[each] > 1e-7).any()), error[each].max()
    compare_selected(mine, expected, sure & clear)


def compare_all(logits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    thresholds = torch.rand(logits.shape[1], generator=generator, dtype=torch.float64)
    for valid in (None, some_valid(logits)):
        compare_readings(logits, valid)
        compare_counts(logits, valid)
        compare_selections(logits, thresholds, valid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_classes_and_dtypes(classes, dtype):
    compare_all(random_logits(1, classes, 1, 41).to(DEVICE, dtype))


def test_more_classes_than_are_unrolled():
    compare_all(random_logits(1, 70, 1, 41).to(DEVICE))


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 300), (2, 300, 1), (3, 7, 9), (2, 16, 17)])
def test_sizes(size):
    batch, height, width = size
    compare_all(random_logits(batch, 5, height, width).to(DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
def test_layouts(layout, dtype):
    compare_all(moved(layouts(random_logits(2, 4, 3, 5).to(dtype))[layout]))


def views():
    """Views that are no memory format: crops, every other of something, broadcast, permuted."""
    base = random_logits(2, 4, 5, 7)
    return {
        "crop": base[:, :, 1:4, 2:6],
        "stride": base[:, :, ::2, ::3],
        "classes": base[:, 1::2],
        "images": base[1::2],
        "one image for all": base[:1].expand(2, -1, -1, -1),
        "one row for all": base[:, :, :1].expand(-1, -1, 5, -1),
        "one pixel for all": base[..., :1, :1].expand(-1, -1, 5, 7),
        "one class for all": base[:, :1].expand(-1, 4, -1, -1),
        "permuted": base.permute(2, 3, 0, 1),
        "offset": base.flatten()[1 : 1 + 2 * 3 * 5 * 7].view(2, 3, 5, 7),
    }


@pytest.mark.parametrize("name", views())
def test_views(name):
    logits = moved(views()[name])
    compare_all(logits)
    for target in targets(logits):
        compare_loss(logits, target, "entropy", (1.0, 0.3, 0.7))


def test_relative_to_what_is_usual():
    logits, usual = random_logits(2, 5, 3, 9).to(DEVICE), torch.tensor([0.9, 0.1, 1e-40, 0.3, 0.0], dtype=torch.float64)
    compare_readings(logits, relative_to=usual.to(DEVICE))
    usual[2:] = 0.3
    assert not torch.equal(ops.observe(logits, relative_to=usual.to(DEVICE)).labels, logits.argmax(1))


@pytest.mark.parametrize("alpha", [1e-6, 0.03, 1.0, 40.0])
def test_sharpness(alpha):
    logits, thresholds = random_logits(1, 19, 3, 41).to(DEVICE), torch.full((19,), 0.4, device=DEVICE)
    arguments = (logits, thresholds, torch.tensor([alpha], device=DEVICE), None, None, 255)
    mine, expected = soft_labels._soften(*arguments), soft_labels._plain(*arguments)
    assert torch.equal(mine[0], expected[0])
    torch.testing.assert_close(mine[3], expected[3], rtol=1e-4, atol=1e-7)
    assert 0 < mine[3].sum() <= 123.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_specials(classes, dtype):
    """Every pair of awkward values, one a pixel, in three pairs of classes (the others random)."""
    awkward = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 80.0, -80.0, 1.0])
    grid = torch.cartesian_prod(awkward, awkward).T.reshape(2, 8, 8)
    logits = random_logits(1, classes, 8, 8)
    for at in {(0, 1), (1, 0), (classes - 2, classes - 1)} if classes > 1 else {(0,)}:
        here = logits.clone()
        for row, channel in zip(grid, at, strict=False):
            here[0, channel] = row
        here = here.to(DEVICE, dtype)
        compare_readings(here)
        compare_counts(here)
        compare_selections(here, torch.full((classes,), 0.7, dtype=torch.float64))


@pytest.mark.parametrize("classes", [2, 19])
def test_first_of_equals_wins(classes):
    logits = random_logits(1, classes, 5, 33).round().clamp(-1, 1).to(DEVICE)  # most pixels tie
    arguments = (logits, torch.full((classes,), 0.05, device=DEVICE), True, None, None, 255)
    for mine, expected in zip(selection._select(*arguments), selection._plain(*arguments), strict=True):
        torch.testing.assert_close(mine, expected, rtol=4e-6, atol=1e-7)
    assert not reading._read(torch.zeros_like(logits), None, None)[0].any()


@pytest.mark.parametrize("margin", [0.0, 60.0, 80.0, 87.0, 95.0, 1000.0])
def test_saturated(margin):
    """Every pixel of a class in one bin. From 87 on a float32 exponential is subnormal, from 104 on 0."""
    place = torch.arange(270)
    logits = torch.full((1, 3, 1, 270), -1e4)
    logits[0, place % 3, 0, place], logits[0, (place + 1) % 3, 0, place] = margin + 1 / 256, 0.0
    logits = logits.to(DEVICE)
    compare_readings(logits)
    compare_counts(logits)
    for threshold in (1.0, 1 - 1e-12, 0.5, 0.0):
        compare_selections(logits, torch.full((3,), threshold, dtype=torch.float64))


def test_saturated_and_masked_classes_are_weighed_against_the_largest():
    """Not against another logit: 20 + 1e-12 is 20, and -1e9 + 3 is -1e9."""
    logits = torch.tensor([[-20.0, 20.0, -18.0], [-1e9, 3.0, 2.0], [torch.finfo().min, 3.0, 2.0]]).T.reshape(1, 3, 1, 3)
    sure = torch.full((3,), 1 - 1e-12, dtype=torch.float64, device=DEVICE)
    hard = torch.tensor([0.9, 0.9, 0.2], dtype=torch.float64, device=DEVICE)
    for thresholds, wanted in ((sure, [1, 255, 255]), (hard, [1, 2, 2])):
        arguments = (logits.to(DEVICE), thresholds, True, None, None, 255)
        assert selection._select(*arguments)[0].flatten().tolist() == wanted
        assert selection._plain(*arguments)[0].flatten().tolist() == wanted


def test_thresholds_beyond_one_of_zero_and_nan():
    logits = random_logits(1, 3, 4, 9).to(DEVICE)
    for values in ([0.0, 0.5, 1.0], [2.0, 0.3, 1e-300], [0.5, float("nan"), 0.5]):
        thresholds = torch.tensor(values, dtype=torch.float64, device=DEVICE)
        compare_selections(logits, thresholds)
    nan = selection._select(logits, thresholds, True, None, None, 255)
    assert (nan[0] == 255).all()
    zero = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64, device=DEVICE)
    assert (selection._select(logits - torch.tensor([0, LARGE / 2, 0]).view(3, 1, 1).to(DEVICE), zero, True, None, None,
                              255)[0] == 1).all()  # fmt: skip


REGULARISERS = ("", "kld", "entropy", "square", "reverse")


def targets(logits):
    """Hard labels, and soft ones that do not sum to 1, on the device under test."""
    soft = make_soft(logits.shape) * (0.1 + make_map(logits.shape)).unsqueeze(1)
    return make_labels(logits.shape).to(DEVICE), soft.to(DEVICE, torch.float32)


def weights_for(logits, seed=3):
    """Pixel, image and class weights, exponents a pixel, in float32."""
    shape, generator = (logits.shape[0], *logits.shape[2:]), torch.Generator().manual_seed(seed)
    drawn = [torch.rand(size, generator=generator).to(DEVICE) for size in (shape, shape[:1], logits.shape[1:2], shape)]
    drawn[1][-1] = 0.0
    return drawn


def compare_loss(
    logits, target, regulariser="kld", factors=(1.0, 0.3, 0.0), *, weights=(None,) * 4, divisor=None,
    normalize="labelled", ignore_index=255, atol=2e-5,
):  # fmt: skip
    factors = (factors[0], factors[1] if regulariser else 0.0, factors[2])
    numbers, which = torch.tensor(factors, dtype=torch.float64), [bool(factor) for factor in factors]
    arguments = (logits, target, *weights, divisor, numbers, regulariser, which, normalize, ignore_index)
    mine, expected = loss._forward(*arguments), loss._forward_in_blocks(*arguments)
    assert [part.shape for part in mine] == [part.shape for part in expected]
    torch.testing.assert_close(mine[0], expected[0], rtol=2e-5, atol=atol, equal_nan=True)
    torch.testing.assert_close(mine[1], expected[1], rtol=1e-6, atol=0)
    grad = make_map((logits.shape[0], 1, *logits.shape[2:])).float().to(DEVICE)
    for given in (grad,) if normalize == "none" else (torch.tensor(0.7, device=DEVICE),):
        arguments = (given, logits, target, *weights, *expected[1:], regulariser, which, ignore_index)
        gradient, wanted = loss._backward(*arguments), loss._backward_in_blocks(*arguments)
        assert gradient.stride() == wanted.stride()
        rounding = 2 * torch.finfo(gradient.dtype).eps
        torch.testing.assert_close(gradient, wanted, rtol=1e-4 + rounding, atol=2e-5, equal_nan=True)
    return mine


@pytest.mark.parametrize("regulariser", REGULARISERS)
@pytest.mark.parametrize("factors", [(1.0, 0.3, 0.0), (1.0, 0.3, 0.7), (0.0, 1.0, 0.0), (0.5, 0.0, 3.0)])
def test_loss(regulariser, factors):
    logits = random_logits(2, 5, 3, 41).to(DEVICE)
    for target in targets(logits):
        weights = weights_for(logits)
        if target.ndim == 4:  # class weights and exponents are those of a label
            weights = [*weights[:2], None, None]
        for normalize in ("labelled", "all", "weights", "sum", "none"):
            compare_loss(logits, target, regulariser, factors, weights=weights, normalize=normalize, atol=2e-4)
        compare_loss(logits, target, regulariser, factors, divisor=torch.tensor(77, device=DEVICE))
        compare_loss(logits, target, regulariser, factors, divisor=torch.tensor(0, device=DEVICE), atol=2e-4)


def test_each_weight_alone():
    logits = random_logits(2, 5, 3, 41).to(DEVICE)
    weights, labels = weights_for(logits), targets(logits)[0]
    without = compare_loss(logits, labels)[0]
    for number, weight in enumerate(weights):
        alone = [weight if each == number else None for each in range(4)]
        assert compare_loss(logits, labels, weights=alone)[0] != without
    by_image = torch.tensor([2.0, 0.0], device=DEVICE)
    compare_loss(logits, labels, weights=(None, None, None, by_image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 19, 70])
def test_loss_of_classes_and_dtypes(classes, dtype):
    logits = random_logits(1, classes, 3, 7).to(DEVICE, dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for target in targets(logits):
            compare_loss(logits.contiguous(memory_format=memory_format), target, "square", (1.0, 0.3, 0.7))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_label_dtypes(dtype):
    logits = random_logits(1, 5, 3, 7).to(DEVICE)
    for ignore_index in {0, torch.iinfo(dtype).min, min(255, torch.iinfo(dtype).max)}:
        labels = make_labels(logits.shape, ignore_index=ignore_index).to(DEVICE, dtype)
        compare_loss(logits, labels, ignore_index=ignore_index)
    many = random_logits(1, 200, 2, 3).to(DEVICE)  # as uint8 an ignore_index of -100 would be 156
    compare_loss(many, torch.full((1, 2, 3), 156, dtype=torch.uint8, device=DEVICE), ignore_index=-100)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_soft_label_dtypes(dtype):
    logits = random_logits(1, 5, 3, 7).to(DEVICE)
    compare_loss(logits, make_soft(logits.shape, dtype=dtype).to(DEVICE))


def test_layouts_of_logits_and_labels():
    logits, soft = random_logits(1, 5, 5, 9), make_soft((1, 5, 5, 9), dtype=torch.float32)
    for one in layouts(logits).values():
        compare_loss(moved(one), moved(soft))
    for other in layouts(soft).values():
        compare_loss(moved(logits.contiguous(memory_format=torch.channels_last)), moved(other))
    labels = make_labels((4, 5, 12, 18)).to(DEVICE)
    compare_loss(logits.to(DEVICE), labels[3:, 1:6, ::2])
    compare_loss(logits.to(DEVICE), labels[:1, :1, :9].expand(-1, 5, -1), "square")


@pytest.mark.parametrize("regulariser", REGULARISERS)
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_special_logits_of_a_loss(classes, regulariser):
    """Every pair of awkward values, one pair a pixel, at a labelled and at an ignored pixel."""
    awkward = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 80.0, -80.0, 1.0])
    logits = random_logits(2, classes, 7, 7)
    for row, channel in zip(torch.cartesian_prod(awkward, awkward).T.reshape(2, 7, 7), (0, classes - 1), strict=True):
        logits[:, channel] = row
    labels = torch.tensor([0, 255], device=DEVICE)[:, None, None].expand(2, 7, 7)
    for rest, memory_format in ((0.0, torch.contiguous_format), (0.7, torch.channels_last)):
        here = logits.contiguous(memory_format=memory_format).to(DEVICE)
        compare_loss(here, labels, regulariser, (1.0, 0.3, rest), normalize="none")


def compare_mutual(logits, labels, confidence, *, is_pseudo=None, flip=False, normalize="labelled"):
    gammas = torch.tensor([1.5, 0.5], dtype=torch.float64)
    arguments = (logits, labels, confidence, is_pseudo, gammas, flip, normalize, 255)
    mine, expected = mutual._forward(*arguments), mutual._plain(*arguments)
    assert [part.shape for part in mine] == [part.shape for part in expected]
    assert [part.dtype for part in mine] == [part.dtype for part in expected]
    torch.testing.assert_close(mine[:3], expected[:3], rtol=2e-5, atol=2e-5, equal_nan=True)
    assert torch.equal(mine[3], expected[3])
    learned = expected[3] != 255
    torch.testing.assert_close(mine[4][learned], expected[4][learned], rtol=2e-5, atol=2e-5, equal_nan=True)
    return mine


EVERY_WAY = [
    (torch.float32, 2, torch.channels_last),
    (torch.float32, 19, torch.contiguous_format),
    (torch.float16, 5, torch.contiguous_format),
    (torch.bfloat16, 19, torch.channels_last),
    (torch.bfloat16, 70, torch.contiguous_format),
    (torch.float32, 70, torch.channels_last),
]


@pytest.mark.parametrize(("dtype", "classes", "memory_format"), EVERY_WAY)
def test_mutual(dtype, classes, memory_format):
    logits = random_logits(2, classes, 2, 15).contiguous(memory_format=memory_format).to(DEVICE, dtype)
    labels, confidence = make_labels(logits.shape).to(DEVICE), make_map(logits.shape).float().to(DEVICE)
    some, sums = torch.tensor([True, False], device=DEVICE), []
    for is_pseudo, flip, normalize in ((None, False, "all"), (None, True, "labelled"), (some, True, "none")):
        mine = compare_mutual(logits, labels, confidence, is_pseudo=is_pseudo, flip=flip, normalize=normalize)
        sums.append(mine[4][labels != 255].sum().item())
    assert len(set(sums)) == len(sums)  # every option changes something


def test_mutual_of_special_logits():
    awkward = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 80.0, -80.0, 1.0])
    logits = random_logits(2, 5, 7, 7)
    for row, channel in zip(torch.cartesian_prod(awkward, awkward).T.reshape(2, 7, 7), (0, 4), strict=True):
        logits[:, channel] = row
    labels = torch.tensor([0, 255], device=DEVICE)[:, None, None].expand(2, 7, 7)
    confidence = make_map(logits.shape).float().to(DEVICE)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        here = logits.contiguous(memory_format=memory_format).to(DEVICE)
        compare_mutual(here, labels, confidence, normalize="none", flip=True)


def compare_negative(logits, probs, weight=None):
    for reduction in ("mean", "sum", "none"):
        arguments = (logits, probs, weight, torch.tensor([0.5], dtype=torch.float64), reduction)
        mine, expected = negative._forward(*arguments), negative._forward_in_blocks(*arguments)
        assert [(part.shape, part.dtype) for part in mine] == [(part.shape, part.dtype) for part in expected]
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=2e-5, equal_nan=True)
        grad = make_map((logits.shape[0], 1, *logits.shape[2:])).float().to(DEVICE)
        grad = grad if reduction == "none" else torch.tensor(0.7, device=DEVICE)
        arguments = (grad, logits, probs, weight, expected[1])
        gradient, wanted = negative._backward(*arguments), negative._backward_in_blocks(*arguments)
        assert gradient.stride() == wanted.stride()
        rounding = 2 * torch.finfo(gradient.dtype).eps
        torch.testing.assert_close(gradient, wanted, rtol=2e-5 + rounding, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize(("dtype", "classes", "memory_format"), EVERY_WAY)
def test_negative(dtype, classes, memory_format):
    logits = random_logits(2, classes, 2, 15).contiguous(memory_format=memory_format).to(DEVICE, dtype)
    weight = make_map(logits.shape).float().to(DEVICE)
    probs = random_logits(2, classes, 2, 15, seed=4).softmax(1).to(DEVICE, dtype)
    probs[0, :, 0, :5] = 1.0  # no class takes part, and the weight is not looked at
    weight[0, 0, :5] = torch.nan
    compare_negative(logits, probs)
    compare_negative(logits, probs, weight)


@pytest.mark.parametrize(("dtype", "classes", "memory_format"), EVERY_WAY)
def test_fairness(dtype, classes, memory_format):
    logits = random_logits(2, classes, 3, 75).contiguous(memory_format=memory_format).to(DEVICE, dtype)
    probs, counts = torch.linspace(0.1, 1, classes, device=DEVICE), torch.arange(1, classes + 1, device=DEVICE)
    counts[2:3] = 0  # a class that was never seen
    factor, rounding, slopes = torch.tensor([0.5], dtype=torch.float64), 2 * torch.finfo(dtype).eps, []
    for mask, histogram in (
        (None, counts),
        (some_valid(logits), counts.double()),
        (some_valid(logits) & False, counts),
    ):
        spoilt = logits if mask is None else logits.masked_fill(~mask.unsqueeze(1), torch.nan)
        arguments = (spoilt, probs, histogram, mask, factor)
        mine, expected = fairness._forward(*arguments), fairness._forward_in_blocks(*arguments)
        assert [(part.shape, part.dtype) for part in mine] == [(part.shape, part.dtype) for part in expected]
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=1e-6, equal_nan=True)
        arguments = (torch.tensor(0.7, device=DEVICE), spoilt, mask, *expected[1:])
        gradient, wanted = fairness._backward(*arguments), fairness._backward_in_blocks(*arguments)
        assert gradient.stride() == wanted.stride()
        torch.testing.assert_close(gradient, wanted, rtol=2e-5 + rounding, atol=1e-7)
        slopes.append(mine[1].abs().sum().item())
    assert slopes[2] == 0 < min(slopes[:2])
    assert slopes[0] != slopes[1]


def test_negative_of_special_logits():
    awkward = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 95.0, -95.0, 1e-3])
    logits = torch.cartesian_prod(awkward, awkward).T.reshape(1, 2, 7, 7).to(DEVICE)
    for first in (0.2, 0.5, 1.0):
        probs = torch.tensor([first, 1 - first], device=DEVICE).view(1, 2, 1, 1).expand(1, 2, 7, 7)
        compare_negative(logits, probs)


def test_labels_out_of_range_are_nan_not_memory():
    logits = random_logits(1, 5, 1, 4).to(DEVICE).requires_grad_()
    for dtype in (torch.int64, torch.int32):
        labels = torch.tensor([[[5, -7, 2, 2**31 - 1]]], device=DEVICE, dtype=dtype)
        value = losses.mrkld_loss(logits, labels, reduction="none")
        assert value.isnan().tolist() == [[[True, True, False, True]]]
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.isnan().all(1).tolist() == [[[True, True, False, True]]]


@pytest.mark.parametrize("ignore_index", [255, 5])
def test_labels_out_of_range_are_nan_in_both_passes_of_the_mutual_loss(ignore_index):
    """They are handed from one pass to the other and must not become ignored ones, even if those have the label C."""
    logits = random_logits(1, 5, 1, 4).to(DEVICE).requires_grad_()
    labels = torch.tensor([[[99, -7, 2, ignore_index]]], device=DEVICE)
    confidence = torch.ones(1, 1, 4, device=DEVICE)
    value = losses.dynamic_mutual_loss(
        logits, labels, confidence, gamma_agree=1.0, gamma_disagree=0.0, ignore_index=ignore_index, reduction="none"
    )
    assert value.isnan().tolist() == [[[True, True, False, False]]]
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.isnan().all(1).tolist() == [[[True, True, False, False]]]


def test_nothing_valid_is_a_connected_zero():
    logits = torch.full((1, 4, 3, 5), torch.nan, device=DEVICE, requires_grad=True)
    for target in (torch.full((1, 3, 5), 255, device=DEVICE), torch.zeros(1, 4, 3, 5, device=DEVICE)):
        value = losses.mrent_loss(logits, target)
        assert value == 0
        assert not torch.autograd.grad(value, logits)[0].any()


def test_one_gradient_for_all_pixels_is_read_as_one():
    logits = random_logits(2, 5, 7, 9).to(DEVICE).requires_grad_()
    value = losses.mrkld_loss(logits, targets(logits)[0], reduction="none")
    one = torch.tensor(0.3, device=DEVICE).expand_as(value)
    rows = torch.linspace(0, 1, 9, device=DEVICE).expand_as(value)
    for grad in (one, rows):
        (gradient,) = torch.autograd.grad(value, logits, grad, retain_graph=True)
        (expected,) = torch.autograd.grad(value, logits, grad.contiguous(), retain_graph=True)
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0)])
def test_no_pixels(shape):
    logits = torch.zeros(shape, device=DEVICE, requires_grad=True)
    for target in targets(logits):
        value = losses.mrkld_loss(logits, target)
        assert value == 0
        assert torch.autograd.grad(value, logits)[0].shape == shape
    assert select_soft(logits, 0.5).soft.shape == shape
    compare_readings(logits.detach())
    compare_counts(logits.detach())


def test_compiled_functions_launch_the_same_kernels(launched):
    logits, labels = random_logits(1, 5, 4, 4).to(DEVICE).requires_grad_(), make_labels((1, 5, 4, 4)).to(DEVICE)
    estimator, selector = ClassBalancedThreshold(5, 0.4).to(DEVICE), FreeMatchSelector(5).to(DEVICE)

    def step(logits, labels):
        estimator.update(logits)
        chosen = select_hard(logits, 0.5), select_reweighted(logits, 0.5), selector(logits)
        return losses.mrkld_loss(logits, labels), [pseudo.labels for pseudo in chosen]

    value, chosen = step(logits, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    eager, counted = list(launched), estimator.sketch.counts.clone()
    selector.reset()
    launched.clear()
    torch._dynamo.reset()
    value_, chosen_ = torch.compile(step, fullgraph=True, backend="aot_eager")(logits, labels)
    (gradient_,) = torch.autograd.grad(value_, logits)
    assert launched == eager
    assert len(launched) == 8
    assert torch.equal(estimator.sketch.counts, 2 * counted)
    assert all(map(torch.equal, chosen, chosen_))
    torch.testing.assert_close((value_, gradient_), (value, gradient), rtol=0, atol=0)


def test_no_gradient_nothing_mutated_and_the_same_again():
    logits = random_logits(1, 5, 4, 4).to(DEVICE).requires_grad_()
    before = logits.detach().clone()
    first, second = (select_soft(logits, 0.5) for _ in range(2))
    assert torch.equal(first.soft, second.soft)
    assert not first.soft.requires_grad
    for target in targets(logits):
        kept = target.clone()
        one, two = (compare_loss(logits.detach(), target) for _ in range(2))
        assert all(map(torch.equal, one, two))
        assert torch.equal(target, kept)
    assert torch.equal(logits, before)


@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
@hypothesis.given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 20), st.integers(1, 5), st.integers(1, 40)),
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
def test_more_than_2_to_the_31_elements(launched):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        launched.append("none")  # is no failure here
        pytest.skip("needs 24 GiB of GPU memory")
    logits = torch.zeros(2, 2, 16400, 32800, device=DEVICE, dtype=torch.float16)  # 2.15e9 elements
    logits[1, 1, -1, -3:] = 3.0
    labels = ops.read(logits).labels
    assert labels.sum() == labels[1, -1, -3:].sum() == 3
    estimator = ClassBalancedThreshold(2, 0.5).to(DEVICE)
    estimator.update(logits)
    assert estimator.class_counts().tolist() == [2 * (logits.numel() // 2 - 3) // 2, 3]
