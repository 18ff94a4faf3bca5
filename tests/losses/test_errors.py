"""Every line of Raises."""

import pytest
import torch

from selftrain_seg import losses, value_checks
from tests.losses.cases import (
    CASES,
    every_loss,
    loss_with_hard_labels,
    losses_where,
    make_labels,
    make_logits,
    make_soft,
)

SHAPE = (2, 4, 3, 5)


def cases_with(name):
    return losses_where(lambda case: name in case.parameters)


def second(case):
    return list(case.parameters)[1]


@every_loss
def test_logits(case):
    logits, *rest = case.inputs(SHAPE)
    with pytest.raises(TypeError, match=r"`logits`: expected a torch.Tensor, got list"):
        case.function([1.0], *rest, **case.settings)
    with pytest.raises(ValueError, match=r"`logits`: expected \(B, C, H, W\), got \(4, 3, 5\)"):
        case.function(logits[0], *rest, **case.settings)
    with pytest.raises(TypeError, match=r"`logits`: expected a floating-point dtype, got torch.int64"):
        case.function(logits.long(), *rest, **case.settings)
    with pytest.raises(
        ValueError, match=r"`logits`: expected at least two classes on dimension 1, got 0 in \(2, 0, 3, 5\)"
    ):
        case.function(logits[:, :0], *rest, **case.settings)


@every_loss
def test_target(case):
    logits, target, *rest = case.inputs(SHAPE)
    name = second(case)
    with pytest.raises(TypeError, match=f"`{name}`: expected a torch.Tensor, got NoneType"):
        case.function(logits, None, *rest, **case.settings)
    with pytest.raises(ValueError, match=rf"`{name}`: expected .*, got \({target.shape[0] - 1}"):
        case.function(logits, target[1:], *rest, **case.settings)
    with pytest.raises(ValueError, match=f"`{name}`: expected device cpu, got meta"):
        case.function(logits, target.to("meta"), *rest, **case.settings)
    if case.target is make_labels:
        with pytest.raises(ValueError, match=rf"`{name}`: expected \(B, H, W\) = \(2, 3, 5\), got \(2, 3, 4\)"):
            case.function(logits, target[..., 1:], *rest, **case.settings)
        with pytest.raises(ValueError, match=rf"got \(2, 6, 10\); `selftrain_seg.as_logits\(output, size={name}\)`"):
            case.function(logits, torch.zeros(2, 6, 10, dtype=target.dtype), *rest, **case.settings)
        with pytest.raises(TypeError, match=f"`{name}`: expected an integer dtype, got torch.bool"):
            case.function(logits, target == 0, *rest, **case.settings)
    elif target.ndim == 4:
        with pytest.raises(ValueError, match=r"expected \(B, C, H, W\) = \(2, 4, 3, 5\), got \(2, 3, 3, 5\)"):
            case.function(logits, target[:, 1:], *rest, **case.settings)


@cases_with("labels")
def test_floating_point_labels(case):
    logits, _, *rest = case.inputs(SHAPE)
    with pytest.raises(
        TypeError, match=r"`labels`: expected an integer dtype(, got|, or soft labels \(B, C, H, W\), got)"
    ):
        case.function(logits, make_labels(SHAPE).double(), *rest, **case.settings)


