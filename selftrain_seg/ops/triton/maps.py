"""Kernels that search (B, H, W) maps for components, pixels and classes, and that read single pixels of logits.

The programs read each image as one row of pixels in parts of CHUNK, or in runs of a row.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import jit, place, tl


@jit
def _later(one, other):
    return tl.maximum(one, other)


@jit
def _root(parents, node, active):
    """Follow the pointers to the root. They point to smaller numbers, and a root points to itself."""
    above = tl.load(parents + node, mask=active, other=0)
    moving = active & (above != node)
    while tl.max(moving.to(tl.int32), 0) > 0:
        node = tl.where(moving, above, node)
        above = tl.load(parents + node, mask=moving, other=0)
        moving = moving & (above != node)
    return node


@jit
def _unite(parents, one, other, active):
    """Join two trees. If another thread has given a root a parent in the meantime, join that parent."""
    one, other = _root(parents, one, active), _root(parents, other, active)
    apart = active & (one != other)
    while tl.max(apart.to(tl.int32), 0) > 0:
        low, high = tl.minimum(one, other), tl.maximum(one, other)
        before = tl.atomic_min(parents + high, low, mask=apart)
        one = tl.where(apart & (before != high), before, low)
        other = low
        apart = apart & (one != other)


@jit
def start_kernel(mask, parents, height, width, PIXELS: tl.constexpr):
    """Point each pixel to the first one of its run within the program; outside the mask to itself."""
    _, row, columns, at, inside = place(height, width, PIXELS)
    own = (row * width + columns).to(tl.int32)
    shown = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
    goes_on = tl.load(mask + at - 1, mask=shown & (columns > 0), other=0) != 0
    begins = shown & ((goes_on == 0) | (tl.arange(0, PIXELS) == 0))
    run = tl.associative_scan(tl.where(begins, own, -1), 0, _later)
    tl.store(parents + at, tl.where(shown, run, own), mask=inside)


@jit
def unite_kernel(mask, parents, height, width, PIXELS: tl.constexpr):
    """Join runs with those that they touch in the row above, and runs that continue from another program."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    shown = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
    has_left, has_right, has_above = shown & (columns > 0), shown & (columns < width - 1), shown & (row > 0)
    left = tl.load(mask + at - 1, mask=has_left, other=0) != 0
    right = tl.load(mask + at + 1, mask=has_right, other=0) != 0
    above = tl.load(mask + at - width, mask=has_above, other=0) != 0
    above_left = tl.load(mask + at - width - 1, mask=has_above & has_left, other=0) != 0
    above_right = tl.load(mask + at - width + 1, mask=has_above & has_right, other=0) != 0
    own, parents = (row * width + columns).to(tl.int32), parents + image * height * width
    upper = (own - width).to(tl.int32)
    # Only the first pixel of a contact joins the two runs, so that each pair is joined about once.
    _unite(parents, own, own - 1, left & (tl.arange(0, PIXELS) == 0))
    _unite(parents, own, upper, above & ((left & above_left) == 0))
    _unite(parents, own, upper - 1, above_left & (above == 0) & (left == 0))
    _unite(parents, own, upper + 1, above_right & (above == 0) & (right == 0))


