"""The shortest careful versions of the library's functions from torch's own operations, to compare with.

They work with probabilities in float32, as one would write them first. What moves from call to call is a function
that keeps its state: ``freematch(classes, device)(logits)``.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

BINS = 1024


def probabilities(logits):
    return torch.softmax(logits, 1, dtype=torch.float32)


# Confidence, thresholds, selection


def top(logits):
    return probabilities(logits).max(1)


def update(logits, counts):
    """Add each pixel to the histogram (C, BINS) of its class's confidences."""
    confidence, label = top(logits)
    place = label * BINS + (confidence * BINS).long().clamp(max=BINS - 1)
    counts.view(-1).scatter_add_(0, place.flatten(), torch.ones_like(place).flatten())


def compute(counts, portion=0.2):
    """Each class's confidence that the portion of its pixels reaches."""
    from_top = counts.flip(1).cumsum(1)
    reached = (from_top >= portion * from_top[:, -1:]).int().argmax(1)
    return 1 - (reached + 1) / BINS


def hard(logits, kc):
    confidence, label = top(logits)
    return torch.where(confidence >= kc[label], label, 255)


def reweighted(logits, kc):
    weighted, label = (probabilities(logits) / kc.view(-1, 1, 1)).max(1)
    return torch.where(weighted >= 1, label, 255)


def soft(logits, kc, alpha=0.25):
    ratio = (probabilities(logits) / kc.view(-1, 1, 1)).clamp(min=1e-30)
    labels = torch.softmax(ratio.log() / alpha, 1)
    cost = (labels * (alpha * labels.clamp(min=1e-30).log() - ratio.log())).sum(1, keepdim=True)
    return torch.where(cost < 0, labels, 0)


def fixed(logits, threshold=0.968):
    confidence, label = top(logits)
    return torch.where(confidence >= threshold, label, 255)


def freematch(classes, device, momentum=0.999):
    level, mean = torch.full((), 1 / classes, device=device), torch.full((classes,), 1 / classes, device=device)

    def call(logits):
        probs = probabilities(logits)
        confidence, label = probs.max(1)
        level.lerp_(confidence.mean(), 1 - momentum)
        mean.lerp_(probs.mean((0, 2, 3)), 1 - momentum)
        return torch.where(confidence >= (level * mean / mean.max())[label], label, 255)

    return call


def softmatch(classes, device, momentum=0.999, sigmas=2.0):
    mean, variance = torch.full((), 1 / classes, device=device), torch.ones((), device=device)

    def call(logits):
        confidence, label = top(logits)
        mean.lerp_(confidence.mean(), 1 - momentum)
        variance.lerp_(confidence.var(correction=0), 1 - momentum)
        return label, torch.exp(-(confidence - mean).clamp(max=0).square() * sigmas**2 / (2 * variance))

    return call


def flexmatch(classes, device, threshold=0.95, momentum=0.999):
    shares = torch.zeros(classes, device=device)

    def call(logits):
        confidence, label = top(logits)
        sure = (confidence >= threshold).float().flatten()
        shares.lerp_(torch.zeros_like(shares).scatter_add_(0, label.flatten(), sure) / sure.numel(), 1 - momentum)
        progress = shares / torch.maximum(shares.max(), 1 - shares.sum())
        return torch.where(confidence >= (threshold * progress / (2 - progress))[label], label, 255)

    return call


def running_confidence(classes, device, upper=0.8, lower=0.2, beta=1e-3, momentum=0.9):
    state = torch.full((classes,), 1 / classes, device=device)

    def call(logits):
        probs = probabilities(logits)
        state.lerp_(probs.mean((0, 2, 3)), 1 - momentum)
        confidence, label = (part.flatten(1) for part in probs.max(1))
        largest = torch.zeros(probs.shape[:2], device=device).scatter_reduce_(1, label, confidence, "amax")
        bar = (largest * upper * (1 - torch.exp(-state / beta))).clamp(min=lower)
        return torch.where(confidence > bar.gather(1, label), label, 255).view(logits[:, 0].shape)

    return call


