"""The losses, forward and backward, on two images of 512 x 1024 with 19 classes, float32 unless said otherwise.

"published style" is the formula the way the methods' published code writes it: softmax and log_softmax tensors,
labels and masks expanded to (B, C, H, W), one-hot products, boolean selections. "plain torch" is the shortest
careful version from torch's own operations. "floor" reads the logits twice and writes a gradient, which every
loss here must do.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from selftrain_seg import losses
from tests.benchmarks._harness import Report

SHAPE = (2, 19, 512, 1024)


def mrkld_published(logits, labels, image_weight):
    """CRST: the one-hot labels are where the running sum of a mask over classes reaches the label."""
    classes = logits.shape[1]
    count = (labels != 255).sum().float()
    regularised = (labels[image_weight != 0] != 255).sum().float()
    p, log_p = torch.softmax(logits, 1), torch.log_softmax(logits, 1)
    expanded = labels.unsqueeze(1).repeat(1, classes, 1, 1)
    onehot = expanded.clone()
    onehot[onehot != 255] = 1
    onehot[onehot == 255] = 0
    valid = onehot.clone()
    onehot = onehot.cumsum(1)
    onehot[onehot != expanded + 1] = 0
    onehot[onehot != 0] = 1
    ce = torch.sum(-log_p * onehot)
    p, log_p = p * valid, log_p * valid  # p is not used, there either
    kld = torch.sum(-log_p / classes * image_weight.view(-1, 1, 1, 1))
    return ce / count + 0.1 * kld / regularised


def soft_published(logits, soft, image_weight):
    """CRST: LRENT goes through the code of MRKLD, with a weight of 0."""
    classes = logits.shape[1]
    mass = soft.sum(1)
    count = (mass != 0).sum().float()
    regularised = (mass[image_weight != 0] != 0).sum().float()
    p, log_p = torch.softmax(logits, 1), torch.log_softmax(logits, 1)
    valid = mass.unsqueeze(1).repeat(1, classes, 1, 1).clone()
    valid[valid != 0] = 1
    valid = valid.clone()
    ce = torch.sum(-log_p * soft)
    p, log_p = p * valid, log_p * valid
    kld = torch.sum(-log_p / classes * image_weight.view(-1, 1, 1, 1))
    return ce / count + 0.0 * kld / regularised


def region_published(logits, labels):
    """IAST: two region masks of the size of the logits, whose positive elements are selected to count them."""
    labelled = torch.ones_like(labels).type_as(logits)
    labelled[labels == 255] = 0
    labelled = labelled.unsqueeze(1)
    ones = torch.ones_like(logits)
    confident, ignored = ones * labelled, ones * (1 - labelled)
    ce = F.cross_entropy(logits, labels, ignore_index=255)
    count = confident[confident > 0].numel()
    kld = torch.sum(-1 / logits.shape[1] * confident * torch.log_softmax(logits, 1)) / count
    count = ignored[ignored > 0].numel()
    log_p = torch.log_softmax(logits, 1)
    entropy = torch.sum(-torch.softmax(logits, 1) * ignored * log_p) / count
    return ce + 0.1 * kld + 3.0 * entropy


def dynamic_published(logits, labels):
    """DST-CBC and DMT: cross entropy, and a softmax for the probabilities it is weighted by."""
    loss = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    probs = logits.softmax(1).clone().detach()
    index = labels.unsqueeze(1).clone()
    index[index == 255] = 0
    weight = probs.gather(1, index).squeeze(1) ** 9
    return (loss * weight).sum() / (labels != 255).sum()


def mrkld_plain(logits, labels):
    log_p = torch.log_softmax(logits, 1)
    valid = labels != 255
    kld = torch.where(valid, -log_p.mean(1), 0).sum() / valid.sum()
    return F.nll_loss(log_p, labels, ignore_index=255) + 0.1 * kld


def soft_plain(logits, soft):
    return -(torch.log_softmax(logits, 1) * soft).sum() / (soft.sum(1) != 0).sum()


def region_plain(logits, labels):
    log_p = torch.log_softmax(logits, 1)
    valid, classes = labels != 255, logits.shape[1]
    kld = torch.where(valid, -log_p.mean(1), 0).sum() / valid.sum() / classes
    entropy = torch.where(valid, 0, -(log_p.exp() * log_p).sum(1)).sum() / (~valid).sum() / classes
    return F.nll_loss(log_p, labels, ignore_index=255) + 0.1 * kld + 3.0 * entropy


def dynamic_plain(logits, labels):
    loss = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    return (loss * torch.exp(-9 * loss.detach())).sum() / (labels != 255).sum()


def run(report: Report, *, rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(SHAPE, generator=generator)
    labels = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.3, 255).to(device)
    soft = torch.softmax(2 * values, 1).masked_fill((labels == 255).cpu().unsqueeze(1), 0).to(device)
    image_weight = torch.ones(SHAPE[0], device=device)
    logits = values.to(device).requires_grad_()
    channels_last = values.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    half = values.bfloat16().to(device).requires_grad_()

    def step(loss, inputs=logits):
        return lambda: torch.autograd.grad(loss(inputs), inputs)

    def floor():
        values.sum()
        return values * 2.0

    cross_entropy = step(lambda z: F.cross_entropy(z, labels, ignore_index=255))
    mrkld = report.compare(
        "mrkld_loss",
        {
            "ours": step(lambda z: losses.mrkld_loss(z, labels)),
            "published style": step(lambda z: mrkld_published(z, labels, image_weight)),
            "plain torch": step(lambda z: mrkld_plain(z, labels)),
            "F.cross_entropy alone": cross_entropy,
            "floor": floor,
        },
        rounds=rounds,
    )
    region = report.compare(
        "region_guided_loss",
        {
            "ours": step(lambda z: losses.region_guided_loss(z, labels)),
            "published style": step(lambda z: region_published(z, labels)),
            "plain torch": step(lambda z: region_plain(z, labels)),
        },
        rounds=rounds,
    )
    lrent = report.compare(
        "lrent_loss",
        {
            "ours": step(lambda z: losses.lrent_loss(z, soft)),
            "published style": step(lambda z: soft_published(z, soft, image_weight)),
            "plain torch": step(lambda z: soft_plain(z, soft)),
        },
        rounds=rounds,
    )
    dynamic = report.compare(
        "dynamic_loss",
        {
            "ours": step(lambda z: losses.dynamic_loss(z, labels, gamma=9.0)),
            "published style": step(lambda z: dynamic_published(z, labels)),
            "plain torch": step(lambda z: dynamic_plain(z, labels)),
        },
        rounds=rounds,
    )
    report.compare(
        "mrkld_loss, channels-last",
        {
            "ours": step(lambda z: losses.mrkld_loss(z, labels), channels_last),
            "F.cross_entropy alone": step(lambda z: F.cross_entropy(z, labels, ignore_index=255), channels_last),
        },
        rounds=rounds,
    )
    report.compare(
        "mrkld_loss, bfloat16",
        {
            "ours": step(lambda z: losses.mrkld_loss(z, labels), half),
            "F.cross_entropy alone": step(lambda z: F.cross_entropy(z, labels, ignore_index=255), half),
        },
        rounds=rounds,
    )

    def share(measured, version="published style", attribute="median_ms"):
        return getattr(measured["ours"], attribute) / getattr(measured[version], attribute)

    report.promise("mrkld_loss: time / published style", share(mrkld), 1 / 8)
    report.promise("mrkld_loss: peak memory / published style", share(mrkld, attribute="peak_mb"), 1 / 4)
    report.promise("mrkld_loss: time / one F.cross_entropy", share(mrkld, "F.cross_entropy alone"), 1.2)
    report.promise("region_guided_loss: time / published style", share(region), 1 / 8)
    report.promise("lrent_loss: time / published style", share(lrent), 1 / 6)
    report.promise("dynamic_loss: time / published style", share(dynamic), 2 / 5)