@jit
def root_kernel(parents, roots, height, width, PIXELS: tl.constexpr):
    """The first pixel of the component of each pixel."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    own = (row * width + columns).to(tl.int32)
    tl.store(roots + at, _root(parents + image * height * width, own, inside).to(tl.int64), mask=inside)


@jit
def _part(labels, pixels, image, part, CHUNK: tl.constexpr):
    """Labels of a part of an image, and which of them are inside the image."""
    at = part * CHUNK + tl.arange(0, CHUNK)
    return tl.load(labels + image * pixels + at, mask=at < pixels, other=-1).to(tl.int64), at < pixels


@jit
def tally_kernel(labels, ranked, counts, pixels, parts, columns, CHUNK: tl.constexpr):
    """(B, K, parts): number of pixels of each class in each part."""
    image, part = (tl.program_id(0) // parts).to(tl.int64), (tl.program_id(0) % parts).to(tl.int64)
    label, inside = _part(labels, pixels, image, part, CHUNK)
    for k in range(columns):
        wanted = tl.load(ranked + image * columns + k)
        equal = inside & (label == wanted) & (wanted >= 0) & (wanted < 65536)
        tl.store(counts + (image * columns + k) * parts + part, tl.sum(equal.to(tl.int32), 0))


@jit
def mine_kernel(
    labels, ranked, counts, draws, corners, pixels, width, parts, columns, stride_draws,
    last_top, last_left, half_height, half_width, limit, CHUNK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The corner of the crop of an image: around a pixel of the last class that it shows, or anywhere."""
    image = tl.program_id(0).to(tl.int64)
    total, best = tl.cast(0, tl.int64), tl.cast(-1, tl.int64)
    for k in range(columns):
        number = tl.cast(0, tl.int64)
        for begin in range(0, parts, PARTS):
            at = begin + tl.arange(0, PARTS)
            count = tl.load(counts + (image * columns + k) * parts + at, mask=at < parts, other=0)
            number += tl.sum(count.to(tl.int64), 0)
        best, total = tl.where(number > 0, k, best), tl.where(number > 0, number, total)
    found = total > 0
    draws += image * stride_draws
    rank = tl.load(draws + 1) % tl.maximum(total, 1)

    part, before, seen = tl.cast(0, tl.int64), tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    for begin in range(0, parts, PARTS):
        at = begin + tl.arange(0, PARTS)
        inside = found & (at < parts)
        count = tl.load(counts + (image * columns + best) * parts + at, mask=inside, other=0).to(tl.int64)
        up_to = seen + tl.cumsum(count, 0)
        passed = inside & (up_to <= rank)
        part += tl.sum(passed.to(tl.int64), 0)
        before = tl.maximum(before, tl.max(tl.where(passed, up_to, 0), 0))
        seen += tl.sum(count, 0)
    label, inside = _part(labels, pixels, image, part, CHUNK)
    wanted = tl.load(ranked + image * columns + best, mask=found, other=-1)
    up_to = before + tl.cumsum((inside & (label == wanted)).to(tl.int64), 0)
    at = part * CHUNK + tl.sum((up_to <= rank).to(tl.int64), 0)

    mined = found & (tl.load(draws) < limit)
    top = tl.minimum(tl.maximum(at // width - half_height, 0), last_top)
    left = tl.minimum(tl.maximum(at % width - half_width, 0), last_left)
    tl.store(corners + 2 * image, tl.where(mined, top, tl.load(draws + 2) % (last_top + 1)))
    tl.store(corners + 2 * image + 1, tl.where(mined, left, tl.load(draws + 3) % (last_left + 1)))


@jit
def present_kernel(labels, present, pixels, parts, VALUES: tl.constexpr, CHUNK: tl.constexpr):
    """(B, VALUES): 1 for each value that an image shows."""
    image, part = (tl.program_id(0) // parts).to(tl.int64), (tl.program_id(0) % parts).to(tl.int64)
    label, inside = _part(labels, pixels, image, part, CHUNK)
    known = inside & (label >= 0) & (label < VALUES)
    tl.store(present + image * VALUES + label, tl.full((CHUNK,), 1, tl.int8), mask=known)


@jit
def half_kernel(present, keys, drawn, ignore_index, up, VALUES: tl.constexpr, GROUP: tl.constexpr):
    """(B, VALUES): 1 for the half of an image's values with the largest keys."""
    image = tl.program_id(0).to(tl.int64)
    value = tl.arange(0, VALUES)
    shown = (tl.load(present + image * VALUES + value) != 0) & (value != ignore_index)
    key = tl.load(keys + image * VALUES + value)
    half = (tl.sum(shown.to(tl.int32), 0) + up) // 2
    for begin in range(0, VALUES, GROUP):
        own_value = begin + tl.arange(0, GROUP)
        own_shown = (tl.load(present + image * VALUES + own_value) != 0) & (own_value != ignore_index)
        own_key = tl.load(keys + image * VALUES + own_value)
        ahead = (key[None, :] > own_key[:, None]) | (
            (key[None, :] == own_key[:, None]) & (value[None, :] < own_value[:, None])
        )
        rank = tl.sum((ahead & shown[None, :]).to(tl.int32), 1)
        tl.store(drawn + image * VALUES + own_value, (own_shown & (rank < half)).to(tl.int8))


@jit
def among_kernel(labels, drawn, among, pixels, parts, VALUES: tl.constexpr, CHUNK: tl.constexpr):
    """Which pixels have a drawn value."""
    image, part = (tl.program_id(0) // parts).to(tl.int64), (tl.program_id(0) % parts).to(tl.int64)
    label, inside = _part(labels, pixels, image, part, CHUNK)
    known = inside & (label >= 0) & (label < VALUES)
    chosen = tl.load(drawn + image * VALUES + label, mask=known, other=0) != 0
    tl.store(among + image * pixels + part * CHUNK + tl.arange(0, CHUNK), chosen, mask=inside)


@jit
def distinct_kernel(draws, chosen, population, draw_count, count, DRAWS: tl.constexpr, GROUP: tl.constexpr):
    """The first ``count`` distinct numbers; one program."""
    place = tl.arange(0, DRAWS)
    number = tl.where(place < draw_count, tl.load(draws + place, mask=place < draw_count, other=0) % population, -1)
    taken = tl.cast(0, tl.int64)
    for begin in range(0, DRAWS, GROUP):
        own_place = begin + tl.arange(0, GROUP)
        inside = own_place < draw_count
        own = tl.load(draws + own_place, mask=inside, other=0) % population
        earlier = (number[None, :] == own[:, None]) & (place[None, :] < own_place[:, None])
        new = inside & (tl.sum(earlier.to(tl.int32), 1) == 0)
        at = taken + tl.cumsum(new.to(tl.int64), 0) - 1
        tl.store(chosen + at, own, mask=new & (at < count))
        taken += tl.sum(new.to(tl.int64), 0)
    tl.store(chosen + place, tl.zeros_like(number), mask=(place >= taken) & (place < count))


@jit
def direction_kernel(
    logits, chosen, directions, pixels, count, width, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The probabilities of the chosen pixels as vectors of length 1."""
    place = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = place < count
    number = tl.load(chosen + place, mask=inside, other=0)
    image, at = number // pixels, number % pixels
    start = logits + image * stride_b + (at // width) * stride_h + (at % width) * stride_w
    top = tl.full((PIXELS,), float("-inf"), tl.float32)
    for c in range(C):
        top = tl.maximum(top, tl.load(start + tl.cast(c, tl.int64) * stride_c, mask=inside, other=0.0).to(tl.float32))
    square = tl.zeros((PIXELS,), tl.float64)
    for c in range(C):
        z = tl.load(start + tl.cast(c, tl.int64) * stride_c, mask=inside, other=0.0).to(tl.float32)
        e = tl.exp(z - top).to(tl.float64)
        square += e * e
    for c in range(C):
        z = tl.load(start + tl.cast(c, tl.int64) * stride_c, mask=inside, other=0.0).to(tl.float32)
        tl.store(directions + place * C + c, tl.exp(z - top).to(tl.float64) / tl.sqrt(square), mask=inside)


@jit
def _extent(shown, sides, side, BLOCK: tl.constexpr):
    """Start and length of the shown range of an axis; the last position and 1 if nothing is shown."""
    first, last = side - 1, side * 0
    for begin in range(0, sides, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        here = tl.load(shown + at, mask=at < sides, other=0) != 0
        first = tl.minimum(first, tl.min(tl.where(here, at, sides).to(tl.int64), 0))
        last = tl.maximum(last, tl.max(tl.where(here, at, 0).to(tl.int64), 0))
    return first, tl.maximum(last - first + 1, 1)


@jit
def _enlarged(length, factor, side, chance):
    """Enlarged length (rounded half to even), position (from ``chance``), and whether it fits."""
    exact = length.to(tl.float64) * factor
    whole = tl.floor(exact)
    size = whole.to(tl.int64)
    up = (exact - whole > 0.5) | ((exact - whole == 0.5) & (size % 2 == 1))
    size = tl.maximum(size + up.to(tl.int64), 1)
    fits = size <= side
    size = tl.minimum(size, side)
    return size, tl.floor(chance * (side - size + 1).to(tl.float64)).to(tl.int64), fits


@jit
def _fill_axis(where, inside, share, total, start, length, size, place, fits, sides, BLOCK: tl.constexpr):
    """Fill the positions of an axis; see ``ops.fitting``."""
    for begin in range(0, sides, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        step = at - place
        within = (step >= 0) & (step < size)
        step = tl.where(within, step, 0)
        centre = (2 * step + 1) * length
        twice = centre + size  # shifted by one step to be positive
        nearest = start + centre // (2 * size)
        before = start + twice // (2 * size) - 1
        tl.store(inside + at, within & fits, mask=at < sides)
        tl.store(share + at, (twice % (2 * size)).to(tl.float64) / (2 * size).to(tl.float64), mask=at < sides)
        tl.store(where + at, tl.minimum(tl.maximum(nearest, 0), sides - 1), mask=at < sides)
        tl.store(where + total + at, tl.minimum(tl.maximum(before, 0), sides - 1), mask=at < sides)
        tl.store(where + 2 * total + at, tl.minimum(tl.maximum(before + 1, 0), sides - 1), mask=at < sides)


@jit
def fit_kernel(rows, columns, factor, chance, where, inside, share, height, width, BLOCK: tl.constexpr):
    """Source positions of the pixels of an enlarged box; one program per region."""
    image = tl.program_id(0).to(tl.int64)
    tall, wide = tl.cast(height, tl.int64), tl.cast(width, tl.int64)
    top, high = _extent(rows + image * height, height, tall, BLOCK)
    left, broad = _extent(columns + image * width, width, wide, BLOCK)
    scale = tl.load(factor + image)
    new_high, row, fits_high = _enlarged(high, scale, tall, tl.load(chance + 2 * image))
    new_broad, column, fits_broad = _enlarged(broad, scale, wide, tl.load(chance + 2 * image + 1))
    fits = fits_high & fits_broad
    total = height + width
    where += image * 3 * total
    inside += image * total
    share += image * total
    _fill_axis(where, inside, share, total, top, high, new_high, row, fits, height, BLOCK)
    where, inside, share = where + height, inside + height, share + height
    _fill_axis(where, inside, share, total, left, broad, new_broad, column, fits, width, BLOCK)


@jit
def topmost_kernel(numbers, where, inside, top, regions, height, width, BLOCK: tl.constexpr):
    """The largest number of the enlarged regions that cover a pixel; one program per part of an image."""
    total, pixels = height + width, tl.cast(height, tl.int64) * width
    parts = (pixels + BLOCK - 1) // BLOCK
    image, part = tl.program_id(0).to(tl.int64) // parts, tl.program_id(0).to(tl.int64) % parts
    at = part * BLOCK + tl.arange(0, BLOCK)
    real = at < pixels
    row, column = at // width, height + at % width
    found = tl.zeros((BLOCK,), tl.int32)
    for region in range(regions):
        axes = image * regions + region
        covered = tl.load(inside + axes * total + row, mask=real, other=0) != 0
        covered &= tl.load(inside + axes * total + column, mask=real, other=0) != 0
        source_row = tl.load(where + axes * 3 * total + row, mask=covered, other=0)
        source_column = tl.load(where + axes * 3 * total + column, mask=covered, other=0)
        number = tl.load(numbers + image * pixels + source_row * width + source_column, mask=covered, other=0)
        found = tl.where(covered & (number.to(tl.int32) == region + 1), region + 1, found)
    tl.store(top + image * pixels + at, found.to(tl.uint8), mask=real)
