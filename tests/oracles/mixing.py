"""Sampling, reliability and mixing by loops, written from the formulas."""

import itertools
import math

import numpy as np


def count_by_loops(mask, num_classes, ignore_index=255):
    counts = [0] * num_classes
    for row in mask:
        for label in row:
            if 0 <= label < num_classes and label != ignore_index:
                counts[int(label)] += 1
    return counts


def balanced_weights(shown, drawable):
    """Probabilities of the classes, from how many images with each were drawn so far."""
    total = sum(shown)
    weights = [
        1 / math.log(1.01 + (n / total if total else 0.0)) if can else 0.0
        for n, can in zip(shown, drawable, strict=True)
    ]
    return [w / sum(weights) for w in weights]


def balanced_order(contains, numbers, shuffle, sub_epoch):
    """Images in order, one for each of the uniform ``numbers``; ``shuffle(c, turn)`` gives a class's list."""
    classes = len(contains[0])
    drawable = [any(row[c] for row in contains) for c in range(classes)]
    shown, turns, lists, out = [0] * classes, [0] * classes, {}, []
    for place, number in enumerate(numbers):
        if place % sub_epoch == 0:
            shown = [0] * classes
        c, total = 0, 0.0
        for label, probability in enumerate(balanced_weights(shown, drawable)):
            if total <= number and probability > 0:
                c = label  # the last one that begins at or below the number
            total += probability
        if not lists.get(c):
            lists[c] = list(shuffle(c, turns[c]))
            turns[c] += 1
        image = int(lists[c].pop(0))
        out.append(image)
        shown = [n + int(has) for n, has in zip(shown, contains[image], strict=True)]
    return out


def rare_image_probabilities(counts, contains, temperature):
    """Of each image, by the law of DAFormer."""
    total = sum(sum(row) for row in counts)
    images, classes = range(len(counts)), range(len(counts[0]))
    lists = [[i for i in images if contains[i][c]] for c in classes]
    weights = [
        math.exp((1 - sum(counts[i][c] for i in images) / total) / temperature) if lists[c] else 0.0 for c in classes
    ]
    out = np.zeros(len(counts))
    for c in classes:
        for i in lists[c]:
            out[i] += weights[c] / sum(weights) / len(lists[c])
    return out


def importance_probabilities(counts, contains, uniform):
    """Of each image, by the law of SAC."""
    images, classes = range(len(counts)), range(len(counts[0]))
    drawable = [c for c in classes if any(contains[i][c] for i in images)]
    some = [i for i in images if any(contains[i])]
    out = np.array([uniform / len(some) if i in some else 0.0 for i in images])
    for c in drawable:
        pixels = [counts[i][c] if contains[i][c] else 0 for i in images]
        for i in images:
            out[i] += (1 - uniform) * pixels[i] / sum(pixels) / len(drawable)
    return out


def iou_by_loops(before, now, num_classes):
    """Per class |before = c and now = c| / |before = c or now = c| of pixels that had a class; 0 if c is in none."""
    out = []
    for c in range(num_classes):
        both = either = 0
        for a, b in zip(before.ravel(), now.ravel(), strict=True):
            if not 0 <= a < num_classes:
                continue
            both += a == c and b == c
            either += a == c or b == c
        out.append(both / either if either else 0.0)
    return out


def mean_confidence_by_loops(labels, confidence, num_classes):
    out = []
    for c in range(num_classes):
        values = [m for y, m in zip(labels.ravel(), confidence.ravel(), strict=True) if y == c]
        out.append(sum(values) / len(values) if values else 0.0)
    return out


def candidates_by_loops(values, median="midpoint"):
    """(N, C): positive, and at or above the median of the positive values of the class."""
    out = np.zeros(values.shape, bool)
    for c in range(values.shape[1]):
        positive = [v for v in values[:, c] if v > 0]
        for i in range(len(values)):
            if values[i, c] > 0:
                # Python's round, too, takes halves to the even number.
                middle = np.median(positive) if median == "midpoint" else sorted(positive)[round(len(positive) / 2)]
                out[i, c] = values[i, c] >= middle
    return out


def class_sets(labels, rounding, ignore_index=255):
    """All sets of half of the classes of one image, each as likely as the others."""
    present = sorted({int(c) for c in labels.ravel()} - {ignore_index})
    half = len(present) // 2 if rounding == "floor" else math.ceil(len(present) / 2)
    return list(itertools.combinations(present, half))


def components(mask):
    """Lists of pixels that touch each other, also at corners, found by walking from each."""
    left, out = {(i, j) for i, j in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        todo, found = [min(left)], []
        left -= set(todo)
        while todo:
            i, j = todo.pop()
            found.append((int(i), int(j)))
            near = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            todo += near
        out.append(sorted(found))
    return out


def paste_regions(labels, class_weight, companions, min_class_pixels, min_pixels):
    """{class: (probability, regions)}: which classes may be drawn from an image, and their regions in reading order."""
    weights = {c: w for c, w in enumerate(class_weight) if w > 0 and (labels == c).sum() >= min_class_pixels}
    out = {}
    for c, w in weights.items():
        parts = components(np.isin(labels, [c, *companions.get(c, ())]))
        regions = [part for part in parts if sum(labels[pixel] == c for pixel in part) >= min_pixels]
        out[c] = (w / sum(weights.values()), sorted(regions))
    return out


def laid_over(shape, moved):
    """(H, W) of (number of the region, pixel it came from) or None: regions moved by (down, right), the last on top."""
    out = [[None] * shape[1] for _ in range(shape[0])]
    for number, (region, (down, right)) in enumerate(moved):
        for i, j in region:
            out[i + down][j + right] = (number, (i, j))
    return out


def enlarge_by_loops(source, region, size, place, shape):
    """(H, W) arrays of values (bilinear), values (nearest) and mask, of a region's box enlarged and put at a place."""
    rows, columns = [p[0] for p in region], [p[1] for p in region]
    top, left = min(rows), min(columns)
    height, width = max(rows) - top + 1, max(columns) - left + 1
    smooth, near, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)

    def at(y, x):
        return source[min(max(y, 0), shape[0] - 1), min(max(x, 0), shape[1] - 1)]

    for i in range(size[0]):
        for j in range(size[1]):
            y, x = (i + 0.5) * height / size[0], (j + 0.5) * width / size[1]
            here = (place[0] + i, place[1] + j)
            pixel = (top + math.floor(y), left + math.floor(x))
            near[here], mask[here] = source[pixel], pixel in region
            y, x = top + y - 0.5, left + x - 0.5
            a, b = math.floor(y), math.floor(x)
            smooth[here] = (1 - (y - a)) * ((1 - (x - b)) * at(a, b) + (x - b) * at(a, b + 1)) + (y - a) * (
                (1 - (x - b)) * at(a + 1, b) + (x - b) * at(a + 1, b + 1)
            )
    return smooth, near, mask
