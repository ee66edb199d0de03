"""Poolings on the planes of an image as they lie, where channels side by side would not pay.

A bin of a position-sensitive average has a few channels to itself and few pixels in each, and a
maximum has one pixel in each channel. A task takes a few planes of one group of an image through
all of its regions: the planes stay in the cache, and every sum has one order.
"""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.bare import bare, give_back, lent
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.halves import element
from cudeform.cpu.regions.axes import corners, reads_along
from cudeform.cpu.regions.blocking import place_of, unpacked
from cudeform.cpu.regions.patches import bins_of, covered, frame_of, share_of
from cudeform.cpu.regions.results import result_at


@inlined
def average_planes(given, starts, view, source, output, first, last):
    """Tasks `first` to `last` of a round, a few planes each: the averages of their bins."""
    _visit(given, starts, view, source, output, first, last, _sum_up)


@inlined
def spread_planes(given, starts, view, target, grad, first, last):
    """Tasks `first` to `last` of a round: add the gradients of the averages to the pixels read."""
    _visit(given, starts, view, target, grad, first, last, _add_to)


@inlined
def _clear(work, start, view, target, channels):
    """Let what a task adds to begin with zeros, if there is anything else."""
    for k in range(channels):
        plane = start + k * view.channel
        for at in range(plane, plane + work.piece.span.cleared):
            target[at] = 0


@inlined
def _visit(given, starts, view, planes, results, first, last, use):
    """Call `use` for every bin of the tasks, with its pixels and where its results are."""
    work = unpacked(given)
    job, _, regions, _ = work
    starts, flat, results = bare(starts, 0), bare(planes, 0), bare(results, 0)
    memory = lent(job.slice_channels, results.dtype)
    values = bare(memory, 0)
    bins = job.bins_y * job.bins_x
    for task in range(first, last):
        place, start, channels, begin, end = _planes(work, starts, view, task)
        _clear(work, start, view, flat, channels)  # nothing for averages
        top, bottom, left, right = _bins_of_group(job, place[2])
        rows, columns = frame_of(job, regions, place[0])
        for t in range(begin, end):
            at = result_at(work, t, place[1], place[3])
            for i in range(top, bottom):
                for j in range(left, right):
                    y0, y1 = covered(job, regions.numbers, (t, False, i))
                    x0, x1 = covered(job, regions.numbers, (t, True, j))
                    share = share_of(y1 - y0, x1 - x0, values)
                    y0, y1 = max(y0, rows[0]), min(y1, rows[1])
                    x0, x1 = max(x0, columns[0]), min(x1, columns[1])
                    pixels = start, y0, y1, x0, x1
                    strides = channels, view.channel, bins, view.row, view.column
                    result = at + i * job.bins_x + j
                    use(pixels, strides, share, flat, results, result, values)
    give_back(memory)


@inlined
def _sum_up(pixels, strides, share, source, output, result, sums):
    start, y0, y1, x0, x1 = pixels
    channels, plane, bins, row, column = strides
    for k in range(channels):
        sums[k] = 0
    for y in range(y0, y1):
        line = start + y * row
        for x in range(x0, x1):
            at = line + x * column
            for k in range(channels):
                sums[k] += element(source, at + k * plane)
    for k in range(channels):
        output[result + k * bins] = share * sums[k]


@inlined
def _add_to(pixels, strides, share, target, grad, result, values):
    start, y0, y1, x0, x1 = pixels
    channels, plane, bins, row, _ = strides
    for k in range(channels):
        values[k] = share * grad[result + k * bins]
    # A few at a time, or LLVM asks at each pixel whether planes are one element apart.
    tail = channels & 3
    whole = channels - tail
    for y in range(y0, y1):
        line = start + y * row
        for at in range(line + x0, line + x1):
            for first in range(0, whole, 4):
                for k in range(first, first + 4):
                    target[at + k * plane] += values[k]
            for k in range(whole, whole + tail):
                target[at + k * plane] += values[k]


