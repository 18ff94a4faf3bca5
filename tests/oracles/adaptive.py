"""The adaptive selectors written from the formulas: NumPy, loops over images, classes and pixels, float64."""

from __future__ import annotations

import numpy as np

from tests.oracles.selection import confidence, softmax, usable


def instance_adaptive(logits, theta, *, portion, momentum, gamma, per="image"):
    """Return (labels, θ afterwards)."""
    labels, m = confidence(logits)
    theta, out = np.array(theta, dtype=np.float64), np.full(labels.shape, 255)
    groups = [[b] for b in range(len(logits))] if per == "image" else [list(range(len(logits)))]
    for group in groups:
        for c in range(logits.shape[1]):
            values = [
                m[b][i] for b in group for i in np.ndindex(*labels.shape[1:]) if labels[b][i] == c and m[b][i] > 0
            ]
            if values:
                psi = np.quantile([*values, theta[c]], 1 - portion * theta[c] ** gamma)
                moved = momentum * theta[c] + (1 - momentum) * psi
                theta[c] = 0.999 if moved >= 1 else moved
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


def usable_values(logits):
    """(labels, confidences) of all usable pixels as flat lists."""
    labels, m = confidence(logits)
    return labels[m > 0], m[m > 0]


def fixed_weight(logits, threshold, weigh_by):
    """DAFormer's weight of every pixel."""
    _, m = confidence(logits)
    out = np.zeros(m.shape)
    for b in range(len(m)):
        pool = m[b] if weigh_by == "image" else m
        out[b] = (m[b] > 0) * ((pool >= threshold) & (pool > 0)).sum() / max((pool > 0).sum(), 1)
    return out


def _keep(logits, bars):
    labels, m = confidence(logits)
    out = np.full(labels.shape, 255)
    for index in np.ndindex(*labels.shape):
        if m[index] > 0 and m[index] >= bars[labels[index]]:
            out[index] = labels[index]
    return out


def freematch(logits, state, momentum):
    """State: (τ, p̃, h)."""
    tau, probs, histogram = state
    labels, m = usable_values(logits)
    if len(m):
        tau = momentum * tau + (1 - momentum) * m.mean()
        probs = momentum * probs + (1 - momentum) * probability_mean(logits)
        shares = np.array([(labels == c).mean() for c in range(len(probs))])
        histogram = momentum * histogram + (1 - momentum) * shares
    return _keep(logits, tau * probs / probs.max()), (tau, probs, histogram)


def flexmatch(logits, sigma, threshold, momentum):
    labels, m = usable_values(logits)
    if len(m):
        shares = np.array([((labels == c) & (m >= threshold)).mean() for c in range(len(sigma))])
        sigma = momentum * sigma + (1 - momentum) * shares
    beta = sigma / max(sigma.max(), 1 - sigma.sum())
    return _keep(logits, threshold * beta / (2 - beta)), sigma


def softmatch(logits, state, *, momentum, sigmas, align):
    """State: (μ, σ², p̃). Returns weights instead of labels."""
    mu, variance, probs = state
    batch, num_classes = logits.shape[:2]
    if align and len(usable_values(logits)[1]):
        probs = momentum * probs + (1 - momentum) * probability_mean(logits)
    m = np.zeros((batch, *logits.shape[2:]))
    for index in np.ndindex(*m.shape):
        z = logits[(index[0], slice(None), *index[1:])].astype(np.float64)
        if usable(z):
            p = softmax(z)
            if align:
                p = p / num_classes / probs
                p = p / p.sum()
            m[index] = p.max()
    values = m[m > 0]
    if len(values):
        mu = momentum * mu + (1 - momentum) * values.mean()
        variance = momentum * variance + (1 - momentum) * values.var()
    weights = np.exp(-(np.minimum(m - mu, 0) ** 2) * sigmas**2 / (2 * variance)) * (m > 0)
    return weights, (mu, variance, probs)
