"""Statistics and selection on two images of 512 x 1024 with 19 classes.

"straightforward" is the formula the way the methods' published code writes it: a softmax tensor on the host, NumPy
argmax and boolean masks class by class, sorted lists. "softmax + max" is the least that any version built on
probabilities must do. "floor" reads the logits once.
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
    host, device = logits, "cuda" if torch.cuda.is_available() else "cpu"
    logits = host.to(device)
    size_mb = logits.numel() * logits.element_size() / 1e6
    thresholds = torch.full((19,), 0.9, dtype=torch.float64)
    kc = thresholds.numpy()
    half = logits.bfloat16()

    estimators = {pool: ClassBalancedThreshold(19, 0.2, pool=pool).to(device) for pool in ("predicted", "all")}
    strided = ClassBalancedThreshold(19, 0.2, stride=STRIDE).to(device)
    instance, running = InstanceAdaptiveSelector(19).to(device), RunningConfidenceSelector(19).to(device)
    others = {
        "freematch": FreeMatchSelector(19).to(device),
        "flexmatch": FlexMatchSelector(19).to(device),
        "softmatch": SoftMatchSelector(19).to(device),
    }

    def floor():
        return logits.sum()

    measured = report.compare(
        "kc statistics",
        {
            "straightforward": lambda: statistics_straightforward(host),
            "softmax + max": lambda: logits.softmax(1).max(1),
            "top_confidence": lambda: top_confidence(logits),
            "update": lambda: estimators["predicted"].update(logits),
            "update, stride 4": lambda: strided.update(logits),
            "update, bfloat16": lambda: estimators["predicted"].update(half),
            "update, pool all": lambda: estimators["all"].update(logits),
            "floor": floor,
        },
        rounds=rounds,
    )
    for name in ("top_confidence", "update", "update, pool all"):
        report.promise(f"{name}: peak extra memory / size of the logits", measured[name].peak_mb / size_mb, 2.5)
    report.promise(
        "update: time / straightforward",
        measured["update"].median_ms / measured["straightforward"].median_ms,
        1 / 2,
    )

    measured = report.compare(
        "selection",
        {
            "straightforward re-weighted": lambda: reweighted_straightforward(host, kc),
            "select_hard": lambda: select_hard(logits, thresholds),
            "select_reweighted": lambda: select_reweighted(logits, thresholds),
            "select_fixed": lambda: select_fixed(logits),
            "floor": floor,
        },
        rounds=rounds,
    )
    for name in ("select_hard", "select_reweighted", "select_fixed"):
        report.promise(f"{name}: peak extra memory / size of the logits", measured[name].peak_mb / size_mb, 2.5)
    report.promise(
        "select_reweighted: time / straightforward",
        measured["select_reweighted"].median_ms / measured["straightforward re-weighted"].median_ms,
        1 / 2,
    )

    measured = report.compare(
        "soft labels",
        {
            "straightforward": lambda: soft_straightforward(host, kc),
            "select_soft": lambda: select_soft(logits, thresholds),
        },
        rounds=rounds,
    )
    report.promise(
        "select_soft: peak extra memory / size of the logits", measured["select_soft"].peak_mb / size_mb, 2.5
    )
    report.promise(
        "select_soft: time / straightforward",
        measured["select_soft"].median_ms / measured["straightforward"].median_ms,
        1 / 2,
    )

    measured = report.compare(
        "instance-adaptive",
        {
            "straightforward": lambda: instance_adaptive_straightforward(host, np.full(19, 0.9)),
            "InstanceAdaptiveSelector": lambda: instance(logits),
        },
        rounds=rounds,
    )
    ours = measured["InstanceAdaptiveSelector"]
    report.promise("instance-adaptive: peak extra memory / size of the logits", ours.peak_mb / size_mb, 2.5)
    report.promise(
        "instance-adaptive: time / straightforward", ours.median_ms / measured["straightforward"].median_ms, 3 / 4
    )

    measured = report.compare(
        "other selectors",
        {
            "RunningConfidenceSelector": lambda: running(logits),
            **{type(selector).__name__: (lambda selector=selector: selector(logits)) for selector in others.values()},
        },
        rounds=rounds,
    )
    for name, entry in measured.items():
        report.promise(f"{name}: peak extra memory / size of the logits", entry.peak_mb / size_mb, 2.5)
