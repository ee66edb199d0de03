"""Weighted sums over a patch: the rows and columns of pixels that one bin of a region reads.

The weight of a pixel is that of its row times that of its column. So a patch is two axes, each a
few pixels with their weights, and however many samples a bin has, a pixel is read once. Vectors go
along the channels of a slice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.compiler import inlined, inner
from cudeform.cpu.regions import NUMBERS
from cudeform.cpu.samplers import locate_axis
from cudeform.cpu.simd import fma, lanes, load, splat, store, total, zeros

__all__ = [
    "Axis",
    "Patch",
    "axes_of",
    "bins_of",
    "blend_patch",
    "cell_of",
    "largest_of_patch",
    "locate_bins",
    "measure_patch",
    "patch_at",
    "scale_of",
    "spread_patch",
]


class Axis(NamedTuple):
    """What bins read along one axis: bin k has entries from k*size on."""

    size: int
    pixel: np.ndarray
    weight: np.ndarray
    slope: np.ndarray  # derivative of the weight
    entries: np.ndarray  # of a bin
    inside: np.ndarray  # samples of a bin that count


class Patch(NamedTuple):
    """What one bin reads: entries of two axes."""

    along_y: Axis
    along_x: Axis
    bin_y: int
    bin_x: int


@inlined
def axes_of(job, like):
    """Room for what the bins of a region read along y and x."""
    along_y = _axis(like, job.height, 1 if job.deformable else job.bins_y)
    along_x = _axis(like, job.width, 1 if job.deformable else job.bins_x)
    return along_y, along_x


@inlined
def _axis(like, size, bins):
    return Axis(
        size,
        np.empty(bins * size, np.int64),
        np.empty(bins * size, like.dtype),
        np.empty(bins * size, like.dtype),
        np.empty(bins, np.int64),
        np.empty(bins, np.int64),
    )


@inlined
def bins_of(job, g):
    """The bins that read group g: from the first up to the last, along y and x."""
    gy = g // job.groups_x
    gx = g - gy * job.groups_x
    top = (gy * job.bins_y + job.groups_y - 1) // job.groups_y
    bottom = ((gy + 1) * job.bins_y + job.groups_y - 1) // job.groups_y
    left = (gx * job.bins_x + job.groups_x - 1) // job.groups_x
    right = ((gx + 1) * job.bins_x + job.groups_x - 1) // job.groups_x
    return top, bottom, left, right


@inlined
def cell_of(job, row, channel, channels, i, j):
    """Where the offset or mask of a bin is in an array of so many channels."""
    y, x = i * job.part_y // job.bins_y, j * job.part_x // job.bins_x
    return ((row * channels + channel) * job.part_y + y) * job.part_x + x


@inner
def locate_bins(job, regions, t, span, axes):
    """Find what bins of region t read, from top to bottom and left to right; they do not move."""
    top, bottom, left, right = span
    still = axes[0].weight.dtype.type(0)
    for along_x in range(2):
        begin, end = (left, right) if along_x else (top, bottom)
        for i in range(begin, end):
            _locate_bin(job, regions, (t, along_x, i), still, axes[along_x])


@inner
def patch_at(work, t, c, i, j, axes):
    """What bin (i, j) of class c reads; it is located first if it moves."""
    job, _, regions, piece = work
    if not job.deformable:
        return Patch(axes[0], axes[1], i, j)
    x = cell_of(job, piece.rows[t], 2 * c, 2 * job.classes, i, j)
    y = x + job.part_y * job.part_x
    for along_x in range(2):
        place = (t, 1, j) if along_x else (t, 0, i)
        _locate_bin(job, regions, place, piece.offset[x if along_x else y], axes[along_x])
    return Patch(axes[0], axes[1], i * 0, j * 0)


@inlined
def scale_of(job, regions, t, patch):
    """One over the number of samples."""
    numbers = regions.numbers
    if not (job.corners or job.covers):
        return numbers[t * NUMBERS + 8]
    real = numbers.dtype.type
    down = patch.along_y.inside[patch.bin_y]
    across = patch.along_x.inside[patch.bin_x]
    return real(1) / (real(down) * real(across)) if down and across else real(0)


@inner
def _locate_bin(job, regions, place, shift, axis):
    """Find what a bin reads along one axis, moved by `shift` units of offset.

    `place` is (region, 0 along y and 1 along x, bin).
    """
    t, along_x, i = place
    numbers = regions.numbers[t * NUMBERS + 4 * along_x :]
    start, extent, spacing, reach = numbers[0], numbers[1], numbers[2], numbers[3]
    bins = job.bins_x if along_x else job.bins_y
    k = 0 if job.deformable else i
    at = k * axis.size
    if job.covers:
        begin, end = _covered(job, numbers, bins, i, axis.size)
        for n in range(end - begin):
            axis.pixel[at + n], axis.weight[at + n], axis.slope[at + n] = begin + n, 1, 0
        axis.entries[k] = axis.inside[k] = end - begin
        return
    real = numbers.dtype.type
    first = start + real(i) * extent / real(bins)
    if job.deformable:
        first += reach * shift
    if not job.corners:
        first += real(0.5) * spacing
    axis.entries[k], axis.inside[k] = locate_axis(
        first,
        spacing,
        regions.counts[2 * t + along_x],
        axis.size,
        job.corners,
        (axis.pixel, axis.weight, axis.slope),
        at,
    )


@inlined
def _covered(job, numbers, bins, i, size):
    """The whole pixels of a bin, from the first up to the last."""
    real = numbers.dtype.type
    zero, limit = real(0), real(size)
    start, extent = numbers[0], numbers[1]
    before = zero if job.whole else start
    after = start if job.whole else zero
    begin = np.floor(real(i) * extent / real(bins) + before) + after
    end = np.ceil(real(i + 1) * extent / real(bins) + before) + after
    begin = begin if begin > zero else zero  # NaN as well
    end = end if end > zero else zero
    begin, end = np.int64(min(begin, limit)), np.int64(min(end, limit))
    return begin, max(begin, end)


@inner
def blend_patch(patch, scale, source, image, line, target, at):
    """Write `scale` times the weighted sum over a patch, for all channels of a slice.

    A row of the image has `line` elements.
    """
    along_y, along_x = patch.along_y, patch.along_x
    y0, x0 = patch.bin_y * along_y.size, patch.bin_x * along_x.size
    y1, x1 = y0 + along_y.entries[patch.bin_y], x0 + along_x.entries[patch.bin_x]
    step = lanes(source)
    tail = image.channels & (step - 1)  # LLVM sees that this is too short to vectorise
    whole = image.channels - tail
    blocks = whole // (4 * step) * 4 * step
    s = splat(source, scale)
    for c in range(0, blocks, 4 * step):
        sum0, sum1, sum2, sum3 = zeros(source), zeros(source), zeros(source), zeros(source)
        for a in range(y0, y1):
            row = image.start + along_y.pixel[a] * line + c
            part0, part1, part2, part3 = zeros(source), zeros(source), zeros(source), zeros(source)
            for b in range(x0, x1):
                pixel = row + along_x.pixel[b] * image.pitch
                w = splat(source, along_x.weight[b])
                part0 = fma(w, load(source, pixel), part0)
                part1 = fma(w, load(source, pixel + step), part1)
                part2 = fma(w, load(source, pixel + 2 * step), part2)
                part3 = fma(w, load(source, pixel + 3 * step), part3)
            w = splat(source, along_y.weight[a])
            sum0, sum1 = fma(w, part0, sum0), fma(w, part1, sum1)
            sum2, sum3 = fma(w, part2, sum2), fma(w, part3, sum3)
        store(target, at + c, fma(s, sum0, zeros(source)))
        store(target, at + c + step, fma(s, sum1, zeros(source)))
        store(target, at + c + 2 * step, fma(s, sum2, zeros(source)))
        store(target, at + c + 3 * step, fma(s, sum3, zeros(source)))
    for c in range(blocks, whole, step):
        summed = zeros(source)
        for a in range(y0, y1):
            row = image.start + along_y.pixel[a] * line + c
            part = zeros(source)
            for b in range(x0, x1):
                w = splat(source, along_x.weight[b])
                part = fma(w, load(source, row + along_x.pixel[b] * image.pitch), part)
            summed = fma(splat(source, along_y.weight[a]), part, summed)
        store(target, at + c, fma(s, summed, zeros(source)))
    for c in range(whole, whole + tail):
        value = source.dtype.type(0)
        for a in range(y0, y1):
            row = image.start + along_y.pixel[a] * line + c
            subtotal = source.dtype.type(0)
            for b in range(x0, x1):
                subtotal += along_x.weight[b] * source[row + along_x.pixel[b] * image.pitch]
            value += along_y.weight[a] * subtotal
        target[at + c] = scale * value


@inner
def measure_patch(patch, source, image, line, grad, at):
    """The sum of gradient times value of a patch over a slice, and its derivatives by y and x."""
    along_y, along_x = patch.along_y, patch.along_x
    y0, x0 = patch.bin_y * along_y.size, patch.bin_x * along_x.size
    y1, x1 = y0 + along_y.entries[patch.bin_y], x0 + along_x.entries[patch.bin_x]
    step = lanes(source)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    values, downs, acrosses = zeros(source), zeros(source), zeros(source)
    for c in range(0, whole, step):
        value, down, across = zeros(source), zeros(source), zeros(source)
        for a in range(y0, y1):
            row = image.start + along_y.pixel[a] * line + c
            part, slope = zeros(source), zeros(source)
            for b in range(x0, x1):
                pixel = load(source, row + along_x.pixel[b] * image.pitch)
                part = fma(splat(source, along_x.weight[b]), pixel, part)
                slope = fma(splat(source, along_x.slope[b]), pixel, slope)
            w = splat(source, along_y.weight[a])
            value, across = fma(w, part, value), fma(w, slope, across)
            down = fma(splat(source, along_y.slope[a]), part, down)
        g = load(grad, at + c)
        values, downs = fma(g, value, values), fma(g, down, downs)
        acrosses = fma(g, across, acrosses)
    value, down, across = total(values), total(downs), total(acrosses)
    for c in range(whole, whole + tail):
        g = grad[at + c]
        for a in range(y0, y1):
            row = image.start + along_y.pixel[a] * line + c
            part, slope = source.dtype.type(0), source.dtype.type(0)
            for b in range(x0, x1):
                pixel = source[row + along_x.pixel[b] * image.pitch]
                part += along_x.weight[b] * pixel
                slope += along_x.slope[b] * pixel
            value += g * along_y.weight[a] * part
            down += g * along_y.slope[a] * part
            across += g * along_y.weight[a] * slope
    return value, down, across


@inner
def spread_patch(patch, scale, grad, at, target, image, line):
    """Add the gradient of what `blend_patch` writes to that of the pixels of the patch."""
    along_y, along_x = patch.along_y, patch.along_x
    y0, x0 = patch.bin_y * along_y.size, patch.bin_x * along_x.size
    y1, x1 = y0 + along_y.entries[patch.bin_y], x0 + along_x.entries[patch.bin_x]
    step = lanes(grad)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    for a in range(y0, y1):
        row = image.start + along_y.pixel[a] * line
        for b in range(x0, x1):
            pixel = row + along_x.pixel[b] * image.pitch
            weight = scale * along_y.weight[a] * along_x.weight[b]
            w = splat(grad, weight)
            for c in range(0, whole, step):
                store(target, pixel + c, fma(w, load(grad, at + c), load(target, pixel + c)))
            for c in range(whole, whole + tail):
                target[pixel + c] += weight * grad[at + c]


@inner
def largest_of_patch(patch, source, image, width, best, chosen, at):
    """Write the largest value of a patch and the first pixel that has it; 0 and -1 if empty."""
    along_y, along_x = patch.along_y, patch.along_x
    y0, x0 = patch.bin_y * along_y.size, patch.bin_x * along_x.size
    high, wide = along_y.entries[patch.bin_y], along_x.entries[patch.bin_x]
    values, pixels = best[at:], chosen[at:]
    for c in range(image.channels):
        values[c] = 0
        pixels[c] = -1
    if high == 0 or wide == 0:
        return
    first = along_y.pixel[y0] * width + along_x.pixel[x0]
    given = source[image.start + first * image.pitch :]
    for c in range(image.channels):
        values[c] = given[c]
        pixels[c] = first
    for a in range(high):
        for b in range(wide):
            p = np.int32(first + a * width + b)
            given = source[image.start + p * image.pitch :]
            for c in range(image.channels):
                value, before = given[c], values[c]
                # NaN is the largest of all
                larger = (value > before) | ((value != value) & (before == before))
                values[c] = value if larger else before
                pixels[c] = p if larger else pixels[c]