@inlined
def scatter(given, starts, view, target, grad, argmax, first, last):
    """Tasks `first` to `last` of a round: add the gradients of maxima to the pixels that they are.

    Without groups: the results of a channel lie side by side.
    """
    work = unpacked(given)
    job = work.job
    starts, target = bare(starts, 0), bare(target, 0)
    bins = job.bins_y * job.bins_x
    for task in range(first, last):
        place, start, channels, begin, end = _planes(work, starts, view, task)
        _clear(work, start, view, target, channels)
        top, left = work.regions.origin[2 * place[0]], work.regions.origin[2 * place[0] + 1]
        above, narrow = top * job.width, job.columns < job.width
        size = min(job.rows, job.height - top) * job.width
        if narrow:  # planes of frames, where pixel (0, 0) would lie before them
            start += top * view.row + left - above
        for t in range(begin, end):
            results = result_at(work, t, place[1], place[3])
            for k in range(channels):
                plane = bare(target, start + above + k * view.channel)
                gradients, pixels = bare(grad, results + k * bins), bare(argmax, results + k * bins)
                # None, -1, is far outside.
                for n in range(0 if narrow else bins):
                    pixel = np.uint32(np.uint32(pixels[n]) - np.uint32(above))
                    if pixel < size:
                        plane[pixel] += gradients[n]
                for n in range(bins if narrow else 0):
                    pixel = np.uint32(np.uint32(pixels[n]) - np.uint32(above))
                    y, x = pixel // job.width, pixel % job.width - left
                    if pixel < size and x >= 0 and x < job.columns:
                        plane[y * view.row + x] += gradients[n]


@inlined
def scatter_samples(given, starts, view, target, grad, ys, xs, first, last):
    """The same for samples, each with its place: add to the pixels around it."""
    work = unpacked(given)
    starts, target = bare(starts, 0), bare(target, 0)
    grad, ys, xs = bare(grad, 0), bare(ys, 0), bare(xs, 0)
    job = work.job
    regions = work.regions
    bins = job.bins_y * job.bins_x
    for task in range(first, last):
        place, start, channels, begin, end = _planes(work, starts, view, task)
        _clear(work, start, view, target, channels)
        rows, columns = frame_of(job, regions, place[0])
        for t in range(begin, end):
            results = result_at(work, t, place[1], place[3])
            for k in range(channels):
                plane = start + k * view.channel
                for r in range(results + k * bins, results + (k + 1) * bins):
                    if not (reads_along(ys[r], job.height) and reads_along(xs[r], job.width)):
                        continue
                    (y0, y1, x0, x1), (w00, w01, w10, w11) = corners(job, ys[r], xs[r], target)
                    where = plane, view.row, rows, columns
                    _add(target, where, y0, x0, w00 * grad[r])
                    _add(target, where, y0, x1, w01 * grad[r])
                    _add(target, where, y1, x0, w10 * grad[r])
                    _add(target, where, y1, x1, w11 * grad[r])


@inlined
def _add(target, where, y, x, value):
    """Add to a pixel of a plane, if it is in the frame."""
    plane, row, rows, columns = where
    if y >= rows[0] and y < rows[1] and x >= columns[0] and x < columns[1]:
        target[plane + y * row + x] += value


@inlined
def _planes(work, starts, view, task):
    """A task: (frame, class, group, slice), where pixel (0, 0) of its planes would be and how
    many there are, and the regions of the frame in the piece.
    """
    job, part, regions, piece = work
    u, c, g, s = place_of(part, (part.group_begin, part.group_end), task)
    start = starts[u] + c * view.of_class + g * view.group
    start += s * job.slice_channels * view.channel
    channels = min(job.slice_channels, job.channels - s * job.slice_channels)
    begin, end = max(regions.first[u], piece.span.begin), min(regions.first[u + 1], piece.span.end)
    return (u, c, g, s), start, channels, begin, end


@inlined
def _bins_of_group(job, g):
    """The rows and the columns of bins that read a group, each from one up to another."""
    top, bottom = bins_of(job.bins_y, job.groups_y, g // job.groups_x)
    left, right = bins_of(job.bins_x, job.groups_x, g % job.groups_x)
    return top, bottom, left, right
