"""Four published steps, written with this library in ten lines and with plain arithmetic from the papers' formulas."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from selftrain_seg.losses import class_weighted_loss, cross_entropy, focal_class_weight, mrkld_loss
from selftrain_seg.selectors import RunningConfidenceSelector, select_fixed, select_hard, select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold


def random(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ours_unimatch(weak, strong, ignore_mask):
    valid = ignore_mask != 255
    pseudo = select_hard(weak, 0.95, valid=valid)
    return cross_entropy(strong, pseudo.labels, normalize="all", valid=valid)


def published_unimatch(weak, strong, ignore_mask):
    confidence, label = weak.softmax(dim=1).max(dim=1)
    each = F.cross_entropy(strong, label, reduction="none")
    exists = ignore_mask != 255
    return (each * (exists & (confidence >= 0.95))).sum() / exists.sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("padding", [True, False])
def test_unimatch_step(dtype, padding):
    shape = (2, 7, 33, 41)
    weak, strong = random(*shape, seed=0, scale=4.0).to(dtype), random(*shape, seed=1, scale=2.0).to(dtype)
    ignore_mask = torch.zeros(2, 33, 41, dtype=torch.int64)
    if padding:
        ignore_mask[0, 20:], ignore_mask[1, :, 30:] = 255, 255
    sure = weak.softmax(1).amax(1) >= 0.95
    assert 0.1 < sure.float().mean() < 0.9
    assert sure[ignore_mask == 255].any() == padding  # which padding would add
    results = []
    for step in (ours_unimatch, published_unimatch):
        leaf = strong.clone().requires_grad_()
        loss = step(weak, leaf, ignore_mask)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    ours, published = results
    rtol = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(ours[0], published[0], rtol=rtol, atol=0)
    torch.testing.assert_close(ours[1], published[1], rtol=0, atol=rtol * published[1].abs().max().item())


def test_unimatch_step_of_padding_only():
    weak, strong = random(1, 3, 2, 2, seed=0), random(1, 3, 2, 2, seed=1).requires_grad_()
    loss = ours_unimatch(weak, strong, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss == 0
    assert not strong.grad.any()


def ours_cbst(network, batches, portion):
    estimator = ClassBalancedThreshold(5, portion, exact=True)
    with torch.no_grad():
        for images in batches:
            estimator.update(network(images))
        kc = estimator.compute()
        labels = [select_reweighted(network(images), kc).labels for images in batches]
    pairs = zip(batches, labels, strict=True)
    return kc, labels, [mrkld_loss(network(images), y, reg_weight=0.1) for images, y in pairs]


def published_cbst(logits, portion):
    """From the batches' logits (B, C, H, W): thresholds, labels, and each batch's loss and its gradient."""
    probs = [np.exp(z - z.max(1, keepdims=True)) for z in logits]
    probs = [p / p.sum(1, keepdims=True) for p in probs]
    pixels = np.concatenate([np.moveaxis(p, 1, -1).reshape(-1, p.shape[1]) for p in probs])
    kc = np.ones(pixels.shape[1])
    for c in range(len(kc)):
        confidence = np.sort(pixels[pixels.argmax(1) == c, c])[::-1]
        rank = int(np.floor(len(confidence) * portion))
        if rank > 0:
            kc[c] = confidence[rank - 1]
    labels, values, gradients = [], [], []
    for p in probs:
        weighted = p / kc[:, None, None]
        y = np.where(weighted.max(1) >= 1, weighted.argmax(1), 255)
        chosen = y != 255
        hot = (y[:, None] == np.arange(p.shape[1])[:, None, None]).astype(float)
        entropy, divergence = -(hot * np.log(p)).sum(1), -np.log(p).mean(1)
        labels.append(y)
        values.append((entropy + 0.1 * divergence)[chosen].sum() / chosen.sum())
        gradients.append(((p - hot) + 0.1 * (p - 1 / p.shape[1])) * chosen[:, None] / chosen.sum())
    return kc, labels, values, gradients


@pytest.mark.parametrize("portion", [0.2, 0.5])
def test_cbst_round(portion):
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Tanh(), nn.Conv2d(5, 5, 1, bias=False))
    with torch.no_grad():
        for index, weight in enumerate(network.parameters()):
            weight.copy_(random(*weight.shape, seed=5 + index, scale=0.8))
    batches = [random(2, 3, 23, 31, seed=3), random(1, 3, 17, 40, seed=4)]
    kc, labels, values = ours_cbst(network, batches, portion)
    outputs = [network(images) for images in batches]
    expected_kc, expected_labels, expected_values, gradients = published_cbst(
        [z.detach().double().numpy() for z in outputs], portion
    )
    np.testing.assert_allclose(kc, expected_kc, rtol=1e-5)
    assert (expected_kc < 0.5).any()  # so that re-weighting changes labels
    for label, expected in zip(labels, expected_labels, strict=True):
        assert np.array_equal(label.numpy(), expected)
        assert 0.05 < (expected != 255).mean() < 0.95
    torch.testing.assert_close([value.item() for value in values], expected_values, rtol=2e-6, atol=0)
    for value, output, gradient in zip(values, outputs, gradients, strict=True):
        # The step that the network takes: through its own backward from the published gradient of the logits.
        ours = torch.autograd.grad(value, list(network.parameters()))
        published = torch.autograd.grad(output, list(network.parameters()), torch.from_numpy(gradient).float())
        for one, other in zip(ours, published, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


def ours_online(logits, true_labels, others):
    labels = torch.cat([true_labels, select_fixed(others, threshold=0.9).labels])
    return cross_entropy(torch.cat([logits, others]), labels), labels


def published_online(z, true_labels):
    """Labels, loss and its gradient; the images without true labels come last."""
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    labels = np.where(p.max(1) > 0.9, p.argmax(1), 255)
    labels[: len(true_labels)] = true_labels
    chosen = labels != 255
    hot = (labels[:, None] == np.arange(p.shape[1])[:, None, None]).astype(float)
    loss = -(hot * np.log(p)).sum() / chosen.sum()
    return labels, loss, (p - hot) * chosen[:, None] / chosen.sum()


def test_online_step():
    logits = random(1, 6, 19, 23, seed=30, scale=2.0).double().requires_grad_()
    others = random(3, 6, 19, 23, seed=31, scale=3.0).double().requires_grad_()
    true_labels = torch.randint(0, 6, (1, 19, 23), generator=torch.Generator().manual_seed(32))
    true_labels[:, :4] = 255
    loss, labels = ours_online(logits, true_labels, others)
    everything = torch.cat([logits, others]).detach().numpy()
    expected_labels, expected, gradient = published_online(everything, true_labels.numpy())
    assert np.array_equal(labels.numpy(), expected_labels)
    assert 0.05 < (expected_labels[1:] != 255).mean() < 0.95
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)
    found = np.concatenate([part.numpy() for part in torch.autograd.grad(loss, [logits, others])])
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-6 * np.abs(gradient).max())


def ours_sac(selector, teacher_probs, strong):
    pseudo = selector(teacher_probs.log())
    weight = focal_class_weight(selector.running_confidence, exponent=3.0)
    loss = class_weighted_loss(strong, pseudo.labels, weight, pixel_weight=pseudo.confidence, normalize="all")
    return pseudo.labels, loss


def published_sac(running, teacher_probs, strong):
    """The new running confidence, labels, the loss and its gradient; probabilities and logits (B, C, H, W)."""
    p, beta = teacher_probs, 1e-3
    mean = p.mean((0, 2, 3))
    running = mean.copy() if running is None else 0.99 * running + 0.01 * mean
    best, winner = p.max(1), p.argmax(1)
    labels = np.full(winner.shape, 255)
    for b in range(len(p)):
        for c in range(p.shape[1]):
            mine = winner[b] == c
            if mine.any():
                bar = max(0.2, 0.75 * best[b][mine].max() * (1 - np.exp(-running[c] / beta)))
                labels[b][mine & (best[b] > bar)] = c
    weight = (1 - running) ** 3
    q = np.exp(strong - strong.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    hot = (labels[:, None] == np.arange(p.shape[1])[:, None, None]).astype(float)
    factor = (hot * weight[:, None, None]).sum(1) * best / labels.size
    loss = (factor * -(hot * np.log(q)).sum(1)).sum()
    return running, labels, loss, factor[:, None] * (q - hot)


def test_sac_steps():
    selector, running = RunningConfidenceSelector(6, upper=0.75, lower=0.2, momentum=0.99), None
    for step in range(3):
        probs = random(2, 6, 19, 23, seed=10 + step, scale=2.0).double()
        probs[:, 5] -= 12  # a class that is almost never predicted
        probs = probs.softmax(1)
        strong = random(2, 6, 19, 23, seed=20 + step).double().requires_grad_()
        labels, loss = ours_sac(selector, probs, strong)
        running, expected_labels, expected, gradient = published_sac(running, probs.numpy(), strong.detach().numpy())
        np.testing.assert_allclose(selector.running_confidence.numpy(), running, rtol=1e-5)
        assert np.array_equal(labels.numpy(), expected_labels)
        assert 0.05 < (expected_labels != 255).mean() < 0.95
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)
        found = torch.autograd.grad(loss, strong)[0].numpy()
        np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())
