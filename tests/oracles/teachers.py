"""Teachers by loops, in double precision, written from the laws: averages, scores, decisions, windows, agreement."""

import math


def momenta_by_loops(updates, momentum, warmup):
    return [min(1 - 1 / (i + 1), momentum) if warmup else momentum for i in range(updates)]


def averages_by_loops(start, students, momenta):
    """Lists of floats: ``start`` after following each of ``students`` with the momentum that goes with it."""
    teacher = [float(value) for value in start]
    for student, d in zip(students, momenta, strict=True):
        for k in range(len(teacher)):
            teacher[k] = d * teacher[k] + (1 - d) * float(student[k])
    return teacher


def softmax_by_loops(values):
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def density_by_loops(pixels, temperature):
    """``pixels``: one list of logits a pixel. All of them are used."""
    features = []
    for logits in pixels:
        probs = softmax_by_loops([float(value) for value in logits])
        length = math.sqrt(sum(p * p for p in probs))
        features.append([p / length for p in probs])
    total = 0.0
    for one in features:
        row = softmax_by_loops(
            [temperature * sum(a * b for a, b in zip(one, other, strict=True)) for other in features]
        )
        total -= sum(p * math.log(p) for p in row if p > 0)
    return total / len(features)


def entropy_by_loops(pixels):
    total, count = 0.0, 0
    for logits in pixels:
        if any(math.isnan(value) for value in logits):
            continue
        confidence = max(softmax_by_loops([float(value) for value in logits]))
        total += 1 + 2 * confidence * math.log2(confidence)
        count += 1
    return total / count if count else 0.0


def decisions_by_loops(calls, score, *, first, every, most, ranks=1):
    """What is decided at which step: ``score(step, batch, rank)`` is the student's after so many steps, on a batch.

    Batch number k is first seen after k steps, and the decision comes after one more.

    Returns:
        (call from 1, batches stored, share improved or NaN, updated) for each decision.
    """
    stored, out = [], []
    waited = 0
    for call in range(calls):
        stored.append((call, [score(call, call, rank) for rank in range(ranks)]))
        # Here the student learns from the batch.
        waited += 1
        if len(stored) < first or (len(stored) > first and waited < every):
            continue
        waited = 0
        share = math.nan
        if len(stored) <= most:
            better = 0
            for batch, then in stored:
                for rank in range(ranks):
                    better += score(call + 1, batch, rank) > then[rank]
            share = better / (len(stored) * ranks)
        update = len(stored) > most or share > 0.5
        out.append((call + 1, len(stored), share, update))
        if update:
            stored = []
    return out


def windows_by_loops(length, window, stride):
    """(first, last + 1) of the windows along one side."""
    window = min(window, length)
    out, start = [], 0
    while start + window < length:
        out.append((start, start + window))
        start += stride
    return [*out, (length - window, length)]


def agreement_by_loops(teacher, student, classes):
    """Two lists of one list of logits a pixel: share, per class, mean gap of confidences; NaN where nothing counts."""
    same, both, either, gap, count = 0, [0] * classes, [0] * classes, 0.0, 0
    for one, two in zip(teacher, student, strict=True):
        if any(math.isnan(value) for value in (*one, *two)):
            continue
        probs = softmax_by_loops(one), softmax_by_loops(two)
        labels = [p.index(max(p)) for p in probs]
        count += 1
        same += labels[0] == labels[1]
        gap += max(probs[0]) - max(probs[1])
        for c in range(classes):
            both[c] += labels[0] == c and labels[1] == c
            either[c] += c in labels
    per_class = [b / e if e else math.nan for b, e in zip(both, either, strict=True)]
    return (same / count, per_class, gap / count) if count else (math.nan, per_class, math.nan)
