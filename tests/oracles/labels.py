"""Searching and counting in label maps, pixel by pixel."""

import numpy as np


def find_by_loops(labels, ranked, number):
    """(row, column) of each image, None where none of the classes occurs."""
    out = []
    for image, classes, n in zip(labels, ranked, number, strict=True):
        found = None
        for c in classes:  # a later one takes the place of an earlier one
            pixels = []
            for row in range(image.shape[0]):
                for column in range(image.shape[1]):
                    if image[row, column] == c and 0 <= c < 65536:
                        pixels.append((row, column))
            if pixels:
                found = pixels[n % len(pixels)]
        out.append(found)
    return out


def _place(label, num_classes):
    if label < 0:
        return 0
    return label + 1 if label < num_classes else num_classes + 1


def sums_by_loops(labels, num_classes, before=None, weights=None):
    """(B, C + 2) or (B, (C + 2)²) pixels, or weights rounded to 2^-24."""
    width = num_classes + 2
    out = np.zeros((len(labels), width if before is None else width * width))
    for place in np.ndindex(labels.shape):
        key = _place(int(labels[place]), num_classes)
        if before is not None:
            key += width * _place(int(before[place]), num_classes)
        one = 1.0
        if weights is not None:
            one = 0.0 if np.isnan(weights[place]) else np.round(float(weights[place]) * 2**24) / 2**24
        out[place[0], key] += one
    return out


def iou_by_names(truth, predicted, name, ignored=()):
    """Of a class, from lists of names of classes a pixel, None in the truth where there is none."""
    both = either = 0
    for true, said in zip(truth, predicted, strict=True):
        if true is None or true in ignored:
            continue
        both += true == name and said == name
        either += name in (true, said)
    return both / either if either else float("nan")
