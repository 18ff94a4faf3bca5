"""Portions by class and the check of rounds, written from the formulas in plain loops."""

from __future__ import annotations

import itertools
import math


def agreement(labels, other, classes, measure):
    """Flat lists of labels."""
    result = []
    for c in range(classes):
        both = first = either = 0
        for a, b in zip(labels, other, strict=True):
            if not (0 <= a < classes and 0 <= b < classes):
                continue
            both += a == c and b == c
            first += a == c
            either += a == c or b == c
        divisor = first if measure == "precision" else either
        result.append(both / divisor if divisor else math.nan)
    return result


def reliable(portion, reliability, low, high, power, unknown):
    if math.isnan(reliability):
        return portion * unknown
    if reliability <= low:
        return 0.0
    if reliability >= high:
        return portion
    return portion * math.pow((reliability - low) / (high - low), power)


def aligned(wanted, source, factor):
    """Labels that are left of ``wanted``: every set of classes is tried as the set of capped ones.

    With S capped, M labels are left in all: those of the others, and factor · q_c · M of each class in S. Among the
    sets for which the caps hold (a capped class had more, the others have less), the one with most labels.
    """
    total = sum(q for a, q in zip(wanted, source, strict=True) if a > 0)
    shares = [q / total if a > 0 and total else 0.0 for a, q in zip(wanted, source, strict=True)]
    some = [c for c, a in enumerate(wanted) if a > 0]
    most = 0.0
    for size in range(len(some) + 1):
        for capped in itertools.combinations(some, size):
            free = sum(wanted[c] for c in some if c not in capped)
            left = 1 - factor * sum(shares[c] for c in capped)
            if left <= 1e-12:
                continue
            labels = free / left
            fits = all(
                (factor * shares[c] * labels <= wanted[c] * (1 + 1e-9))
                if c in capped
                else (wanted[c] <= factor * shares[c] * labels * (1 + 1e-9))
                for c in some
            )
            if fits:
                most = max(most, labels)
    return [min(a, factor * q * most) for a, q in zip(wanted, shares, strict=True)]


def precision_threshold(pixels, precision):
    """``pixels``: (log-odds, right) of one class. The lowest log-odds above which enough are right, or None."""
    found = None
    for bar, _ in pixels:
        above = [right for odds, right in pixels if odds >= bar]
        if sum(above) >= precision * len(above) and (found is None or bar < found):
            found = bar
    return found
