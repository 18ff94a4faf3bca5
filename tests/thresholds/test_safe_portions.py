"""Floors, caps on shares, portions that shrink, precision on labelled images; portions of 0 and of one pool."""

import math
import random

import numpy as np
import pytest
import torch

from selftrain_seg.selectors import select_hard, select_reweighted
from selftrain_seg.thresholds import (
    ClassBalancedThreshold,
    GlobalThreshold,
    PortionSchedule,
    PrecisionThreshold,
    aligned_portion,
    apply_floor,
    cautious_portion,
)
from tests.helpers import layouts, never_waits, random_logits
from tests.oracles import portions as oracle

NAN = math.nan
SCHEDULE = PortionSchedule(0.2, 0.1, 0.5)


def fed(estimator, logits, portion=0.5, **options):
    kc = estimator(logits.shape[1], portion, **options)
    kc.update(logits)
    return kc


@pytest.mark.parametrize("estimator", [ClassBalancedThreshold, GlobalThreshold])
@pytest.mark.parametrize("small", ["none", "all"])
@pytest.mark.parametrize("rank", ["last_in", "first_out"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("with_prior", [False, True])
def test_portion_0_selects_nothing_of_its_class(estimator, small, rank, exact, with_prior):
    logits = random_logits(2, 3, 20, 20)
    prior = 0.5 + torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) if with_prior else None
    kc = fed(estimator, logits, torch.tensor([0.0, 0.4, 1.0]), small=small, rank=rank, exact=exact, prior=prior)
    thresholds = kc.compute()
    assert thresholds[0] == (math.inf if with_prior else 1.0)
    labels = select_hard(logits, thresholds, prior=prior).labels
    assert not (labels == 0).any()
    assert (labels == 1).any()
    assert torch.equal(thresholds[1:2], kc.compute(0.4)[1:2])
    assert torch.equal(thresholds[2:], kc.compute(1.0)[2:])


@pytest.mark.parametrize("exact", [False, True])
def test_one_pool_with_a_portion_for_each_class(exact):
    logits = random_logits(2, 4, 30, 30)
    kc = fed(GlobalThreshold, logits, 0.3, exact=exact)
    shares = [0.1, 0.3, 0.0, 1.0]
    expected = [kc.compute(share)[0] if share else 1.0 for share in shares]
    assert kc.compute(torch.tensor(shares)).tolist() == expected
    assert kc.compute(torch.full((4,), 0.3)).tolist() == kc.compute().tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_floor_is_the_oracle(dtype):
    thresholds = torch.tensor([0.2, 0.99, 1.0, 0.0, NAN]).to(dtype)
    before = thresholds.clone()
    assert apply_floor(thresholds, 0.5).nan_to_num(-1).tolist() == [
        max(value, 0.5) if value == value else -1 for value in thresholds.tolist()
    ]
    floor = torch.tensor([0.5, 0.5, NAN, 1.0, 0.5], dtype=torch.float64)
    found = apply_floor(thresholds, floor)
    assert found.dtype == torch.float64
    assert found.nan_to_num(-1).tolist() == [0.5, float(thresholds[1]), 1.0, 1.0, -1.0]
    assert torch.equal(thresholds.nan_to_num(), before.nan_to_num())
    assert apply_floor(torch.tensor([math.inf, 1.4]), 0.9).tolist() == [math.inf, pytest.approx(1.4)]  # with a prior


def test_with_a_floor_of_a_half_no_class_overrules_the_most_probable():
    logits = random_logits(2, 5, 40, 40, scale=1.0) - torch.arange(5.0).view(-1, 1, 1)
    kc = fed(ClassBalancedThreshold, logits, 0.9).compute()
    assert not torch.equal(select_reweighted(logits, kc).labels, select_hard(logits, kc).labels)
    kc = apply_floor(kc, 0.5)
    assert torch.equal(select_reweighted(logits, kc).labels, select_hard(logits, kc).labels)
    chosen = select_hard(logits, kc)
    assert chosen.confidence[chosen.labels != 255].min() >= 0.5


def test_bad_floors():
    with pytest.raises(ValueError, match=r"`floor`: expected a value in \[0.0, 1.0\], got 1.5"):
        apply_floor(torch.ones(3), 1.5)
    with pytest.raises(ValueError, match=r"`floor`: expected a number or \(C,\) = \(3,\), got \(2,\)"):
        apply_floor(torch.ones(3), torch.ones(2))
    with pytest.raises(TypeError, match="`floor`: expected a floating-point dtype"):
        apply_floor(torch.ones(3), torch.ones(3).long())
    with pytest.raises(TypeError, match="`floor`: expected a number"):
        apply_floor(torch.ones(3), None)
    with pytest.raises(TypeError, match=r"`thresholds`: expected a torch.Tensor, got float"):
        apply_floor(0.5, 0.5)
    with pytest.raises(TypeError, match="`thresholds`: expected a floating-point dtype"):
        apply_floor(torch.ones(3).long(), 0.5)
    with pytest.raises(ValueError, match=r"`thresholds`: expected \(C,\)"):
        apply_floor(torch.ones(3, 1), 0.5)


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 10.0, 1e6])
def test_aligned_portions_are_the_oracle(factor):
    draw = random.Random(0)  # noqa: S311
    for _ in range(40):
        classes = draw.randint(2, 6)
        predicted = [draw.choice([0, 1, 7, 50, 400, 10**6]) for _ in range(classes)]
        source = [draw.choice([0, 1, 9, 30, 10**5]) for _ in range(classes)]
        portions = torch.tensor([draw.choice([0.0, 0.1, 0.5, 1.0]) for _ in range(classes)], dtype=torch.float64)
        found = aligned_portion(portions, torch.tensor(predicted), torch.tensor(source), factor=factor)
        wanted = [p * n for p, n in zip(portions.tolist(), predicted, strict=True)]
        expected = oracle.aligned(wanted, source, factor)
        assert found.isfinite().all()
        assert (found <= portions).all()
        np.testing.assert_allclose(found * torch.tensor(predicted), expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(found[torch.tensor(predicted) == 0], portions[torch.tensor(predicted) == 0])


def test_no_class_exceeds_its_share_and_all_else_stays():
    predicted = torch.tensor([500.0, 300.0, 40.0, 160.0])
    source = torch.tensor([0.5, 0.38, 0.004, 0.116], dtype=torch.float64)
    labels = aligned_portion(0.3, predicted, source, factor=2.0) * predicted
    assert (labels / labels.sum() <= 2.0 * source * (1 + 1e-12)).all()
    assert labels[2] / labels.sum() == pytest.approx(0.008)
    torch.testing.assert_close(labels[[0, 1, 3]], (0.3 * predicted[[0, 1, 3]]).double())
    same = aligned_portion(0.3, predicted, 7 * source, factor=2.0)  # only ratios count
    torch.testing.assert_close(same * predicted, labels)
    none = aligned_portion(0.3, predicted, torch.tensor([1.0, 1.0, 0.0, 1.0]), factor=5.0)
    assert none.tolist() == [0.3, 0.3, 0.0, 0.3]


def test_degenerate_counts():
    nothing, some = torch.zeros(3).long(), torch.tensor([1, 2, 3])
    assert aligned_portion(0.3, nothing, some).tolist() == [0.3] * 3
    assert aligned_portion(0.3, some, nothing).tolist() == [0.0] * 3
    assert aligned_portion(0.0, some, some).tolist() == [0.0] * 3
    assert aligned_portion(0.3, torch.tensor([0, 9, 0]), some, factor=1.0).tolist() == [0.3] * 3
    huge = torch.tensor([2**62, 2**40, 1])
    assert aligned_portion(0.5, huge, huge, factor=1.0) == pytest.approx([0.5] * 3)
    compiled = torch.compile(aligned_portion, fullgraph=True, backend="eager")
    predicted = torch.tensor([5, 90, 400])
    torch.testing.assert_close(compiled(0.3, predicted, some), aligned_portion(0.3, predicted, some))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"factor": 0.9}, ValueError, "`factor`"),
        ({"factor": math.inf}, ValueError, "`factor`"),
        ({"predicted_counts": [1, 2]}, TypeError, "`predicted_counts`: expected a torch.Tensor"),
        ({"predicted_counts": torch.ones(2, 2)}, ValueError, r"`predicted_counts`: expected \(C,\)"),
        ({"source_counts": torch.ones(2).bool()}, TypeError, "`source_counts`: expected counts"),
        ({"source_counts": torch.ones(3)}, ValueError, r"`source_counts`: expected \(C,\) = \(2,\), got \(3,\)"),
        ({"portion": -0.1}, ValueError, "`portion`"),
        ({"portion": torch.ones(3)}, ValueError, "`portion`: expected a number or"),
    ],
)
def test_bad_arguments_of_aligned_portion(change, error, message):
    arguments = {"portion": 0.5, "predicted_counts": torch.ones(2), "source_counts": torch.ones(2), **change}
    with pytest.raises(error, match=message):
        aligned_portion(**arguments)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([44.0], 0.2),
        ([44.0, 45.0], 0.3),
        ([44.0, 44.0], 0.3),  # not lowered
        ([44.0, 43.0], 0.1),
        ([44.0, 43.0, 43.5], 0.05),  # below the best, though above the last
        ([44.0, 43.0, 46.0], 0.15),
        ([44.0, 45.0, 46.0, 47.0, 48.0], 0.5),  # the schedule's largest
        ([44.0, NAN], 0.1),
        ([NAN, 44.0], 0.3),
        ([44.0, np.float32("nan")], 0.1),
        ([44.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0.01),  # the least
    ],
)
def test_cautious_portions(scores, expected):
    assert cautious_portion(scores, SCHEDULE) == expected


