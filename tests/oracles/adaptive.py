"""The adaptive selectors written from the formulas: NumPy, loops over images, classes and pixels, float64."""

from __future__ import annotations

import numpy as np

from tests.oracles.selection import confidence, softmax, usable


def instance_adaptive(logits, theta, *, alpha, beta, gamma, per="image"):
    """Return (labels, θ afterwards)."""
    labels, m = confidence(logits)
    theta, out = np.array(theta, dtype=np.float64), np.full(labels.shape, 255)
    groups = [[b] for b in range(len(logits))] if per == "image" else [list(range(len(logits)))]
    for group in groups:
        for c in range(logits.shape[1]):
            values = [m[b][i] for b in group for i in np.ndindex(*labels.shape[1:]) if labels[b][i] == c and m[b][i] > 0]
            if values:
                psi = np.quantile([*values, theta[c]], 1 - alpha * theta[c] ** gamma)
                theta[c] = min(beta * theta[c] + (1 - beta) * psi, 0.999)
        for b in group:
            for i in np.ndindex(*labels.shape[1:]):
                if m[b][i] > 0 and m[b][i] >= theta[labels[b][i]]:
                    out[b][i] = labels[b][i]
    return out, theta


def probability_mean(logits):
    num_classes = logits.shape[1]
    total, count = np.zeros(num_classes), 0
    for b in range(len(logits)):
        for i in np.ndindex(*logits.shape[2:]):
            z = logits[(b, slice(None), *i)].astype(np.float64)
            if usable(z):
                total, count = total + softmax(z), count + 1
    return total / max(count, 1)


def running_confidence(logits, r, seen, *, upper, lower, beta, momentum):
    """Return (labels, r afterwards, seen afterwards)."""
    labels, m = confidence(logits)
    mean, r, seen = probability_mean(logits), np.array(r, dtype=np.float64), np.array(seen)
    for c in range(len(r)):
        if not seen[c] and mean[c] > 1e-8:
            r[c], seen[c] = mean[c], True
        r[c] = momentum * r[c] + (1 - momentum) * mean[c]
    out = np.full(labels.shape, 255)
    for b in range(len(logits)):
        for c in range(len(r)):
            here = (labels[b] == c) & (m[b] > 0)
            if here.any():
                bar = max(lower, upper * m[b][here].max() * (1 - np.exp(-r[c] / beta)))
                out[b][here & (m[b] > bar)] = c
    return out, r, seen
