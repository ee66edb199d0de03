"""The largest of the bilinear samples of each bin, sample by sample."""

from __future__ import annotations

from cudeform.cpu.language.bare import bare, give_back, lender, lent
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.regions.axes import cell_along, reachable, reads_along
from cudeform.cpu.regions.blocking import unpacked
from cudeform.cpu.regions.patches import samples_of
from cudeform.cpu.regions.results import result_at
from cudeform.cpu.regions.staging import slice_of
from cudeform.cpu.regions.strips import row_of_bins, slice_in_planes, value_at

__all__ = ["pool", "pool_planes"]

_NOWHERE = -2  # where a sample is that reads nothing


@lender
def pool(given, staged, output, ys, xs, first, last):
    """Tasks `first` to `last` of a round, each a slice of a region: the samples and where they are.

    Without classes and groups.
    """
    work = unpacked(given)
    job, part, regions, piece = work
    source, results = bare(staged, 0), (bare(output, 0), bare(ys, 0), bare(xs, 0))
    memory = lent(4 * job.pitch, output.dtype)
    slices = part.slice_end - part.slice_begin
    for task in range(first, last):
        t = task // slices
        s = part.slice_begin + task - t * slices
        t += piece.span.begin
        start, _ = slice_of(job, part, regions.origin, regions.place[t], part.class_begin, s)
        where, room = (t, s, 0, job.bins_y), bare(memory, 0)
        _visit(work, where, source, (start, job.pitch), _sample, results, room)
    give_back(memory)


@lender
def pool_planes(given, starts, view, source, output, ys, xs, first, last):
    """Tasks `first` to `last`, each a row of bins of a slice of a region, of planes as they lie."""
    work = unpacked(given)
    job, part, regions, piece = work
    planes, results = (
        (bare(starts, 0), view, bare(source, 0)),
        (bare(output, 0), bare(ys, 0), bare(xs, 0)),
    )
    memory = lent(4 * job.pitch, output.dtype)
    for task in range(first, last):
        t, s, i = row_of_bins(job, part, piece, task)
        start, _, channels = slice_in_planes(job, regions, planes, t, part.class_begin, s)
        where, room = (t, s, i, i + 1), bare(memory, 0)
        _visit(work, where, planes, (start, channels), _sample_of_planes, results, room)
    give_back(memory)


@inlined
def _visit(work, where, source, given, sample, results, memory):
    """Write the largest samples of rows of bins: `where` is (region, slice, from row, to row).

    In memory are values of a sample, then of the largest, and their places along y and x.
    """
    job, part, regions, _ = work
    t, s, top, bottom = where
    output, ys, xs = results
    values, best = memory, bare(memory, job.pitch)
    places = bare(memory, 2 * job.pitch), bare(memory, 3 * job.pitch)
    room = values, best, places
    bins = job.bins_y * job.bins_x
    channels = min(job.slice_channels, job.channels - s * job.slice_channels)
    at = result_at(work, t, part.class_begin, s)
    for i in range(top, bottom):
        for j in range(job.bins_x):
            _choose(job, regions, (t, i, j), source, given, sample, room)
            for k in range(channels):
                to = at + k * bins + i * job.bins_x + j
                output[to], ys[to], xs[to] = best[k], places[0][k], places[1][k]


@inlined
def _choose(job, regions, bin, source, given, sample, room):
    """Find the first sample of a bin that no other exceeds, for a slice. NaN exceeds any number.

    `given` is where the slice begins, and how many channels `sample` finds.
    """
    t, i, j = bin
    values, best, places = room
    start, channels = given
    still = best.dtype.type(0)
    down = samples_of(job, regions.numbers, regions.counts, (t, False, i, still))
    across = samples_of(job, regions.numbers, regions.counts, (t, True, j, still))
    # Where samples are left out, one that is outside as they are is among the rest.
    top, bottom = reachable(down, job.height, -1.0, float(job.height))
    left, right = reachable(across, job.width, -1.0, float(job.width))
    best_y, best_x = places
    nowhere = best.dtype.type(_NOWHERE)
    for c in range(channels):
        best[c], best_y[c], best_x[c] = 0, nowhere, nowhere
    none = True
    for a in range(top, bottom):
        y = down[0] + best.dtype.type(a) * down[1]
        for b in range(left, right):
            x = across[0] + best.dtype.type(b) * across[1]
            inside = reads_along(y, job.height) and reads_along(x, job.width)
            y_here = y if inside else nowhere
            x_here = x if inside else nowhere
            if inside:
                sample(job, (y, x), source, start, channels, values)
            else:
                for c in range(channels):
                    values[c] = 0
            for c in range(channels):
                value, before = values[c], best[c]
                larger = none | (value > before) | ((value != value) & (before == before))
                best[c] = value if larger else before
                best_y[c] = y_here if larger else best_y[c]
                best_x[c] = x_here if larger else best_x[c]
            none = False


@inlined
def _corners(job, at, like):
    """The rows and columns of the pixels around (y, x), and their weights."""
    y0, y1, ly = cell_along(at[0], job.height)
    x0, x1, lx = cell_along(at[1], job.width)
    one = like.dtype.type(1)
    weights = (one - ly) * (one - lx), (one - ly) * lx, ly * (one - lx), ly * lx
    return (y0, y1, x0, x1), weights


@inlined
def _sample(job, at, staged, start, channels, values):
    """The sample at (y, x), inside, of a slice."""
    (y0, y1, x0, x1), (w00, w01, w10, w11) = _corners(job, at, values)
    v00 = bare(staged, start + (y0 * job.width + x0) * job.pitch)
    v01 = bare(staged, start + (y0 * job.width + x1) * job.pitch)
    v10 = bare(staged, start + (y1 * job.width + x0) * job.pitch)
    v11 = bare(staged, start + (y1 * job.width + x1) * job.pitch)
    for c in range(channels):
        values[c] = w00 * v00[c] + w01 * v01[c] + w10 * v10[c] + w11 * v11[c]


@inlined
def _sample_of_planes(job, at, planes, start, channels, values):
    """The same of a slice whose planes begin at `start`."""
    (y0, y1, x0, x1), (w00, w01, w10, w11) = _corners(job, at, values)
    for c in range(channels):
        plane = start + c * planes[1].channel
        upper = w00 * value_at(planes, plane, y0, x0) + w01 * value_at(planes, plane, y0, x1)
        upper += w10 * value_at(planes, plane, y1, x0)
        values[c] = upper + w11 * value_at(planes, plane, y1, x1)