def test_options_of_cautious_portions():
    assert cautious_portion([44.0, 43.6], SCHEDULE, tolerance=0.5) == 0.3
    assert cautious_portion([44.0, 43.6, 43.3], SCHEDULE, tolerance=0.5) == 0.15  # measured from the best
    assert cautious_portion([44.0, 40.0], SCHEDULE, shrink=1.0) == 0.2
    assert cautious_portion([44.0, 40.0], SCHEDULE, shrink=0.1, least=0.05) == 0.05
    assert cautious_portion([44.0, 40.0], SCHEDULE, least=0.9) == 0.2  # never above the schedule
    assert cautious_portion((44, 45), SCHEDULE) == 0.3
    for call, error, name in [
        (lambda: cautious_portion([], SCHEDULE), ValueError, "scores"),
        (lambda: cautious_portion("44", SCHEDULE), TypeError, "scores"),
        (lambda: cautious_portion(44.0, SCHEDULE), TypeError, "scores"),
        (lambda: cautious_portion([44.0, "x"], SCHEDULE), TypeError, r"scores\[1\]"),
        (lambda: cautious_portion([44.0], 0.2), TypeError, "schedule"),
        (lambda: cautious_portion([44.0], SCHEDULE, shrink=0.0), ValueError, "shrink"),
        (lambda: cautious_portion([44.0], SCHEDULE, tolerance=-1.0), ValueError, "tolerance"),
        (lambda: cautious_portion([44.0], SCHEDULE, least=0.0), ValueError, "least"),
    ]:
        with pytest.raises(error, match=f"`{name}`: expected"):
            call()


