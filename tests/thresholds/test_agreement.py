"""Reliability of classes from two label maps, and the portions that follow from it."""

import math

import numpy as np
import pytest
import torch

from selftrain_seg.losses import class_weighted_loss
from selftrain_seg.selectors import select_hard
from selftrain_seg.thresholds import ClassAgreement, ClassBalancedThreshold, reliable_portion
from tests.helpers import layouts, never_waits, random_logits
from tests.oracles import portions as oracle

NAN = math.nan


def maps(seed, *, classes=5, dtype=torch.int64, low=-1, high=7):
    generator = torch.Generator().manual_seed(seed)
    labels, other = torch.randint(low, high, (2, 3, 6, 7), generator=generator)
    other = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, other)
    labels[labels == classes - 1], other[0, 0] = 0, 255  # the last class is never labelled, but in the other map
    return labels.to(dtype), other.to(dtype)


@pytest.mark.parametrize("measure", ["precision", "iou"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_agreement_is_the_oracle(measure, dtype):
    agreement, seen = ClassAgreement(5), ([], [])
    for seed in range(3):
        labels, other = maps(seed, dtype=dtype, low=0 if dtype == torch.uint8 else -1)
        before = labels.clone(), other.clone()
        agreement.update(labels, layouts(other[None])["strided"][0])
        assert torch.equal(labels, before[0])
        assert torch.equal(other, before[1])
        seen[0].extend(labels.flatten().tolist())
        seen[1].extend(other.flatten().tolist())
    found = agreement.compute(measure=measure)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, oracle.agreement(*seen, 5, measure), rtol=1e-12)
    assert found[4].isnan() if measure == "precision" else found[4] == 0


def test_agreement_without_pixels_ignored_maps_and_after_reset():
    agreement = ClassAgreement(3)
    assert agreement.compute().isnan().all()
    agreement.update(torch.zeros(0, 4, 4).long(), torch.zeros(0, 4, 4).long())
    agreement.update(torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), 255))
    agreement.update(torch.full((1, 4, 4), -1), torch.zeros(1, 4, 4).long())
    assert agreement.compute().isnan().all()
    agreement.update(torch.zeros(1, 4, 4).long(), torch.zeros(1, 4, 4).long())
    assert agreement.compute().nan_to_num(-1).tolist() == [1.0, -1.0, -1.0]
    agreement.reset()
    assert agreement.compute().isnan().all()


def test_merged_agreements_are_one_pass():
    parts, whole = [ClassAgreement(5) for _ in range(2)], ClassAgreement(5)
    for seed, part in enumerate(parts):
        part.update(*maps(seed))
        whole.update(*maps(seed))
    parts[0].merge(parts[1])
    for name in ("both", "first", "second"):
        assert torch.equal(getattr(parts[0], name), getattr(whole, name))
    with pytest.raises(ValueError, match="`other`: expected num_classes = 5, got 4"):
        whole.merge(ClassAgreement(4))
    with pytest.raises(TypeError, match="`other`: expected a ClassAgreement, got dict"):
        whole.merge({})


def test_agreement_is_saved_mid_stream(tmp_path):
    straight, first = ClassAgreement(5), ClassAgreement(5)
    for seed in range(2):
        straight.update(*maps(seed))
    first.update(*maps(0))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = ClassAgreement(5)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.update(*maps(1))
    assert torch.equal(resumed.compute(measure="iou"), straight.compute(measure="iou"))


@pytest.mark.parametrize(
    ("labels", "other", "error", "message"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).long(), TypeError, "`labels`: expected an integer dtype"),
        (torch.zeros(2, 2).long(), torch.zeros(2, 2).long(), ValueError, r"`labels`: expected \(B, H, W\)"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2), TypeError, "`other`: expected an integer dtype"),
        (torch.zeros(2, 2, 2).long(), torch.zeros(1, 2, 2).long(), ValueError, r"`other`: expected \(2, 2, 2\)"),
        (
            torch.zeros(1, 2, 2).long(),
            torch.zeros(1, 2, 2, device="meta").long(),
            ValueError,
            "`other`: expected device",
        ),
    ],
)
def test_bad_maps(labels, other, error, message):
    with pytest.raises(error, match=message):
        ClassAgreement(3).update(labels, other)
    with pytest.raises(ValueError, match="`measure`: expected one of 'precision', 'iou', got 'dice'"):
        ClassAgreement(3).compute(measure="dice")
    with pytest.raises(ValueError, match="`num_classes`"):
        ClassAgreement(1)


@pytest.mark.parametrize("portion", [1.0, 0.3, 0.0])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 0.9), (0.0, 1e-9)])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_reliable_portion_is_the_oracle(portion, low, high, power):
    reliability = [0.0, 0.2, 0.5, 0.61, 0.9, 1.0, NAN]
    for unknown in (0.0, 0.4):
        found = reliable_portion(
            portion, torch.tensor(reliability, dtype=torch.float64), low=low, high=high, power=power, unknown=unknown
        )
        expected = [oracle.reliable(portion, r, low, high, power, unknown) for r in reliability]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert found.dtype == torch.float64


