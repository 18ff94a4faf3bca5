"""The losses, forward and backward, on two images of 512 x 1024 with 19 classes, float32 unless said otherwise.

"straightforward" is the formula written with softmax and log_softmax tensors, labels and masks expanded to
(B, C, H, W) and one-hot products. "published style" goes further for CRST's losses, as its code does: one objective
for all variants, whose regulariser is evaluated even at weight 0, on softmax and log-softmax tensors that are both
masked by an expanded tensor made by boolean assignment. "plain torch" is the shortest
careful version from torch's own operations. "floor" reads the logits twice and writes a gradient, which every
loss here must do.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from selftrain_seg import losses
from tests.benchmarks import plain
from tests.benchmarks._harness import Report

SHAPE = (2, 19, 512, 1024)


def expanded(labels, classes):
    """One-hot labels and valid mask, each (B, C, H, W) float32."""
    valid = labels != 255
    onehot = F.one_hot(torch.where(valid, labels, 0), classes).permute(0, 3, 1, 2).float()
    valid = valid.unsqueeze(1).repeat(1, classes, 1, 1).float()
    return onehot * valid, valid


def mrkld_straightforward(logits, labels, image_weight):
    classes = logits.shape[1]
    onehot, valid = expanded(labels, classes)
    regularised = valid * image_weight.view(-1, 1, 1, 1)
    ce = -(onehot * torch.log_softmax(logits, 1)).sum() / valid[:, 0].sum()
    kld = -(regularised / classes * torch.log_softmax(logits, 1)).sum() / regularised[:, 0].sum()
    return ce + 0.1 * kld


def crst_published(logits, target, mass, image_weight, weight):
    classes = logits.shape[1]
    mask = mass.float().unsqueeze(1).repeat(1, classes, 1, 1)
    mask[mask > 0] = 1
    count, regularised = mask[:, 0].sum(), mask[image_weight > 0, 0].sum()
    p, log_p = torch.softmax(logits, 1) * mask, torch.log_softmax(logits, 1) * mask
    ce = -(target * log_p).sum() / count
    kld = -(log_p / classes * image_weight.view(-1, 1, 1, 1)).sum() / regularised
    entropy = (p * log_p * image_weight.view(-1, 1, 1, 1)).sum() / regularised
    return ce + weight * kld + 0.0 * entropy


def mrkld_published(logits, labels, image_weight):
    return crst_published(logits, expanded(labels, logits.shape[1])[0], labels != 255, image_weight, 0.1)


def soft_straightforward(logits, soft):
    valid = (soft.sum(1, keepdim=True) != 0).repeat(1, logits.shape[1], 1, 1).float()
    return -(soft * valid * torch.log_softmax(logits, 1)).sum() / valid[:, 0].sum()


def region_straightforward(logits, labels):
    classes = logits.shape[1]
    onehot, valid = expanded(labels, classes)
    ignored = 1 - valid
    ce = -(onehot * torch.log_softmax(logits, 1)).sum() / valid[:, 0].sum()
    kld = -(valid / classes * torch.log_softmax(logits, 1)).sum() / valid.sum()
    entropy = -(ignored * torch.softmax(logits, 1) * torch.log_softmax(logits, 1)).sum() / ignored.sum()
    return ce + 0.1 * kld + 3.0 * entropy


def dynamic_straightforward(logits, labels):
    onehot, valid = expanded(labels, logits.shape[1])
    nll = -(onehot * torch.log_softmax(logits, 1)).sum(1)
    weight = (onehot * torch.softmax(logits.detach(), 1)).sum(1) ** 9
    return (weight * nll).sum() / valid[:, 0].sum()


def dynamic_published(logits, labels):
    """No one-hot here: a gather from a softmax tensor beside torch's cross entropy."""
    nll = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    index = torch.where(labels != 255, labels, 0).unsqueeze(1)
    weight = torch.softmax(logits, 1).detach().gather(1, index).squeeze(1) ** 9
    return (weight * nll).sum() / (labels != 255).sum()