def labelled(seed, dtype=torch.float32):
    logits = random_logits(2, 4, 12, 13, seed=seed, scale=2.0) - torch.tensor([0.0, 0.0, 0.0, 30.0]).view(-1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    labels = logits.softmax(1).permute(0, 2, 3, 1).flatten(0, 2)
    labels = torch.multinomial(labels, 1, generator=generator).view(2, 12, 13)
    labels[logits.argmax(1) == 2] = 1  # class 2 is never right
    labels[0, 0], logits[0, 0, 1, 1] = 255, NAN
    return logits.to(dtype), labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_precision_thresholds_are_the_oracle(dtype, layout):
    kc, seen = PrecisionThreshold(4), [[] for _ in range(4)]
    for seed in range(3):
        logits, labels = labelled(seed, dtype)
        kc.update(layouts(logits)[layout], labels.to(torch.uint8))
        for z, truth in zip(logits.double().permute(0, 2, 3, 1).flatten(0, 2), labels.flatten().tolist(), strict=True):
            if truth == 255 or z.isnan().any():
                continue
            winner = int(z.argmax())
            others = torch.cat([z[:winner], z[winner + 1 :]])
            odds = float(z[winner] - others.logsumexp(0))
            seen[winner].append((math.floor(odds * 128) / 128, truth == winner))  # the lower edge of its bin
    for precision in (0.5, 0.8, 0.9, 0.97):
        found = kc.compute(precision)
        assert found.dtype == torch.float64
        assert found[2:].tolist() == [1.0, 1.0]
        for c in range(2):
            expected = oracle.precision_threshold(seen[c], precision)
            assert torch.logit(found[c]).item() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(kc.compute(), kc.compute(0.9))


def test_labels_above_a_precision_floor_are_right_that_often():
    kc = PrecisionThreshold(4, precision=0.9)
    for seed in range(3):
        kc.update(*labelled(seed))
    right = chosen = 0
    for seed in range(3):
        logits, labels = labelled(seed)
        loose = fed(ClassBalancedThreshold, logits, 1.0).compute()
        pseudo = select_hard(logits, apply_floor(loose, kc.compute())).labels
        known = (pseudo != 255) & (labels != 255)
        right, chosen = right + int((pseudo == labels)[known].sum()), chosen + int(known.sum())
    assert chosen > 100
    assert right >= 0.9 * chosen


def test_state_of_precision_thresholds(tmp_path):
    straight, first, other = (PrecisionThreshold(4) for _ in range(3))
    straight.update(*labelled(0))
    straight.update(*labelled(1))
    first.update(*labelled(0))
    other.update(*labelled(1))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = PrecisionThreshold(4)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.merge(other)
    assert torch.equal(resumed.compute(), straight.compute())
    assert resumed.updates == 2
    resumed.reset()
    with pytest.raises(ValueError, match="`compute`: expected at least one call of update before, got none"):
        resumed.compute()
    resumed.update(torch.zeros(0, 4, 2, 2), torch.zeros(0, 2, 2).long())
    assert resumed.compute().tolist() == [1.0] * 4


def test_bad_arguments_of_precision_thresholds():
    logits, labels = labelled(0)
    kc = PrecisionThreshold(4)
    with pytest.raises(ValueError, match="`precision`"):
        PrecisionThreshold(4, precision=0.0)
    with pytest.raises(ValueError, match="`num_classes`"):
        PrecisionThreshold(1)
    with pytest.raises(TypeError, match="`labels`: expected an integer dtype"):
        kc.update(logits, labels.float())
    with pytest.raises(ValueError, match=r"`labels`: expected \(B, H, W\)"):
        kc.update(logits, labels[:1])
    with pytest.raises(ValueError, match="`logits`: expected 4 classes"):
        kc.update(logits[:, :3], labels)
    with pytest.raises(TypeError, match="`other`: expected a PrecisionThreshold, got ClassBalancedThreshold"):
        kc.merge(ClassBalancedThreshold(4, 0.5))
    with pytest.raises(ValueError, match="`other`: expected num_classes = 4, got 3"):
        kc.merge(PrecisionThreshold(3))
    kc.update(logits, labels)
    with pytest.raises(ValueError, match="`precision`"):
        kc.compute(1.1)


@pytest.mark.gpu
def test_on_the_gpu():
    logits, labels = labelled(0)
    here, there = PrecisionThreshold(4), PrecisionThreshold(4).cuda()
    here.update(logits, labels)
    with never_waits():
        there.update(logits.cuda(), labels.cuda())
        portions = aligned_portion(0.5, there.known.class_counts(), torch.ones(4, device="cuda"))
        floored = apply_floor(torch.full((4,), 0.6, device="cuda"), 0.9)
    torch.testing.assert_close(there.compute().cpu(), here.compute())
    torch.testing.assert_close(portions.cpu(), aligned_portion(0.5, here.known.class_counts(), torch.ones(4)))
    assert floored.tolist() == [0.9] * 4
