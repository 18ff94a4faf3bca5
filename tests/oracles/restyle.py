"""Restyled images by NumPy, one channel of one image at a time; counts by loops."""

import math

import numpy as np


def moments(image, style):
    """(D, H, W) with the mean and deviation of each channel of a style (D, h, w), over finite values."""
    out = np.array(image, dtype=np.float64)
    for channel, other in zip(out, np.asarray(style, dtype=np.float64), strict=True):
        finite = np.isfinite(channel)
        mine, others = channel[finite], other[np.isfinite(other)]
        mean = others.sum() / others.size if others.size else np.nan
        spread = np.sqrt(((others - mean) ** 2).sum() / others.size) if others.size else np.nan
        scale = mine.std() if mine.size and mine.max() > mine.min() else np.inf
        channel[finite] = (mine - mine.mean()) / scale * spread + mean
    return out


def lab(image):
    """CIE Lab of one sRGB image (3, H, W) in [0, 1], under D65."""
    linear = np.where(image > 0.04045, ((image + 0.055) / 1.055) ** 2.4, image / 12.92)
    matrix = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    x, y, z = np.einsum("ij,jhw->ihw", matrix, linear) / np.array([0.95047, 1.0, 1.08883])[:, None, None]
    fx, fy, fz = (np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 4 / 29) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def amplitudes(image, style, beta):
    """(D, H, W): each frequency by a sum over all pixels, its amplitude the style's where it is low."""
    image, style = np.asarray(image, dtype=np.float64), np.asarray(style, dtype=np.float64)
    height, width = image.shape[1:]
    most = math.floor(beta * min(height, width))
    out = np.zeros_like(image)
    for d in range(len(image)):
        for u in range(-(height // 2), (height + 1) // 2):
            for v in range(-(width // 2), (width + 1) // 2):
                value = frequency(image[d], u, v)
                if abs(u) <= most and abs(v) <= most:
                    phase = np.angle(value) if abs(value) > 1e-12 else 0.0
                    value = abs(frequency(style[d], u, v)) * np.exp(1j * phase)
                out[d] += (value * wave(height, width, u, v)).real
    return out


def frequency(plane, u, v):
    """Per pixel, so that planes of several sizes can be compared."""
    return (plane * wave(*plane.shape, u, v).conj()).mean()


def wave(height, width, u, v):
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    return np.exp(2j * np.pi * (u * rows / height + v * columns / width))


def confusion(predicted, labels, classes):
    """(C, C + 1) counts of pixels; -1 among the predicted is no class."""
    counts = np.zeros((classes, classes + 1), dtype=np.int64)
    for mine, truth in zip(predicted.ravel(), labels.ravel(), strict=True):
        if 0 <= truth < classes:
            counts[truth, mine if mine >= 0 else classes] += 1
    return counts


def scores(counts):
    """IoU, precision and recall of each class, None where there is nothing to divide by."""
    found = []
    for c in range(len(counts)):
        right, true, labelled = counts[c, c], counts[c].sum(), counts[:, c].sum()
        found.append(tuple(right / of if of else None for of in (true + labelled - right, labelled, true)))
    return found
