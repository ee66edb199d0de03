"""Where samples of regions read, along one axis: those of "grid_centers" and "grid_corners"."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.compiler import inlined, inner


@inner
def locate_axis(samples, size, corners, pixel, weight, at):
    """The pixels that a row of samples reads along one axis, of "grid_corners" with `corners`.

    `samples` is (first, spacing, count). Samples that read the same pixel share an entry, `size` at
    most, in order of pixels: entry k is pixel[at + k], with the sum of its weights in
    weight[2 * (at + k)] and that of their derivatives behind it. As many can follow with a weight
    of 0, of pixels of which some sample is a corner but takes nothing: times an infinite one that
    is NaN. Returns how many entries there are, and how many samples are inside.
    """
    first, spacing, count = samples
    real = weight.dtype.type
    zero, one, half = real(0), real(1), real(0.5)
    low = -half if corners else -one
    high = real(size) - half if corners else real(size)
    begin, end = reachable(samples, size, low, high)
    entries, inside, idle = 0, 0, 0
    spare = at + size  # where the pixels are kept that get a weight of 0
    for a in range(begin, end):
        # from the top down, so that samples of one pixel follow each other
        y = first + real(a if spacing >= zero else begin + end - 1 - a) * spacing
        if not (y >= low and y <= high):  # NaN fails every comparison
            continue
        inside += 1
        y0 = min(np.int64(max(y, zero)), size - 1)
        fraction = max(y, zero) - real(y0)
        between = y0 < size - 1 and (fraction > zero or not corners)  # there is a second pixel
        fraction = fraction if between else zero
        along = one if between and y >= zero else zero
        if fraction == zero:
            second = y0 if corners else min(y0 + 1, size - 1)
            if idle == 0 or pixel[spare + idle - 1] != second:
                pixel[spare + idle] = second
                idle += 1
        k = at + entries - 1
        while k >= at and pixel[k] > y0:  # the second pixel of samples before
            k -= 1
        if k < at or pixel[k] < y0:
            k, entries = at + entries, entries + 1
            pixel[k], weight[2 * k], weight[2 * k + 1] = y0, zero, zero
        weight[2 * k] += one - fraction
        weight[2 * k + 1] -= along
        if between:
            k += 1
            if k == at + entries:
                entries += 1
                pixel[k], weight[2 * k], weight[2 * k + 1] = y0 + 1, zero, zero
            weight[2 * k] += fraction
            weight[2 * k + 1] += along
    return entries + _add_idle(idle, spare, entries, pixel, weight, at), inside


@inlined
def keep_within(span, pixel, weight, head):
    """Leave only the entries of pixels in a span, of an axis of a tile."""
    to = head + 2
    for k in range(to, to + pixel[head]):
        if pixel[k] >= span[0] and pixel[k] < span[1]:
            pixel[to] = pixel[k]
            weight[2 * to], weight[2 * to + 1] = weight[2 * k], weight[2 * k + 1]
            to += 1
    pixel[head] = to - head - 2


@inlined
def _add_idle(idle, spare, entries, pixel, weight, at):
    """Put entries of weight 0 behind others, for pixels that have more. Returns how many."""
    added, k = 0, at
    for e in range(spare, spare + idle):
        while pixel[k] < pixel[e]:  # it has an entry
            k += 1
        if weight[2 * k] != 0:
            to = at + entries + added
            pixel[to], weight[2 * to], weight[2 * to + 1] = pixel[e], 0, 0
            added += 1
    return added


@inlined
def reads_along(at, size):
    """Whether a sample of "grid_centers" reads anything along one axis."""
    return at >= -1 and at <= size  # NaN fails every comparison


@inlined
def cell_along(at, size):
    """The two pixels around such a sample that is inside, and how far it is from the first."""
    y = max(at, type(at)(0))
    first = min(np.int64(y), size - 1)
    second = min(first + 1, size - 1)
    return first, second, y - type(at)(first) if second > first else type(at)(0)


@inlined
def corners(job, y, x, like):
    """The rows and columns of the pixels around such a sample, and their weights."""
    y0, y1, ly = cell_along(y, job.height)
    x0, x1, lx = cell_along(x, job.width)
    one = like.dtype.type(1)
    weights = (one - ly) * (one - lx), (one - ly) * lx, ly * (one - lx), ly * lx
    return (y0, y1, x0, x1), weights


@inlined
def reachable(samples, size, low, high):
    """A range of samples with all that are inside, and one on either side where there is one.

    Short, however many there are.
    """
    first, spacing, count = samples
    begin, end = 0.0, float(count)
    if count > 4 * size + 16 and spacing != 0:
        start, step = np.float64(first), np.float64(spacing)
        ends = (low - start) / step, (high - start) / step
        if np.isnan(ends[0] - ends[1]):
            return np.int64(0), np.int64(0)
        begin = max(begin, np.floor(min(ends[0], ends[1])) - 1)
        end = min(end, np.ceil(max(ends[0], ends[1])) + 2)
        end = max(begin, end)
    return np.int64(begin), np.int64(end)
