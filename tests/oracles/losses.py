"""The losses as plain NumPy loops, one pixel at a time in float64, written from the formulas of METHODS §3 and §4.

Every function takes arrays, with logits (B, C, H, W), and returns ``{"none": map, "sum": float, "mean": float}``.
"""

from __future__ import annotations

import math

import numpy as np


def pixels(batch, height, width):
    return [(b, h, w) for b in range(batch) for h in range(height) for w in range(width)]


def log_softmax(z):
    z = np.asarray(z, dtype=np.float64)
    top = z.max()
    return z - top - math.log(sum(math.exp(v - top) for v in z))


def results(loss_map, mean):
    return {"none": loss_map, "sum": loss_map.sum(), "mean": mean}


def ratio(total, count):
    return total / count if count else 0.0


def divisor(normalize, count, labels):
    """What a sum over ``count`` pixels is divided by: their number, or that of all pixels, counted one by one."""
    if normalize == "labelled":
        return count
    assert normalize == "all"
    return len(pixels(labels.shape[0], *labels.shape[-2:]))


def regularized(
    kind,
    logits,
    labels,
    reg_weight=0.1,
    image_weight=None,
    pixel_weight=None,
    normalize="labelled",
    ignore_index=255,
):
    """MRKLD ("kld"), MRENT ("ent") and MRL2 ("l2"); ``labels`` (B, H, W), or soft (B, C, H, W)."""
    batch, classes, height, width = logits.shape
    out = np.zeros((batch, height, width))
    ce = reg = 0.0
    n = n_reg = 0
    for b, h, w in pixels(batch, height, width):
        if labels.ndim == 4:
            y = labels[b, :, h, w]
            if not y.any():
                continue
        else:
            if labels[b, h, w] == ignore_index:
                continue
            y = np.eye(classes)[labels[b, h, w]]
        log_p = log_softmax(logits[b, :, h, w])
        factor = 1.0 if pixel_weight is None else pixel_weight[b, h, w]
        nll = factor * -sum(y[c] * log_p[c] for c in range(classes))
        n += 1
        ce += nll
        out[b, h, w] = nll
        image = 1.0 if image_weight is None else float(image_weight[b])
        if image != 0:
            n_reg += 1
            if kind == "kld":
                value = -sum(log_p) / classes
            elif kind == "ent":
                value = sum(math.exp(v) * v for v in log_p)
            else:
                value = sum(math.exp(v) ** 2 for v in log_p)
            reg += image * factor * value
            out[b, h, w] += reg_weight * image * factor * value
    n, n_reg = divisor(normalize, n, labels), divisor(normalize, n_reg, labels)
    return results(out, ratio(ce, n) + reg_weight * ratio(reg, n_reg))


def cross_entropy(logits, labels, pixel_weight=None, normalize="labelled", valid=None, ignore_index=255):
    """``labels`` (B, H, W), or soft (B, C, H, W); ``valid`` (B, H, W) says which pixels "all" counts."""
    batch, classes, height, width = logits.shape
    out = np.zeros((batch, height, width))
    labelled = counted = 0
    for b, h, w in pixels(batch, height, width):
        counted += 1 if valid is None or valid[b, h, w] else 0
        log_p = log_softmax(logits[b, :, h, w])
        if labels.ndim == 4:
            nll = -sum(labels[b, c, h, w] * log_p[c] for c in range(classes))
            has_label = any(labels[b, c, h, w] != 0 for c in range(classes))
        else:
            has_label = labels[b, h, w] != ignore_index
            nll = -log_p[labels[b, h, w]] if has_label else 0.0
        if has_label:
            labelled += 1
            out[b, h, w] = nll * (1.0 if pixel_weight is None else pixel_weight[b, h, w])
    return results(out, ratio(out.sum(), {"labelled": labelled, "all": counted}[normalize]))


def region_guided(
    logits,
    labels,
    confident_weight=0.1,
    ignored_weight=3.0,
    per_class=True,
    pixel_weight=None,
    normalize="labelled",
    ignore_index=255,
):
    batch, classes, height, width = logits.shape
    out = np.zeros((batch, height, width))
    ce = kld = entropy = 0.0
    labelled = ignored = 0
    for b, h, w in pixels(batch, height, width):
        log_p = log_softmax(logits[b, :, h, w])
        factor = 1.0 if pixel_weight is None else pixel_weight[b, h, w]
        if labels[b, h, w] == ignore_index:
            ignored += 1
            value = -factor * sum(math.exp(v) * v for v in log_p)
            entropy += value
            out[b, h, w] = ignored_weight * value
        else:
            labelled += 1
            nll, value = -factor * log_p[labels[b, h, w]], -factor * sum(log_p) / classes
            ce += nll
            kld += value
            out[b, h, w] = nll + confident_weight * value
    scale = classes if per_class else 1
    labelled, ignored = divisor(normalize, labelled, labels), divisor(normalize, ignored, labels)
    mean = ratio(ce, labelled)
    mean += confident_weight * ratio(kld, scale * labelled) + ignored_weight * ratio(entropy, scale * ignored)
    return results(out, mean)