def test_reliable_portions_are_bounded_monotone_and_by_class():
    reliability = torch.linspace(-0.5, 1.5, 101)  # beyond what a reliability can be
    found = reliable_portion(0.7, reliability, low=0.3, high=0.8, power=2.0)
    assert (found.diff() >= 0).all()
    assert (found[0], found[-1]) == (0.0, 0.7)
    by_class = reliable_portion(torch.tensor([0.7, 0.2]), torch.tensor([1.0, 0.5], dtype=torch.bfloat16))
    assert by_class.tolist() == [0.7, 0.1]
    compiled = torch.compile(reliable_portion, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(0.7, reliability, low=0.3, high=0.8, power=2.0), found)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"portion": 1.1}, ValueError, "`portion`: expected a value in"),
        ({"portion": "all"}, TypeError, "`portion`: expected a number"),
        ({"portion": torch.ones(3)}, ValueError, r"`portion`: expected a number or \(C,\) = \(2,\), got \(3,\)"),
        ({"portion": torch.ones(2).long()}, TypeError, "`portion`: expected a floating-point dtype"),
        ({"reliability": [1.0, 0.5]}, TypeError, "`reliability`: expected a torch.Tensor"),
        ({"reliability": torch.ones(2).long()}, TypeError, "`reliability`: expected a floating-point dtype"),
        ({"reliability": torch.ones(2, 2)}, ValueError, r"`reliability`: expected \(C,\), got \(2, 2\)"),
        ({"low": -0.1}, ValueError, "`low`"),
        ({"low": 0.9, "high": 0.9}, ValueError, r"`high`: expected a value in \(0.9, 1.0\]"),
        ({"power": 0.0}, ValueError, "`power`"),
        ({"unknown": 2.0}, ValueError, "`unknown`"),
    ],
)
def test_bad_arguments_of_reliable_portion(change, error, message):
    arguments = {"portion": 0.5, "reliability": torch.ones(2), **change}
    with pytest.raises(error, match=message):
        reliable_portion(arguments.pop("portion"), arguments.pop("reliability"), **arguments)


def test_a_class_that_does_not_agree_with_itself_yields_little():
    logits = random_logits(2, 3, 60, 60)
    labels = logits.argmax(1)
    other = labels.clone()
    other[labels == 2] = 0  # class 2 is another one in the second view
    other[:, :12][labels[:, :12] == 1] = 0  # and a part of class 1
    agreement, kc = ClassAgreement(3), ClassBalancedThreshold(3, 0.5)
    agreement.update(labels, other)
    kc.update(logits)
    chosen = select_hard(logits, kc.compute(reliable_portion(0.5, agreement.compute()))).labels
    share = torch.tensor([(chosen == c).sum() / (labels == c).sum() for c in range(3)])
    torch.testing.assert_close(share, (0.5 * agreement.compute()).float(), atol=2e-3, rtol=0)
    assert share[2] == 0


def test_portion_one_teaches_the_border_between_reliable_classes():
    """Two classes meet in the middle, sure inside and unsure at the border; a third one is unreliable."""
    place = torch.linspace(-4, 4, 81)
    logits = torch.stack([place, -place, torch.full_like(place, -9.0)]).view(1, 3, 1, 81)
    logits[0, 2, 0, 60:] = place[60:] + 0.1 * torch.arange(21)
    kc = ClassBalancedThreshold(3, 0.3)
    kc.update(logits)
    border = slice(36, 45)
    assert (select_hard(logits, kc.compute()).labels[0, 0, border] == 255).all()
    portions = reliable_portion(1.0, torch.tensor([0.95, 0.9, 0.4]), low=0.3, high=0.9)
    labels = select_hard(logits, kc.compute(portions)).labels[0, 0]
    assert torch.equal(labels[border], logits.argmax(1)[0, 0, border])
    assert (labels == 2).sum() == 3  # a sixth of 21 pixels, its most confident ones
    assert torch.equal(labels[:60], logits.argmax(1)[0, 0, :60])


def test_reliability_as_a_soft_weight_of_every_pixel():
    """Instead of a cut: all pixels are labelled, and those of a class without reliability teach nothing."""
    logits = random_logits(2, 3, 8, 8).requires_grad_()
    labels = select_hard(logits, 0.0).labels
    assert (labels != 255).all()
    reliability = torch.tensor([0.9, NAN, 0.5])
    class_weighted_loss(logits, labels, reliability.nan_to_num(nan=0.0)).backward()
    alone = torch.autograd.grad(class_weighted_loss(logits, labels, torch.ones(3)), logits)[0]
    expected = alone * torch.tensor([0.9, 0.0, 0.5])[labels].unsqueeze(1)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.gpu
def test_on_the_gpu():
    labels, other = (value.cuda() for value in maps(0))
    agreement = ClassAgreement(5).cuda()
    with never_waits():
        agreement.update(labels, other)
        portions = reliable_portion(0.5, agreement.compute())
    here = ClassAgreement(5)
    here.update(*maps(0))
    torch.testing.assert_close(portions.cpu(), reliable_portion(0.5, here.compute()))
