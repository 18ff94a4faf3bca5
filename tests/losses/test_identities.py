"""Relations that hold between the losses, and with torch's own."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selftrain_seg import losses
from tests.losses.cases import classes, every_loss, flags, make_labels, make_logits, make_map, make_soft
from tests.oracles import losses as oracle

SHAPE = (2, 4, 6, 5)


def with_gradient(function, logits, *args, **kwargs):
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", [losses.mrkld_loss, losses.mrent_loss, losses.mrl2_loss])
def test_without_regulariser_it_is_cross_entropy(loss, reduction):
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    reference = with_gradient(F.cross_entropy, logits, labels, ignore_index=255, reduction=reduction)
    assert_same(with_gradient(loss, logits, labels, reg_weight=0.0, reduction=reduction), reference)
    nobody = torch.zeros(2)
    assert_same(with_gradient(loss, logits, labels, image_weight=nobody, reduction=reduction), reference)
    assert_same(with_gradient(losses.dynamic_loss, logits, labels, gamma=0.0, reduction=reduction), reference)
    ones = torch.ones(4)
    weighted = with_gradient(losses.class_weighted_loss, logits, labels, ones, reduction=reduction)
    assert_same(weighted, reference)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_mrkld_is_label_smoothing(alpha, reduction):
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)

    def smoothed(logits):
        smoothing = alpha / (1 + alpha)
        options = {"ignore_index": 255, "label_smoothing": smoothing, "reduction": reduction}
        return (1 + alpha) * F.cross_entropy(logits, labels, **options)

    assert_same(
        with_gradient(losses.mrkld_loss, logits, labels, reg_weight=alpha, reduction=reduction),
        with_gradient(smoothed, logits),
    )


def test_one_hot_soft_labels_are_hard_labels():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    hot = F.one_hot(labels.where(labels != 255, 0), SHAPE[1]).movedim(-1, 1) * (labels != 255)[:, None]
    weights = {"pixel_weight": make_map(SHAPE), "image_weight": torch.tensor([0.0, 2.0])}
    for loss in (losses.mrkld_loss, losses.mrent_loss, losses.mrl2_loss):
        for soft in (hot.double(), hot.float(), hot.bfloat16()):
            assert_same(with_gradient(loss, logits, soft, **weights), with_gradient(loss, logits, labels, **weights))


def test_soft_labels_are_torch_soft_labels():
    logits, soft = make_logits(SHAPE), make_soft(SHAPE, ignored=0.0)
    assert_same(with_gradient(losses.cross_entropy, logits, soft), with_gradient(F.cross_entropy, logits, soft))


def test_soft_labels_need_not_sum_to_one():
    logits, soft = make_logits(SHAPE), make_soft(SHAPE)
    scale = make_map(SHAPE)
    scaled = soft * scale[:, None]
    weighted = with_gradient(losses.cross_entropy, logits, soft, pixel_weight=scale)
    assert_same(with_gradient(losses.cross_entropy, logits, scaled), weighted)
    leaf = logits.clone().requires_grad_()
    (plain,) = torch.autograd.grad(losses.cross_entropy(leaf, scaled), leaf, create_graph=True)
    assert_same(plain.detach(), weighted[1])


def test_mrkld_on_top_of_lrent():
    logits, soft = make_logits(SHAPE), make_soft(SHAPE)
    valid = soft.sum(1) != 0
    labels = torch.where(valid, 0, 255)
    both = losses.mrkld_loss(logits, soft, reg_weight=0.3)
    regulariser = losses.mrkld_loss(logits, labels, reg_weight=0.3) - losses.mrkld_loss(logits, labels, reg_weight=0.0)
    assert_same(both, losses.cross_entropy(logits, soft) + regulariser)


def test_soft_labels_tend_to_reweighted_hard_labels():
    shape = (1, 5, 20, 20)
    logits, thresholds = make_logits(shape), np.array([0.9, 0.3, 0.6, 0.5, 0.7])
    columns = logits[0].flatten(1).numpy().T
    hard = np.array([oracle.reweighted_label(column, thresholds) for column in columns]).reshape(1, 20, 20)
    assert 50 < (hard == 255).sum() < 350  # both kinds are there
    target = losses.mrkld_loss(logits, torch.from_numpy(hard))
    distances = []
    for alpha in (0.25, 0.05, 0.01, 0.001):
        soft = np.stack([oracle.soft_label(column, thresholds, alpha) for column in columns], 1)
        soft = torch.from_numpy(soft).reshape(shape)
        distances.append((losses.mrkld_loss(logits, soft) - target).abs().item())
    assert distances[0] > 1e-2
    assert distances[-1] < 1e-4
    assert distances == sorted(distances, reverse=True)


def test_without_per_class_it_is_per_class_with_smaller_weights():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    per_class = losses.region_guided_loss(logits, labels, confident_weight=0.4, ignored_weight=2.0)
    per_pixel = losses.region_guided_loss(logits, labels, confident_weight=0.1, ignored_weight=0.5, per_class=False)
    assert_same(per_class, per_pixel)


def test_class_weights_are_torch_class_weights():
    logits, labels, weight = make_logits(SHAPE), make_labels(SHAPE), classes(SHAPE)
    assert_same(
        with_gradient(losses.class_weighted_loss, logits, labels, weight, normalize="weights"),
        with_gradient(F.cross_entropy, logits, labels, weight=weight, ignore_index=255),
    )


def test_pixel_weights_replace_image_weights():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    image = torch.tensor([0.5, 2.0])
    regulariser = losses.mrkld_loss(logits, labels, image_weight=image, reduction="sum")
    regulariser -= losses.mrkld_loss(logits, labels, reg_weight=0.0, reduction="sum")
    pixel = image[:, None, None].expand(2, 6, 5)
    same = losses.mrkld_loss(logits, labels, pixel_weight=pixel, reduction="sum")
    same -= losses.mrkld_loss(logits, labels, reg_weight=0.0, pixel_weight=pixel, reduction="sum")
    assert_same(regulariser, same)


@pytest.mark.parametrize("flip", [False, True])
def test_weights_of_dynamic_losses_are_detached(flip):
    logits, labels, confidence = make_logits(SHAPE), make_labels(SHAPE), make_map(SHAPE)
    nll = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    valid = labels != 255
    weight = torch.where(flags(SHAPE)[:, None, None], torch.exp(-3 * nll), 1)

    def dynamic(leaf):
        return (weight * F.cross_entropy(leaf, labels, ignore_index=255, reduction="none")).sum() / valid.sum()

    assert_same(
        with_gradient(losses.dynamic_loss, logits, labels, gamma=3.0, is_pseudo=flags(SHAPE)),
        with_gradient(dynamic, logits),
    )
    arguments = {"gamma_agree": 3.0, "gamma_disagree": 1.0, "flip": flip}
    m, own = logits.softmax(1).max(1)
    surer = (own != labels) & (m > confidence) & valid
    learned = labels.where(~surer, own) if flip else labels
    weight_m = torch.exp(-torch.where(own == labels, 3.0, 1.0).double() * nll)
    weight_m = weight_m.where(~surer, 1 - confidence if flip else 0)

    def mutual(leaf):
        nll = F.cross_entropy(leaf, learned, ignore_index=255, reduction="none")
        return (weight_m * nll).sum() / valid.sum()

    assert surer.any()
    assert_same(
        with_gradient(losses.dynamic_mutual_loss, logits, labels, confidence, **arguments),
        with_gradient(mutual, logits),
    )


@every_loss
def test_only_differences_of_logits_matter(case):
    logits, *rest = case.inputs(SHAPE)
    shifted = logits + make_map(SHAPE)[:, None]
    same = torch.allclose(
        case.function(logits, *rest, **case.settings), case.function(shifted, *rest, **case.settings), rtol=1e-9
    )
    assert same == (case.name != "negative_loss")  # which looks at each logit by itself