def weighted(logits, labels, weight_of, normalize="labelled", ignore_index=255, by=None):
    """Cross entropy with a weight and, perhaps, another label from ``weight_of(b, h, w, log_p, y)``."""
    batch, _, height, width = logits.shape
    out = np.zeros((batch, height, width))
    n = 0
    for b, h, w in pixels(batch, height, width):
        y = labels[b, h, w]
        if y == ignore_index:
            continue
        n += 1
        log_p = log_softmax(logits[b, :, h, w])
        weight, y = weight_of(b, h, w, log_p, y)
        out[b, h, w] = weight * -log_p[y]
    return results(out, ratio(out.sum(), divisor(normalize, n, labels) if by is None else by))


def dynamic(logits, labels, gamma, is_pseudo=None, pixel_weight=None, normalize="labelled", ignore_index=255):
    def weight_of(b, h, w, log_p, y):
        factor = 1.0 if pixel_weight is None else pixel_weight[b, h, w]
        pseudo = is_pseudo is None or is_pseudo[b]
        return (factor * math.exp(log_p[y]) ** gamma if pseudo else factor), y

    return weighted(logits, labels, weight_of, normalize, ignore_index)


def dynamic_mutual(
    logits,
    labels,
    confidence,
    gamma_agree,
    gamma_disagree,
    is_pseudo=None,
    flip=False,
    normalize="labelled",
    ignore_index=255,
):
    def weight_of(b, h, w, log_p, y):
        if is_pseudo is not None and not is_pseudo[b]:
            return 1.0, y
        own = int(np.argmax(log_p))
        if own == y:
            return math.exp(log_p[y]) ** gamma_agree, y
        if math.exp(log_p[own]) <= confidence[b, h, w]:
            return math.exp(log_p[y]) ** gamma_disagree, y
        if flip:
            return (1 - confidence[b, h, w]) ** gamma_disagree, own
        return 0.0, y

    return weighted(logits, labels, weight_of, normalize, ignore_index)


def class_weighted(logits, labels, class_weight, normalize="labelled", pixel_weight=None, ignore_index=255):
    def weight_of(b, h, w, log_p, y):
        return class_weight[y] * (1.0 if pixel_weight is None else pixel_weight[b, h, w]), y

    by = None
    if normalize == "weights":
        by, normalize = sum(class_weight[y] for y in labels.flatten() if y != ignore_index), None
    return weighted(logits, labels, weight_of, normalize, ignore_index, by)


def symmetric(
    logits,
    labels,
    alpha=0.1,
    beta=1.0,
    log_zero=-4.0,
    pixel_weight=None,
    normalize="labelled",
    ignore_index=255,
):
    batch, classes, height, width = logits.shape
    out = np.zeros((batch, height, width))
    n = 0
    for b, h, w in pixels(batch, height, width):
        y = labels[b, h, w]
        if y == ignore_index:
            continue
        n += 1
        log_p = log_softmax(logits[b, :, h, w])
        reverse = -sum(math.exp(log_p[c]) * (0.0 if c == y else log_zero) for c in range(classes))
        factor = 1.0 if pixel_weight is None else pixel_weight[b, h, w]
        out[b, h, w] = factor * (alpha * -log_p[y] + beta * reverse)
    return results(out, ratio(out.sum(), divisor(normalize, n, labels)))


def negative(logits, teacher_probs, loss_weight=0.5, pixel_weight=None):
    batch, classes, height, width = logits.shape
    out = np.zeros((batch, height, width))
    pairs = 0
    for b, h, w in pixels(batch, height, width):
        factor = 1.0 if pixel_weight is None else pixel_weight[b, h, w]
        for c in range(classes):
            if teacher_probs[b, c, h, w] <= 1 / classes:
                pairs += 1
                out[b, h, w] += loss_weight * factor * np.logaddexp(0.0, logits[b, c, h, w])
    return results(out, ratio(out.sum(), pairs))


def fairness(logits, running_probs, running_histogram, mask=None, loss_weight=0.01):
    batch, classes, height, width = logits.shape
    total, counts = np.zeros(classes), np.zeros(classes)
    for b, h, w in pixels(batch, height, width):
        if mask is None or mask[b, h, w]:
            p = np.exp(log_softmax(logits[b, :, h, w]))
            total += p
            counts[np.argmax(p)] += 1
    n = max(1.0, counts.sum())
    student, running = np.zeros(classes), np.zeros(classes)
    for c in range(classes):
        if counts[c]:
            student[c] = (total[c] / n) / (counts[c] / n)
        if running_histogram[c]:
            running[c] = running_probs[c] / running_histogram[c]
    value = 0.0
    for c in range(classes):
        if student[c] > 0 and running[c] > 0:
            value += running[c] / running.sum() * math.log(student[c] / student.sum())
    return {"mean": loss_weight * value}


def reweighted_label(logits, thresholds):
    """CBST's label of one pixel from its C logits: ``argmax p_c / kc_c`` where that is at least 1, else 255."""
    scaled = np.exp(log_softmax(logits)) / thresholds
    return int(np.argmax(scaled)) if scaled.max() >= 1 else 255


def soft_label(logits, thresholds, alpha):
    """LRENT's soft label of one pixel: ``y_c ∝ (p_c / kc_c)^(1/α)``, zero where its logsumexp is not above 0."""
    exponent = (log_softmax(logits) - np.log(thresholds)) / alpha
    top = exponent.max()
    if top + math.log(sum(math.exp(v - top) for v in exponent)) <= 0:
        return np.zeros_like(exponent)
    return np.exp(exponent - top) / sum(math.exp(v - top) for v in exponent)
