"""Views by loops: every pixel's place as an exact fraction; colours and blur one pixel, one image at a time."""

import colorsys
import math
from fractions import Fraction

import numpy as np
from scipy import ndimage


def sample(array, y, x, first, last, mode):
    """(…) the value of (…, H, W) at a place (pixel centres at half-integers), within the pixels first to last."""
    if mode == "nearest":
        return array[..., math.floor(y), math.floor(x)]
    total = 0.0
    for row, row_weight in taps(y, first[0], last[0]):
        for column, column_weight in taps(x, first[1], last[1]):
            total = total + float(row_weight * column_weight) * array[..., row, column].astype(np.float64)
    return total


def taps(place, first, last):
    low = math.floor(place - Fraction(1, 2))
    part = place - Fraction(1, 2) - low
    weights = {}
    for index, weight in ((low, 1 - part), (low + 1, part)):
        if weight:  # an infinite value with no weight does not count
            index = min(max(index, first), last)
            weights[index] = weights.get(index, 0) + weight
    return weights.items()


def view_by_loops(array, size, scaled, corner, flipped, upside_down, turns, mode, fill):
    """(…, h, w) of one image (…, H, W): the window as it is cut, flipped by NumPy, and turned by it."""
    window = window_by_loops(array, size[::-1] if turns % 2 else size, scaled, corner, mode, fill)
    window = window[..., ::-1] if flipped else window
    window = window[..., ::-1, :] if upside_down else window
    return np.rot90(window, turns, axes=(-2, -1))


def window_by_loops(array, size, scaled, corner, mode, fill):
    lengths = array.shape[-2:]
    out = np.full((*array.shape[:-2], *size), fill, dtype=np.float64 if mode == "bilinear" else array.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = corner[0] + i, corner[1] + j
            if 0 <= y < scaled[0] and 0 <= x < scaled[1]:
                place = [
                    (at + Fraction(1, 2)) * Fraction(n, s) for at, n, s in zip((y, x), lengths, scaled, strict=True)
                ]
                out[..., i, j] = sample(array, *place, (0, 0), (lengths[0] - 1, lengths[1] - 1), mode)
    return out


def inverse_by_loops(array, image_size, scaled, corner, flipped, upside_down, turns, mode, fill):
    """(…, H, W), (H, W) bool of one view (…, h, w)."""
    array = np.rot90(array, -turns, axes=(-2, -1))
    array = array[..., ::-1, :] if upside_down else array
    unflipped = array[..., ::-1] if flipped else array
    size = array.shape[-2:]
    out = np.full((*array.shape[:-2], *image_size), fill, dtype=np.float64 if mode == "bilinear" else array.dtype)
    valid = np.zeros(image_size, dtype=bool)
    last = [min(size[d], scaled[d] - corner[d]) - 1 for d in (0, 1)]
    for i in range(image_size[0]):
        for j in range(image_size[1]):
            place = [
                (at + Fraction(1, 2)) * Fraction(scaled[d], image_size[d]) - corner[d] for d, at in enumerate((i, j))
            ]
            if all(0 <= math.floor(place[d]) < size[d] for d in (0, 1)):
                valid[i, j] = True
                out[..., i, j] = sample(unflipped, *place, (0, 0), last, mode)
    return out, valid


def strong_by_loops(image, jitter, grey, sigma, cut_out, fill):
    """(3, h, w) of one weak view (3, h, w)."""
    red, green, blue = 0.299, 0.587, 0.114
    image = image.astype(np.float64)
    _, height, width = image.shape
    brightness, contrast, saturation, hue = jitter
    if tuple(jitter) != (1, 1, 1, 0):
        image = np.clip(image * brightness, 0, 1)
        mean = sum(
            red * image[0, i, j] + green * image[1, i, j] + blue * image[2, i, j]
            for i in range(height)
            for j in range(width)
        ) / (height * width)
        image = np.clip(mean + contrast * (image - mean), 0, 1)
        out = np.empty_like(image)
        for i in range(height):
            for j in range(width):
                r, g, b = image[:, i, j]
                light = red * r + green * g + blue * b
                pixel = [min(max(light + saturation * (value - light), 0.0), 1.0) for value in (r, g, b)]
                h, s, v = colorsys.rgb_to_hsv(*pixel)
                out[:, i, j] = colorsys.hsv_to_rgb((h + hue) % 1.0, s, v)
        image = out
    if grey:
        image = np.stack([red * image[0] + green * image[1] + blue * image[2]] * 3)
    if sigma > 0:
        radius = 20  # far beyond the library's window
        for axis in (1, 2):
            image = ndimage.gaussian_filter1d(image, sigma, axis=axis, mode="nearest", radius=radius)
    return np.where(cut_out, fill, image)


def average_by_loops(views, image_size, mode):
    """(C, H, W), (H, W) bool: of views (array, scaled, corner, flipped, upside_down, turns) of one image."""
    total, count = 0.0, np.zeros(image_size)
    for array, *geometry in views:
        back, seen = inverse_by_loops(array, image_size, *geometry, mode, 0.0)
        total = total + back
        count += seen
    average = np.zeros(total.shape)
    for i in range(image_size[0]):
        for j in range(image_size[1]):
            if count[i, j]:
                average[:, i, j] = total[:, i, j] / count[i, j]
    return average, count > 0


def hidden_by_loops(numbers, size, patch_size, ratio):
    """(H, W) bool, from a number of each patch of one image: patches are filled in one after another."""
    hidden = np.zeros(size, dtype=bool)
    for i, row in enumerate(numbers):
        for j, number in enumerate(row):
            if number < ratio:
                top, left = i * patch_size, j * patch_size
                hidden[top : top + patch_size, left : left + patch_size] = True
    return hidden
