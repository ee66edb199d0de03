"""Weighted sums over patches: the rows and columns of pixels that bins of a region read.

The weight of a pixel is that of its row times that of its column. So a patch is two axes, each a
few pixels with their weights, and however many samples a bin has, a pixel is read once. A tile is
the patches of some bins that follow each other. Vectors go along the channels of a slice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.bare import bare, cleared, give_back, lent
from cudeform.cpu.language.compiler import inlined, inner, unrolled
from cudeform.cpu.language.simd import fma, lanes, load, splat, store, total, zeros
from cudeform.cpu.regions.axes import keep_within, locate_axis
from cudeform.cpu.regions.extents import ALONG_X, NUMBERS, REACH, SHARE, SIZE, SPACING, START

ELSEWHERE = -(2**62)  # where a bin begins that is to be passed over


class Tile(NamedTuple):
    """The patches of some bins.

    An axis of `job.slot` numbers has how many entries it has, how many samples are inside, and the
    pixels of the entries; the weight and its derivative of entry k are 2*k and 2*k + 1 in `weight`.
    """

    pixel: np.ndarray
    weight: np.ndarray
    # Of each bin
    down: np.ndarray  # where its axes along y and x are
    across: np.ndarray
    start: np.ndarray  # where pixel (0, 0) would be
    share: np.ndarray  # one over the number of its samples
    factor: np.ndarray  # its mask


@inlined
def tile_of(job, like):
    """A tile, what its bins are of a slice, 0 at first, and the memory of both, to be returned."""
    axes = 2 * job.tile if job.deformable else job.bins_y + job.bins_x
    slots, results = axes * job.slot, job.tile * job.pitch
    integers = lent(slots + 3 * job.tile, np.int64)
    numbers = lent(2 * slots + 2 * job.tile, like.dtype)
    values = cleared(results, like.dtype)
    tile = Tile(
        bare(integers, 0),
        bare(numbers, 0),
        bare(integers, slots),
        bare(integers, slots + job.tile),
        bare(integers, slots + 2 * job.tile),
        bare(numbers, 2 * slots),
        bare(numbers, 2 * slots + job.tile),
    )
    return tile, bare(values, 0), (integers, numbers, values)


@inlined
def return_tile(memory):
    """The end of a tile."""
    integers, numbers, values = memory
    give_back(integers)
    give_back(numbers)
    give_back(values)


@inlined
def row_of(work, t):
    """Where a region is in the arrays of a piece."""
    first = work.piece.span.row
    return work.regions.order[t] if first < 0 else t - first


@inlined
def element_of(job, row, channel, channels, i, j):
    """Which element of an array of offsets or masks, of so many channels, a bin moves by."""
    y, x = i * job.part_y // job.bins_y, j * job.part_x // job.bins_x
    return ((row * channels + channel) * job.part_y + y) * job.part_x + x


@inlined
def locate_region(job, regions, t, top, bottom, tile):
    """Find what the bins of region t read from row `top` to `bottom`, if they do not move."""
    locate_bins(job, regions, t, (top, bottom), (0, job.bins_x), tile)


@inner
def locate_bins(job, regions, t, rows, columns, tile):
    """The same of some columns of bins."""
    if job.deformable:
        return
    still = tile.weight.dtype.type(0)
    for i in range(rows[0], rows[1]):
        _locate(job, regions, tile, False, (t, i, still), i * job.slot)
    for j in range(columns[0], columns[1]):
        _locate(job, regions, tile, True, (t, j, still), (job.bins_y + j) * job.slot)


@inlined
def reached(job, tile, rows, columns):
    """Of these rows and columns of the bins of a region those that read anything, from the first to
    the last: a region that lies in several frames has most of them in one.
    """
    (top, bottom), (left, right) = rows, columns
    if not job.deformable:
        top, bottom = _reached(job, tile, top, bottom)
        left, right = _reached(job, tile, job.bins_y + left, job.bins_y + right)
        left, right = left - job.bins_y, right - job.bins_y
    return top, bottom if left < right else top, left, right


@inlined
def _reached(job, tile, first, last):
    """Of these axes those that have entries, from the first to the last."""
    while first < last and tile.pixel[first * job.slot] == 0:
        first += 1
    while first < last and tile.pixel[(last - 1) * job.slot] == 0:
        last -= 1
    return first, last


@inner
def locate_tile(work, where, starts, rows, columns, tile):
    """Let a tile be some rows of bins of (region, class, slice), but for those of other columns.

    `starts` is where group 0 of the slice begins, and how far the groups are from each other.
    """
    job, part, regions, piece = work
    offset, mask, pixel = piece.offset, piece.mask, tile.pixel
    t, c, s = where
    row = row_of(work, t)
    for i in range(rows[0], rows[1]):
        gy = i * job.groups_y // job.bins_y
        for j in range(job.bins_x):
            n = (i - rows[0]) * job.bins_x + j
            if j < columns[0] or j >= columns[1]:
                tile.start[n] = ELSEWHERE
                continue
            y_at, x_at = i * job.slot, (job.bins_y + j) * job.slot
            if job.deformable:
                y_at, x_at = 2 * n * job.slot, (2 * n + 1) * job.slot
                x = element_of(job, row, 2 * c, 2 * job.classes, i, j)
                y = x + job.part_y * job.part_x
                _locate(job, regions, tile, False, (t, i, offset[y]), y_at)
                _locate(job, regions, tile, True, (t, j, offset[x]), x_at)
            g = gy * job.groups_x + j * job.groups_x // job.bins_x
            inside = g >= part.group_begin and g < part.group_end
            tile.down[n], tile.across[n] = y_at, x_at
            tile.start[n] = starts[0] + g * starts[1] if inside else ELSEWHERE
            tile.share[n], tile.factor[n] = regions.numbers[t * NUMBERS + SHARE], 1
            if job.corners or job.covers:
                tile.share[n] = share_of(pixel[y_at + 1], pixel[x_at + 1], tile.weight)
            if job.modulated:
                tile.factor[n] = mask[element_of(job, row, c, job.classes, i, j)]


@inlined
def share_of(down, across, like):
    """One over the number of samples; 0 if there are none."""
    real = like.dtype.type
    return real(1) / (real(down) * real(across)) if down and across else real(0)


@inlined
def _framed(job):
    """Whether a frame is a part of an image."""
    return job.rows < job.height or job.columns < job.width


@inlined
def frame_of(job, regions, u):
    """The rows and the columns of a frame, each from the first up to the last."""
    top, left = regions.origin[2 * u], regions.origin[2 * u + 1]
    return (top, top + job.rows), (left, left + job.columns)


@inner
def _locate(job, regions, tile, along_x, bin, at):
    """Find what of its frame a bin reads along one axis; for `bin` see `samples_of`, but here the
    axis stands alone, or both would be compiled.
    """
    t, i, shift = bin
    numbers, pixel, weight = regions.numbers, tile.pixel, tile.weight
    rows, columns = frame_of(job, regions, regions.place[t])
    span, size = (columns, job.width) if along_x else (rows, job.height)
    pixel[at] = pixel[at + 1] = 0
    if job.covers:
        begin, end = covered(job, numbers, (t, along_x, i))
        for n in range(end - begin):
            pixel[at + 2 + n], weight[2 * (at + 2 + n)] = begin + n, 1
        pixel[at] = pixel[at + 1] = end - begin
    else:
        samples = samples_of(job, numbers, regions.counts, (t, along_x, i, shift))
        if _framed(job) and _beside(samples, size, span):
            return
        entries, inside = locate_axis(samples, size, job.corners, pixel, weight, at + 2)
        pixel[at], pixel[at + 1] = entries, inside
    if _framed(job):
        keep_within(span, pixel, weight, at)


@inlined
def _beside(samples, size, span):
    """Whether samples read no pixel of a frame, as far as that is plain."""
    first, spacing, count = samples
    real = type(first)
    last = first + real(count - 1) * spacing
    low, high = min(first, last) - real(1), max(first, last) + real(2)
    # What is outside of the image reads its edge.
    before, behind = span[0] > 0 and high < real(span[0]), span[1] < size and low > real(span[1])
    return before or behind


@inlined
def samples_of(job, numbers, counts, bin):
    """The samples of a bin along one axis: (first, spacing, count).

    `bin` is (region, whether along x, bin, how many units of offset it moves).
    """
    t, along_x, i, shift = bin
    k = t * NUMBERS + (ALONG_X if along_x else 0)
    bins = job.bins_x if along_x else job.bins_y
    real = numbers.dtype.type
    first = numbers[k + START] + real(i) * numbers[k + SIZE] / real(bins)
    if job.deformable:
        first += numbers[k + REACH] * shift
    if not job.corners:
        first += real(0.5) * numbers[k + SPACING]
    return first, numbers[k + SPACING], counts[2 * t + (1 if along_x else 0)]


@inlined
def covered(job, numbers, bin):
    """The whole pixels of a bin along one axis, from the first up to the last.

    `bin` is (region, whether along x, bin).
    """
    t, along_x, i = bin
    k = t * NUMBERS + (ALONG_X if along_x else 0)
    bins = job.bins_x if along_x else job.bins_y
    real = numbers.dtype.type
    zero, limit = real(0), real((job.width if along_x else job.height) - job.unread)
    start, size = numbers[k + START], numbers[k + SIZE] / real(bins)
    before = zero if job.whole else start
    after = start if job.whole else zero
    begin = np.floor(real(i) * size + before) + after
    end = np.ceil(real(i + 1) * size + before) + after
    begin = begin if begin > zero else zero  # NaN as well
    end = end if end > zero else zero
    begin, end = np.int64(min(begin, limit)), np.int64(min(end, limit))
    return begin, max(begin, end)


@inlined
def bins_of(bins, groups, g):
    """The bins along an axis that read a group, from the first up to the last."""
    return (g * bins + groups - 1) // groups, ((g + 1) * bins + groups - 1) // groups


@inlined
def patch_of(tile, n):
    """The entries of a bin along y and x, each from one index up to another."""
    pixel, y, x = tile.pixel, tile.down[n], tile.across[n]
    return y + 2, y + 2 + pixel[y], x + 2, x + 2 + pixel[x]


@inlined
def vectors_of(pitch, like):
    """Elements of a vector, those that are in whole vectors, and the others."""
    step = lanes(like)
    tail = pitch & (step - 1)  # LLVM sees that this is too short to vectorise
    return step, pitch - tail, tail


@inlined
def _summed(pixel, weight, patch, source, start, pitch, line):
    """The weighted sum of a patch of one channel, whose pixel (0, 0) would be at `start`."""
    y0, y1, x0, x1 = patch
    value = source.dtype.type(0)
    for a in range(y0, y1):
        row = start + pixel[a] * line
        subtotal = source.dtype.type(0)
        for b in range(x0, x1):
            subtotal += weight[2 * b] * source[row + pixel[b] * pitch]
        value += weight[2 * a] * subtotal
    return value


@unrolled
def blend_tile(tile, count, source, pitch, line, target):
    """Write the weighted sums of the bins of a tile, times their scales, for a slice.

    Pixels are `pitch` elements apart, in rows of `line` elements. Bin n is from n*pitch on.
    """
    pixel, weight = tile.pixel, tile.weight
    step, whole, tail = vectors_of(pitch, source)
    blocks = whole // (4 * step) * 4 * step
    for n in range(count):
        at, start = n * pitch, tile.start[n]
        if start == ELSEWHERE:
            continue
        y0, y1, x0, x1 = patch_of(tile, n)
        scale = tile.share[n] * tile.factor[n]
        s, zero = splat(source, scale), zeros(source)
        for c in range(0, blocks, 4 * step):
            sum0, sum1, sum2, sum3 = zero, zero, zero, zero
            for a in range(y0, y1):
                row = start + pixel[a] * line + c
                part0, part1, part2, part3 = zero, zero, zero, zero
                for b in range(x0, x1):
                    v = row + pixel[b] * pitch
                    w = splat(source, weight[2 * b])
                    part0 = fma(w, load(source, v), part0)
                    part1 = fma(w, load(source, v + step), part1)
                    part2 = fma(w, load(source, v + 2 * step), part2)
                    part3 = fma(w, load(source, v + 3 * step), part3)
                w = splat(source, weight[2 * a])
                sum0, sum1 = fma(w, part0, sum0), fma(w, part1, sum1)
                sum2, sum3 = fma(w, part2, sum2), fma(w, part3, sum3)
            store(target, at + c, fma(s, sum0, zero))
            store(target, at + c + step, fma(s, sum1, zero))
            store(target, at + c + 2 * step, fma(s, sum2, zero))
            store(target, at + c + 3 * step, fma(s, sum3, zero))
        for c in range(blocks, whole, step):
            summed = zero
            for a in range(y0, y1):
                row = start + pixel[a] * line + c
                part = zero
                for b in range(x0, x1):
                    w = splat(source, weight[2 * b])
                    part = fma(w, load(source, row + pixel[b] * pitch), part)
                summed = fma(splat(source, weight[2 * a]), part, summed)
            store(target, at + c, fma(s, summed, zero))
        for c in range(whole, whole + tail):
            value = _summed(pixel, weight, (y0, y1, x0, x1), source, start + c, pitch, line)
            target[at + c] = scale * value


@inlined
def put_found(found, n, value, down, across):
    """Write the three numbers of a bin."""
    found[3 * n], found[3 * n + 1], found[3 * n + 2] = value, down, across


@unrolled
def measure_tile(tile, count, source, pitch, line, grad, found):
    """Write three numbers for each bin of a tile: the sum over a slice of gradient times value,
    and its derivatives when the bin moves along y and x; without the mask.
    """
    pixel, weight = tile.pixel, tile.weight
    step, whole, tail = vectors_of(pitch, source)
    zero = source.dtype.type(0)
    for n in range(count):
        at, start = n * pitch, tile.start[n]
        put_found(found, n, zero, zero, zero)
        if start == ELSEWHERE:
            continue
        y0, y1, x0, x1 = patch_of(tile, n)
        values, downs, acrosses = zeros(source), zeros(source), zeros(source)
        for c in range(0, whole, step):
            value, down, across = zeros(source), zeros(source), zeros(source)
            for a in range(y0, y1):
                row = start + pixel[a] * line + c
                part, slope = zeros(source), zeros(source)
                for b in range(x0, x1):
                    v = load(source, row + pixel[b] * pitch)
                    part = fma(splat(source, weight[2 * b]), v, part)
                    slope = fma(splat(source, weight[2 * b + 1]), v, slope)
                w = splat(source, weight[2 * a])
                value, across = fma(w, part, value), fma(w, slope, across)
                down = fma(splat(source, weight[2 * a + 1]), part, down)
            g = load(grad, at + c)
            values, downs = fma(g, value, values), fma(g, down, downs)
            acrosses = fma(g, across, acrosses)
        value, down, across = total(values), total(downs), total(acrosses)
        for c in range(whole, whole + tail):
            g = grad[at + c]
            for a in range(y0, y1):
                row = start + pixel[a] * line + c
                part, slope = zero, zero
                for b in range(x0, x1):
                    part += weight[2 * b] * source[row + pixel[b] * pitch]
                    slope += weight[2 * b + 1] * source[row + pixel[b] * pitch]
                value += g * weight[2 * a] * part
                down += g * weight[2 * a + 1] * part
                across += g * weight[2 * a] * slope
        share = tile.share[n]
        put_found(found, n, share * value, share * down, share * across)


@unrolled
def spread_tile(tile, count, grad, pitch, line, target):
    """Add the gradient of what `blend_tile` writes to that of the pixels it reads."""
    pixel, weight = tile.pixel, tile.weight
    step, whole, tail = vectors_of(pitch, grad)
    for n in range(count):
        at, start = n * pitch, tile.start[n]
        if start == ELSEWHERE:
            continue
        scale = tile.share[n] * tile.factor[n]
        y0, y1, x0, x1 = patch_of(tile, n)
        for a in range(y0, y1):
            row = start + pixel[a] * line
            for b in range(x0, x1):
                v = row + pixel[b] * pitch
                s = scale * weight[2 * a] * weight[2 * b]
                w = splat(grad, s)
                for c in range(0, whole, step):
                    store(target, v + c, fma(w, load(grad, at + c), load(target, v + c)))
                for c in range(whole, whole + tail):
                    target[v + c] += s * grad[at + c]