def instance_adaptive(classes, device, portion=0.2, momentum=0.9, gamma=8.0, initial=0.9):
    thresholds = torch.full((classes,), initial, device=device)

    def call(logits):
        out = []
        for confidence, label in zip(*top(logits), strict=True):
            for c, threshold in enumerate(thresholds):
                pool = confidence[label == c]
                if len(pool):
                    pool, rank = torch.cat((pool, threshold[None])), 1 - portion * threshold**gamma
                    threshold.lerp_(torch.quantile(pool, rank), 1 - momentum).clamp_(max=0.999)
            out.append(torch.where(confidence >= thresholds[label], label, 255))
        return torch.stack(out)

    return call


# Losses


def log_probabilities(logits):
    return torch.log_softmax(logits, 1, dtype=torch.float32)


def chosen(values, labels):
    """The labels' values (B, H, W), and where there is one."""
    valid = labels != 255
    return values.gather(1, torch.where(valid, labels, 0).unsqueeze(1)).squeeze(1), valid


def mean_of(values, valid):
    return torch.where(valid, values, 0).sum() / valid.sum()


def mrkld(logits, labels):
    log_p = log_probabilities(logits)
    return F.nll_loss(log_p, labels, ignore_index=255) + 0.1 * mean_of(-log_p.mean(1), labels != 255)


def mrent(logits, labels):
    log_p = log_probabilities(logits)
    entropy = -(log_p.exp() * log_p).sum(1)
    return F.nll_loss(log_p, labels, ignore_index=255) - 0.1 * mean_of(entropy, labels != 255)


def mrl2(logits, labels):
    log_p = log_probabilities(logits)
    square = log_p.exp().square().sum(1)
    return F.nll_loss(log_p, labels, ignore_index=255) + 0.1 * mean_of(square, labels != 255)


def region(logits, labels):
    log_p = log_probabilities(logits)
    valid, classes = labels != 255, logits.shape[1]
    kld = mean_of(-log_p.mean(1), valid) / classes
    entropy = mean_of(-(log_p.exp() * log_p).sum(1), ~valid) / classes
    return F.nll_loss(log_p, labels, ignore_index=255) + 0.1 * kld + 3.0 * entropy


def dynamic(logits, labels):
    loss = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    return (loss * torch.exp(-9 * loss.detach())).sum() / (labels != 255).sum()


def dynamic_mutual(logits, labels, confidence, agree=5.0, disagree=5.0):
    log_p, valid = chosen(log_probabilities(logits), labels)
    own, predicted = probabilities(logits.detach()).max(1)
    exponent = torch.where(predicted == labels, agree, disagree)
    weight = torch.where((predicted != labels) & (own > confidence), 0, torch.exp(exponent * log_p.detach()))
    return mean_of(-weight * log_p, valid)


def symmetric(logits, labels, alpha=0.1, beta=1.0, log_zero=-4.0):
    log_p, valid = chosen(log_probabilities(logits), labels)
    return mean_of(-alpha * log_p - beta * log_zero * (1 - log_p.exp()), valid)


def class_weighted(logits, labels, class_weight):
    loss = F.cross_entropy(logits.float(), labels, class_weight, ignore_index=255, reduction="sum")
    return loss / (labels != 255).sum()


def cross_entropy_soft(logits, soft):
    return -(log_probabilities(logits) * soft).sum() / (soft.sum(1) != 0).sum()


def mrkld_soft(logits, soft):
    log_p, valid = log_probabilities(logits), soft.sum(1) != 0
    return -(log_p * soft).sum() / valid.sum() + 0.1 * mean_of(-log_p.mean(1), valid)


def negative(logits, teacher_probs, loss_weight=0.5):
    chance = teacher_probs <= 1 / logits.shape[1]
    return loss_weight * mean_of(F.softplus(logits.float()), chance)


# Teachers


def density(logits, samples=100, temperature=20.0):
    probs = F.softmax(logits, dim=1)
    probs = probs.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    picked = torch.randperm(probs.shape[0], device=logits.device)[:samples]
    features = F.normalize(probs[picked], dim=1)
    similar = F.softmax(temperature * features @ features.T, dim=1)
    return -(similar * (similar + 1e-6).log()).sum(1).mean()


def entropy_score(logits):
    confidence = top(logits)[0]
    return (1 + 2 * confidence * confidence.log2()).mean()