def run(report: Report, *, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(SHAPE, generator=generator)
    labels = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.3, 255)
    soft = torch.softmax(2 * values, 1).masked_fill((labels == 255).unsqueeze(1), 0)
    image_weight = torch.ones(SHAPE[0])
    logits = values.clone().requires_grad_()
    channels_last = values.contiguous(memory_format=torch.channels_last).requires_grad_()
    half = values.bfloat16().requires_grad_()

    def step(loss, inputs=logits):
        return lambda: torch.autograd.grad(loss(inputs), inputs)

    def floor():
        values.sum()
        return values * 2.0

    def ours(loss, inputs=logits):
        versions = {"ours": step(loss, inputs)}
        if not report.compile or inputs is not logits:
            return versions
        torch.compiler.reset()
        fast = step(torch.compile(loss))
        fast()
        return {**versions, "ours, compiled": fast}

    torchs = step(lambda z: F.cross_entropy(z, labels, ignore_index=255))
    beside_torch = report.compare(
        "cross_entropy",
        {
            **ours(lambda z: losses.cross_entropy(z, labels)),
            "F.cross_entropy": torchs,
            "floor": floor,
        },
        rounds=rounds,
    )
    mrkld = report.compare(
        "mrkld_loss",
        {
            **ours(lambda z: losses.mrkld_loss(z, labels)),
            "published style": step(lambda z: mrkld_published(z, labels, image_weight)),
            "straightforward": step(lambda z: mrkld_straightforward(z, labels, image_weight)),
            "plain torch": step(lambda z: plain.mrkld(z, labels)),
            "F.cross_entropy alone": torchs,
            "floor": floor,
        },
        rounds=rounds,
    )
    region = report.compare(
        "region_guided_loss",
        {
            **ours(lambda z: losses.region_guided_loss(z, labels)),
            "straightforward": step(lambda z: region_straightforward(z, labels)),
            "plain torch": step(lambda z: plain.region(z, labels)),
        },
        rounds=rounds,
    )
    lrent = report.compare(
        "cross_entropy, soft labels",
        {
            **ours(lambda z: losses.cross_entropy(z, soft)),
            "published style": step(lambda z: crst_published(z, soft, soft.sum(1), image_weight, 0.0)),
            "straightforward": step(lambda z: soft_straightforward(z, soft)),
            "plain torch": step(lambda z: plain.cross_entropy_soft(z, soft)),
        },
        rounds=rounds,
    )
    dynamic = report.compare(
        "dynamic_loss",
        {
            **ours(lambda z: losses.dynamic_loss(z, labels, gamma=9.0)),
            "published style": step(lambda z: dynamic_published(z, labels)),
            "straightforward": step(lambda z: dynamic_straightforward(z, labels)),
            "plain torch": step(lambda z: plain.dynamic(z, labels)),
        },
        rounds=rounds,
    )
    report.compare(
        "mrkld_loss, channels-last",
        {
            **ours(lambda z: losses.mrkld_loss(z, labels), channels_last),
            "F.cross_entropy alone": step(lambda z: F.cross_entropy(z, labels, ignore_index=255), channels_last),
        },
        rounds=rounds,
    )
    report.compare(
        "mrkld_loss, bfloat16",
        {
            **ours(lambda z: losses.mrkld_loss(z, labels), half),
            "F.cross_entropy alone": step(lambda z: F.cross_entropy(z, labels, ignore_index=255), half),
        },
        rounds=rounds,
    )

    def share(measured, version="published style", attribute="median_ms"):
        return getattr(measured["ours"], attribute) / getattr(measured[version], attribute)

    gradient_mb = logits.numel() * 4 / 1e6
    for name, measured, reference, faster, compiled in (
        ("`mrkld_loss`", mrkld, "published style", 8, 8),
        ("region-guided", region, "straightforward", 8, 8),
        ("LRENT's soft cross entropy", lrent, "published style", 6, None),
        ("dynamic", dynamic, "published style", 2.5, None),
    ):
        report.target(
            f"{name}, forward and backward",
            measured,
            "ours",
            reference,
            faster=faster,
            compiled=("ours, compiled", compiled),
            floor="floor" if measured is mrkld else None,
            memory=("the gradient", measured["ours"].peak_mb / gradient_mb, 1.6),
        )
    report.promise("cross_entropy: time / F.cross_entropy", share(beside_torch, "F.cross_entropy"), 1)
    report.promise("cross_entropy: peak memory / F.cross_entropy", share(beside_torch, "F.cross_entropy", "peak_mb"), 1)
    report.promise("mrkld_loss: peak memory / published style", share(mrkld, attribute="peak_mb"), 1 / 4)
    report.promise("mrkld_loss: time / one F.cross_entropy", share(mrkld, "F.cross_entropy alone"), 1.2)
