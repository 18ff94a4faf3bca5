"""Statistics and selection on two images of 512 x 1024 with 19 classes.

"published style" takes the steps of the methods' published code, in other words: one image after the other, its
softmax as a NumPy array (H, W, C), boolean masks class by class, and confidences kept in Python lists.
"straightforward" is the formula in plain NumPy or torch on the whole batch, without detours. "softmax + max" is the
least that any version built on probabilities must do. "floor" reads the logits once.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import softmax

from selftrain_seg.confidence import top_confidence
from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    SoftMatchSelector,
    select_fixed,
    select_hard,
    select_reweighted,
    select_soft,
)
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.benchmarks._harness import Report

SHAPE = (2, 19, 512, 1024)
STRIDE = 4


def statistics_straightforward(logits):
    probs = softmax(logits.numpy(), axis=1)
    label, confidence = probs.argmax(1), probs.max(1)
    pools = {}
    for c in range(probs.shape[1]):
        pools[c] = confidence[label == c][::STRIDE].astype(np.float32).tolist()
    return pools


def pixels_last(logits):
    """The softmax of each image as a NumPy array (H, W, C), as kept between the passes by published code."""
    for image in logits:
        yield image.softmax(0).numpy().transpose(1, 2, 0)


def statistics_published(logits):
    pools = {c: [] for c in range(logits.shape[1])}
    for probs in pixels_last(logits):
        label, confidence = np.argmax(probs, axis=2), np.amax(probs, axis=2)
        for c, pool in pools.items():
            pool.extend(confidence[label == c].astype(np.float32)[::STRIDE])
    return pools


def reweighted_published(logits, kc):
    out = []
    for probs in pixels_last(logits):
        weighted = probs / kc
        label, largest = np.asarray(np.argmax(weighted, axis=2), np.uint8), np.amax(weighted, axis=2)
        label[largest < 1] = 255
        out.append(label)
    return out


def soft_published(logits, kc, alpha=0.25):
    """The paper's rule to the letter: the regularised cost of the soft label beside that of the zero vector."""
    out = []
    for probs in pixels_last(logits):
        soft = (probs / kc) ** (1 / alpha)
        soft = soft / soft.sum(2, keepdims=True)
        cost = -soft * (np.log(probs + 1e-32) - np.log(kc)) + alpha * soft * np.log(soft + 1e-32)
        soft[cost.sum(2) >= 0] = 0
        out.append(soft)
    return out


def instance_adaptive_published(logits, theta, alpha=0.2, beta=0.9, gamma=8.0):
    """With one list a class, in which the threshold itself is the first value."""
    out = []
    for image in logits:
        confidence, label = (part.numpy() for part in image.softmax(0).max(0))
        pools = {c: [theta[c]] for c in range(len(theta))}
        for c, pool in pools.items():
            pool.extend(confidence[label == c].astype(np.float32))
            if len(pool) > 1:
                psi = np.quantile(pool, 1 - alpha * theta[c] ** gamma)
                theta[c] = min(beta * theta[c] + (1 - beta) * psi, 0.999)
        kept = label.copy()
        for c in range(len(theta)):
            kept[(confidence < theta[c]) & (label == c)] = 255
        out.append(kept)
    return out


def running_published(logits, state, upper=0.8, lower=0.2, beta=1e-3, momentum=0.9):
    """Confidences scattered into a tensor (B, C, H, W), compared and added up again over the classes."""
    probs = logits.softmax(1)
    state.mul_(momentum).add_((1 - momentum) * probs.mean((0, 2, 3)))
    confidence, label = probs.max(1, keepdim=True)
    dense = torch.zeros_like(probs).scatter_(1, label, confidence)
    bar = dense.flatten(2).amax(2) * upper * (1 - torch.exp(-state / beta))
    chosen = (dense > bar.clamp(min=lower)[:, :, None, None]).float()
    label[chosen.sum(1, keepdim=True) == 0] = 255
    return label.squeeze(1)


def reweighted_straightforward(logits, kc):
    probs = softmax(logits.numpy(), axis=1)
    weighted = probs / kc.reshape(1, -1, 1, 1)
    label = weighted.argmax(1)
    label[weighted.max(1) < 1] = 255
    return label


def soft_straightforward(logits, kc, alpha=0.25):
    probs = softmax(logits.numpy(), axis=1)
    ratio = probs / kc.reshape(1, -1, 1, 1)
    power = ratio ** (1 / alpha)
    soft = power / power.sum(1, keepdims=True)
    cost = (-soft * np.log(ratio + 1e-32) + alpha * soft * np.log(soft + 1e-32)).sum(1, keepdims=True)
    return soft * (cost < 0)


def instance_adaptive_straightforward(logits, theta, alpha=0.2, beta=0.9, gamma=8.0):
    probs = softmax(logits.numpy(), axis=1)
    label, confidence = probs.argmax(1), probs.max(1)
    out = []
    for one, m in zip(label, confidence, strict=True):
        for c in range(len(theta)):
            if (one == c).any():
                psi = np.percentile(np.append(m[one == c], theta[c]), 100 * (1 - alpha * theta[c] ** gamma))
                theta[c] = min(beta * theta[c] + (1 - beta) * psi, 0.999)
        kept = one.copy()
        for c in range(len(theta)):
            kept[(m < theta[c]) & (one == c)] = 255
        out.append(kept)
    return out