def test_integer_soft_labels():
    with pytest.raises(TypeError, match=r"expected a floating-point dtype, got torch.int64"):
        losses.negative_loss(make_logits(), torch.ones(SHAPE, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`labels`: expected \(B, H, W\) = \(2, 3, 5\), got \(2, 4, 3, 5\)"):
        losses.cross_entropy(make_logits(), torch.ones(SHAPE, dtype=torch.int64))


@loss_with_hard_labels
def test_values_are_checked_on_demand(case):
    logits, target, *rest = case.inputs(SHAPE)
    target[0, 0, 0] = 4
    with (
        value_checks(),
        pytest.raises(ValueError, match=r"`labels`: expected values in \[0, 4\) or ignore_index 255, got 4"),
    ):
        case.function(logits, target, *rest, **case.settings)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
@pytest.mark.parametrize("name", ["mrkld_loss", "mrent_loss", "mrl2_loss", "cross_entropy", "negative_loss"])
def test_soft_values_are_checked_on_demand(name, value):
    function, soft = getattr(losses, name), make_soft(SHAPE)
    soft[0, 0, 0, 0] = value
    function(make_logits(), soft)
    with value_checks(), pytest.raises(ValueError, match=f"expected values of at least 0, got {value}"):
        function(make_logits(), soft)
    with value_checks():
        function(make_logits(), make_soft(SHAPE))


@cases_with("pixel_weight")
def test_pixel_weight(case):
    inputs = case.inputs(SHAPE)
    with pytest.raises(TypeError, match=r"`pixel_weight`: expected a torch.Tensor, got float"):
        case.function(*inputs, **case.settings, pixel_weight=0.5)
    with pytest.raises(ValueError, match=r"`pixel_weight`: expected \(B, H, W\) = \(2, 3, 5\), got \(3, 5\)"):
        case.function(*inputs, **case.settings, pixel_weight=torch.ones(3, 5))
    with pytest.raises(ValueError, match="`pixel_weight`: expected device cpu"):
        case.function(*inputs, **case.settings, pixel_weight=torch.ones(2, 3, 5, device="meta"))


@cases_with("image_weight")
def test_image_weight(case):
    inputs = case.inputs(SHAPE)
    with pytest.raises(TypeError, match=r"`image_weight`: expected a torch.Tensor"):
        case.function(*inputs, image_weight=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"`image_weight`: expected \(B,\) = \(2,\), got \(3,\)"):
        case.function(*inputs, image_weight=torch.ones(3))
    with pytest.raises(ValueError, match="`image_weight`: expected device cpu"):
        case.function(*inputs, image_weight=torch.ones(2, device="meta"))


@cases_with("is_pseudo")
def test_is_pseudo(case):
    inputs = case.inputs(SHAPE)
    with pytest.raises(TypeError, match=r"`is_pseudo`: expected a torch.Tensor"):
        case.function(*inputs, **case.settings, is_pseudo=True)
    with pytest.raises(TypeError, match=r"`is_pseudo`: expected dtype torch.bool, got torch.int64"):
        case.function(*inputs, **case.settings, is_pseudo=torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`is_pseudo`: expected \(B,\) = \(2,\), got \(1,\)"):
        case.function(*inputs, **case.settings, is_pseudo=torch.tensor([True]))


@cases_with("reduction")
def test_reduction(case):
    with pytest.raises(ValueError, match="`reduction`: expected one of 'none', 'mean', 'sum', got 'avg'"):
        case.function(*case.inputs(SHAPE), **case.settings, reduction="avg")


@cases_with("normalize")
def test_normalize(case):
    words = ", ".join(map(repr, case.normalizers))
    for normalize in ("both", None):
        with pytest.raises(ValueError, match=f"`normalize`: expected one of {words}, got {normalize!r}"):
            case.function(*case.inputs(SHAPE), **{**case.settings, "normalize": normalize})


@cases_with("valid")
def test_valid(case):
    inputs, valid = case.inputs(SHAPE), torch.ones(2, 3, 5, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"`valid`: expected a torch.Tensor, got bool"):
        case.function(*inputs, normalize="all", valid=True)
    with pytest.raises(TypeError, match=r"`valid`: expected dtype torch.bool, got torch.float32"):
        case.function(*inputs, normalize="all", valid=valid.float())
    with pytest.raises(ValueError, match=r"`valid`: expected \(B, H, W\) = \(2, 3, 5\), got \(3, 5\)"):
        case.function(*inputs, normalize="all", valid=valid[0])
    with pytest.raises(ValueError, match="`valid`: expected device cpu, got meta"):
        case.function(*inputs, normalize="all", valid=valid.to("meta"))
    for reduction in ("none", "mean", "sum"):
        with pytest.raises(ValueError, match="`normalize`: expected 'all' with `valid`, got 'labelled'"):
            case.function(*inputs, valid=valid, reduction=reduction)


@pytest.mark.parametrize(
    ("function", "name", "low", "high"),
    [
        ("mrkld_loss", "reg_weight", -0.1, None),
        ("mrent_loss", "reg_weight", -0.1, None),
        ("mrl2_loss", "reg_weight", -0.1, None),
        ("region_guided_loss", "confident_weight", -0.1, None),
        ("region_guided_loss", "ignored_weight", -0.1, None),
        ("dynamic_loss", "gamma", -0.1, None),
        ("dynamic_mutual_loss", "gamma_agree", -0.1, None),
        ("dynamic_mutual_loss", "gamma_disagree", -0.1, None),
        ("negative_loss", "loss_weight", -0.1, None),
        ("symmetric_loss", "alpha", -0.1, None),
        ("symmetric_loss", "beta", -0.1, None),
        ("symmetric_loss", "log_zero", None, 0.1),
        ("fairness_loss", "loss_weight", -0.1, None),
    ],
)
def test_numbers(function, name, low, high):
    (case, *_) = [case for case in CASES if case.name == function]

    def call(**changed):
        return case.function(*case.inputs(SHAPE), **{**case.settings, **changed})

    for value in (low, high, float("nan")):
        if value is not None:
            with pytest.raises(ValueError, match=f"`{name}`: expected a value in"):
                call(**{name: value})
    for value in ("0.1", None, True):
        with pytest.raises(TypeError, match=f"`{name}`: expected a number"):
            call(**{name: value})


def test_confidence():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    gammas = {"gamma_agree": 1.0, "gamma_disagree": 1.0}
    with pytest.raises(TypeError, match=r"`confidence`: expected a torch.Tensor, got float"):
        losses.dynamic_mutual_loss(logits, labels, 0.5, **gammas)
    with pytest.raises(ValueError, match=r"`confidence`: expected \(B, H, W\) = \(2, 3, 5\), got \(2, 4, 3, 5\)"):
        losses.dynamic_mutual_loss(logits, labels, logits, **gammas)


@pytest.mark.parametrize("position", [1, 2])
def test_class_values(position):
    arguments = [make_logits(SHAPE), torch.ones(4), torch.ones(4)]
    name = ("running_probs", "running_histogram")[position - 1]
    arguments[position] = torch.ones(5)
    with pytest.raises(ValueError, match=rf"`{name}`: expected \(C,\) = \(4,\), got \(5,\)"):
        losses.fairness_loss(*arguments)
    arguments[position] = 1.0
    with pytest.raises(TypeError, match=f"`{name}`: expected a torch.Tensor"):
        losses.fairness_loss(*arguments)
    with pytest.raises(ValueError, match=r"`class_weight`: expected \(C,\) = \(4,\), got \(5,\)"):
        losses.class_weighted_loss(make_logits(SHAPE), make_labels(SHAPE), torch.ones(5))
    with pytest.raises(TypeError, match=r"`class_weight`: expected a torch.Tensor"):
        losses.class_weighted_loss(make_logits(SHAPE), make_labels(SHAPE), [1.0] * 4)


def test_mask():
    arguments = make_logits(SHAPE), torch.ones(4), torch.ones(4)
    with pytest.raises(TypeError, match=r"`mask`: expected dtype torch.bool, got torch.float32"):
        losses.fairness_loss(*arguments, mask=torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"`mask`: expected \(B, H, W\) = \(2, 3, 5\), got \(2, 3\)"):
        losses.fairness_loss(*arguments, mask=torch.ones(2, 3, dtype=torch.bool))


def test_focal_class_weight():
    with pytest.raises(TypeError, match=r"`running_confidence`: expected a torch.Tensor"):
        losses.focal_class_weight([0.5])
    with pytest.raises(ValueError, match=r"`running_confidence`: expected \(C,\), got \(2, 3\)"):
        losses.focal_class_weight(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"`running_confidence`: expected a floating-point dtype, got torch.int64"):
        losses.focal_class_weight(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`exponent`: expected a value in"):
        losses.focal_class_weight(torch.ones(3), exponent=-1.0)
    with pytest.raises(TypeError, match=r"`exponent`: expected a number"):
        losses.focal_class_weight(torch.ones(3), exponent="3")
