"""Nothing valid, NaN where it does not count, saturation, no pixels, odd label types."""

import pytest
import torch

from selftrain_seg import losses
from tests.losses.cases import (
    classes,
    every_loss,
    loss_and_gradient,
    loss_with_hard_labels,
    loss_with_nothing,
    make_labels,
    make_logits,
    variants,
)


@loss_with_nothing
def test_nothing_valid_is_a_connected_zero(case):
    shape = (2, 4, 3, 5)
    logits, _, *rest = case.inputs(shape)
    for settings in variants(case, shape):
        leaf = logits.clone().requires_grad_()
        loss = case.function(leaf, case.nothing(shape), *rest, **settings)
        assert torch.equal(loss, torch.zeros_like(loss))
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert torch.equal(gradient, torch.zeros_like(leaf))


@loss_with_nothing
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_ignored_pixels_are_not_looked_at(case, bad):
    shape = (2, 4, 3, 5)
    logits, target, *rest = case.inputs(shape)
    nothing = case.nothing(shape)
    away = make_labels(shape, seed=9) == 255
    target = torch.where(away if target.ndim == 3 else away[:, None], nothing, target)
    settings = {**case.settings}
    if "pixel_weight" in case.other:
        settings["pixel_weight"] = case.other["pixel_weight"](shape)
    loss, gradient = loss_and_gradient(case, logits, target, *rest, **settings)
    spoilt = torch.where(away[:, None], bad, logits)
    if "pixel_weight" in case.other:
        settings["pixel_weight"] = torch.where(away, bad, settings["pixel_weight"])
    for dtype in (torch.float64, torch.float32):
        loss, gradient = loss_and_gradient(case, logits.to(dtype), target, *rest, **settings)
        again, again_gradient = loss_and_gradient(case, spoilt.to(dtype), target, *rest, **settings)
        assert torch.equal(loss, again)
        assert torch.equal(gradient, again_gradient)
        assert torch.equal(again_gradient * away[:, None], torch.zeros_like(gradient))
        leaf = spoilt.to(dtype).requires_grad_()
        loss = case.function(leaf, target, *rest, **{**case.settings, **settings})
        (plain,) = torch.autograd.grad(loss, leaf, create_graph=True)
        torch.testing.assert_close(plain.detach(), gradient)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_else_is_not_looked_at(bad):
    shape = (2, 4, 3, 5)
    logits, labels = make_logits(shape), make_labels(shape)
    away = labels == 255
    spoilt = torch.where(away[:, None], bad, logits)

    def same(function, *args, **kwargs):
        leaves = [tensor.clone().requires_grad_() for tensor in (logits, spoilt)]
        results = [function(leaf, *args, **kwargs) for leaf in leaves]
        assert torch.equal(*results)
        gradients = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(results, leaves, strict=True)]
        assert torch.equal(*gradients)

    same(losses.region_guided_loss, labels, ignored_weight=0.0)
    probs, histogram = classes(shape), classes(shape, seed=6)
    same(losses.fairness_loss, probs, histogram, mask=~away)


def test_an_image_that_opts_out_may_have_an_infinite_regulariser():
    shape = (2, 4, 3, 5)
    logits, labels = make_logits(shape), make_labels(shape)
    logits[1, 3] = -torch.inf
    labels[1] = labels[1].where(labels[1] != 3, 0)
    leaf = logits.requires_grad_()
    assert losses.mrkld_loss(leaf, labels) == torch.inf
    loss = losses.mrkld_loss(leaf, labels, image_weight=torch.tensor([1.0, 0.0]))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


@every_loss
def test_a_nan_that_counts_is_not_hidden(case):
    logits, target, *rest = case.inputs((1, 4, 2, 3))
    logits[0, 2, 1, 1] = torch.nan
    if case.target is make_labels:
        target[0, 1, 1] = 2
    elif target.ndim == 4:
        target[0, :, 1, 1] = 0.25
    loss, gradient = loss_and_gradient(case, logits, target, *rest)
    assert loss.isnan()
    assert gradient[0, 2, 1, 1].isnan()


@every_loss
def test_large_logits(case):
    logits, *rest = case.inputs((2, 5, 6, 7), torch.float32)
    logits = 80 * logits.sign()
    loss, gradient = loss_and_gradient(case, logits, *rest)
    exact, exact_gradient = loss_and_gradient(case, logits.double(), *rest)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-8)


@every_loss
def test_a_class_masked_out_by_its_logit(case):
    logits, target, *rest = case.inputs((2, 4, 3, 5))
    logits[:, 3] = -torch.inf
    if case.target is make_labels:
        target = target.where(target != 3, 0)
    elif target.ndim == 4:
        target = target.index_fill(1, torch.tensor(3), 0.0)
    settings = {"reg_weight": 0.0} if case.name == "mrkld_loss" else {}
    if case.name == "region_guided_loss":
        settings = {"confident_weight": 0.0}  # the divergence from uniform is infinite, and says so
    loss, gradient = loss_and_gradient(case, logits, target, *rest, **settings)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, 3] == 0).all()


@every_loss
@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0)])
def test_no_pixels(case, shape):
    loss, gradient = loss_and_gradient(case, *case.inputs(shape))
    assert loss == 0
    assert gradient.shape == shape


@every_loss
def test_one_class(case):
    """Its softmax is 1 whatever the logit: every such loss would be 0, and nothing would be learnt."""
    logits, *rest = case.inputs((2, 1, 3, 5))
    with pytest.raises(ValueError, match=r"`logits`: expected at least two classes .* got 1 .*binary=True"):
        case.function(logits, *rest, **case.settings)


@loss_with_hard_labels
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [255, 19, 100])
def test_label_dtypes(case, dtype, ignore_index):
    logits, target, *rest = case.inputs()
    reference = loss_and_gradient(case, logits, target.where(target != 0, 255), *rest)
    labels = target.where(target != 0, 255)
    labels = labels.where(labels != 255, ignore_index).to(dtype)
    torch.testing.assert_close(loss_and_gradient(case, logits, labels, *rest, ignore_index=ignore_index), reference)


@loss_with_hard_labels
def test_negative_ignore_index(case):
    logits, target, *rest = case.inputs((1, 200, 6, 5))
    reference = loss_and_gradient(case, logits, target, *rest)
    away = loss_and_gradient(case, logits, target.where(target != 255, -100), *rest, ignore_index=-100)
    torch.testing.assert_close(away, reference)
    # As uint8, -100 would be 156, here a class like any other.
    full = target.where(target != 255, 156)
    torch.testing.assert_close(
        loss_and_gradient(case, logits, full.to(torch.uint8), *rest, ignore_index=-100),
        loss_and_gradient(case, logits, full, *rest, ignore_index=-100),
    )