def run(report: Report, *, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.randn(SHAPE, generator=generator)
    logits = noise.scatter_add_(
        1, torch.randint(0, 19, (2, 1, 512, 1024), generator=generator), torch.full_like(noise, 6)
    )
    size_mb = logits.numel() * logits.element_size() / 1e6
    thresholds = torch.full((19,), 0.9, dtype=torch.float64)
    kc = thresholds.numpy()
    half = logits.bfloat16()

    estimators = {pool: ClassBalancedThreshold(19, 0.2, pool=pool) for pool in ("predicted", "all")}
    strided = ClassBalancedThreshold(19, 0.2, stride=STRIDE)
    instance, running = InstanceAdaptiveSelector(19), RunningConfidenceSelector(19)
    others = {
        "freematch": FreeMatchSelector(19),
        "flexmatch": FlexMatchSelector(19),
        "softmatch": SoftMatchSelector(19),
    }

    def floor():
        return logits.sum()

    def compiled(name, call):
        return report.compiled(name, call, logits)

    measured = report.compare(
        "kc statistics",
        {
            "published style": lambda: statistics_published(logits),
            "straightforward": lambda: statistics_straightforward(logits),
            "softmax + max": lambda: logits.softmax(1).max(1),
            "top_confidence": lambda: top_confidence(logits),
            **compiled("top_confidence, compiled", top_confidence),
            "update": lambda: estimators["predicted"].update(logits),
            **compiled("update, compiled", estimators["predicted"].update),
            "update, stride 4": lambda: strided.update(logits),
            "update, bfloat16": lambda: estimators["predicted"].update(half),
            "update, pool all": lambda: estimators["all"].update(logits),
            "floor": floor,
        },
        rounds=rounds,
    )
    report.target(
        "kc statistics from logits",
        measured,
        "update",
        "published style",
        faster=2.5,
        compiled=("update, compiled", 7),
        floor="floor",
        memory=("50 MB", measured["update"].peak_mb / 50, 1),
    )
    for name in ("top_confidence", "update", "update, pool all"):
        report.promise(f"{name}: peak extra memory / size of the logits", measured[name].peak_mb / size_mb, 2.5)
    report.promise("update: time / straightforward", share(measured, "update", "straightforward"), 1 / 2)

    measured = report.compare(
        "selection",
        {
            "published style": lambda: reweighted_published(logits, kc),
            "straightforward": lambda: reweighted_straightforward(logits, kc),
            "select_hard": lambda: select_hard(logits, thresholds),
            **compiled("select_hard, compiled", lambda z: select_hard(z, thresholds)),
            "select_reweighted": lambda: select_reweighted(logits, thresholds),
            **compiled("select_reweighted, compiled", lambda z: select_reweighted(z, thresholds)),
            "select_fixed": lambda: select_fixed(logits),
            "floor": floor,
        },
        rounds=rounds,
    )
    report.target(
        "selection from logits, re-weighted",
        measured,
        "select_reweighted",
        "published style",
        faster=2,
        compiled=("select_reweighted, compiled", 9),
        floor="floor",
        memory=("the logits", measured["select_reweighted"].peak_mb / size_mb, 2.5),
    )
    for name in ("select_hard", "select_fixed"):
        report.promise(f"{name}: peak extra memory / size of the logits", measured[name].peak_mb / size_mb, 2.5)
    report.promise(
        "select_reweighted: time / straightforward", share(measured, "select_reweighted", "straightforward"), 1 / 2
    )

    measured = report.compare(
        "soft labels",
        {
            "published style": lambda: soft_published(logits, kc),
            "straightforward": lambda: soft_straightforward(logits, kc),
            "select_soft": lambda: select_soft(logits, thresholds),
            **compiled("select_soft, compiled", lambda z: select_soft(z, thresholds)),
        },
        rounds=rounds,
    )
    report.target(
        "LRENT's soft labels",
        measured,
        "select_soft",
        "published style",
        faster=8,
        compiled=("select_soft, compiled", None),
        memory=("the logits", measured["select_soft"].peak_mb / size_mb, 2.5),
    )

    measured = report.compare(
        "instance-adaptive",
        {
            "published style": lambda: instance_adaptive_published(logits, np.full(19, 0.9)),
            "straightforward": lambda: instance_adaptive_straightforward(logits, np.full(19, 0.9)),
            "InstanceAdaptiveSelector": lambda: instance(logits),
            **compiled("InstanceAdaptiveSelector, compiled", instance),
        },
        rounds=rounds,
    )
    report.target(
        "instance-adaptive step",
        measured,
        "InstanceAdaptiveSelector",
        "published style",
        faster=7,
        compiled=("InstanceAdaptiveSelector, compiled", 14),
        memory=("the logits", measured["InstanceAdaptiveSelector"].peak_mb / size_mb, 2.5),
    )

    measured = report.compare(
        "other selectors",
        {
            "running confidence as published": lambda: running_published(logits, torch.full((19,), 1 / 19)),
            "RunningConfidenceSelector": lambda: running(logits),
            **{type(selector).__name__: (lambda selector=selector: selector(logits)) for selector in others.values()},
        },
        rounds=rounds,
    )
    report.target(
        "running-confidence labels",
        measured,
        "RunningConfidenceSelector",
        "running confidence as published",
        faster=2.5,
        memory=("the logits", measured["RunningConfidenceSelector"].peak_mb / size_mb, 2.5),
    )
    for selector in others.values():
        name = type(selector).__name__
        report.promise(f"{name}: peak extra memory / size of the logits", measured[name].peak_mb / size_mb, 2.5)


def share(measured, ours, reference):
    return measured[ours].median_ms / measured[reference].median_ms
