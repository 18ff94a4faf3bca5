"""Small-class mining by loops, written from the law: which classes, where the crops fall, what they contain."""

import math

import numpy as np


def rare_by_loops(counts, k):
    left = [c for c in range(len(counts)) if counts[c] > 0]
    out = []
    while left and len(out) < k:
        best = left[0]
        for c in left:
            if counts[c] < counts[best]:
                best = c
        left.remove(best)
        out.append(best)
    return out


def below_by_loops(counts, share):
    total = sum(counts)
    out = []
    for c in rare_by_loops(counts, len(counts)):
        if (counts[c] / total if total else 0.0) < share:
            out.append(c)
    return out


def corner_distribution(labels, classes, size, *, chance, fallback=(), ignore_index=255):
    """(H-h+1, W-w+1) probabilities of the top left corner, for one image (at least 1 along each dimension)."""
    height, width = labels.shape
    h, w = size
    last_top, last_left = max(0, height - h), max(0, width - w)
    probability = np.zeros((last_top + 1, last_left + 1))
    present = []
    for wanted in (classes, fallback):
        if not present:
            present = [c for c in sorted({int(c) for c in wanted}) if c != ignore_index and np.any(labels == c)]
    if not present:
        chance = 0.0
    for top in range(last_top + 1):
        for left in range(last_left + 1):
            probability[top, left] += (1 - chance) / probability.size
    for c in present:
        pixels = [(i, j) for i in range(height) for j in range(width) if labels[i, j] == c]
        for i, j in pixels:
            top = min(max(i - math.floor(h / 2), 0), last_top)
            left = min(max(j - math.floor(w / 2), 0), last_left)
            probability[top, left] += chance / len(present) / len(pixels)
    return probability


def crop_by_loops(array, corners, size, fill):
    """(B, …, h, w): pixel by pixel, the corner moved inside first, ``fill`` where the image has ended."""
    height, width = array.shape[-2:]
    out = np.full((*array.shape[:-2], *size), fill, dtype=array.dtype)
    for b, (top, left) in enumerate(corners):
        top = min(max(int(top), 0), max(0, height - size[0]))
        left = min(max(int(left), 0), max(0, width - size[1]))
        for i in range(size[0]):
            for j in range(size[1]):
                if top + i < height and left + j < width:
                    out[b, ..., i, j] = array[b, ..., top + i, left + j]
    return out
