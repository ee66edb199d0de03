"""The largest of the bilinear samples of each bin, sample by sample."""

from __future__ import annotations

from cudeform.cpu.language.bare import bare, give_back, lent
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.regions.axes import corners, reachable, reads_along
from cudeform.cpu.regions.blocking import unpacked
from cudeform.cpu.regions.patches import samples_of
from cudeform.cpu.regions.results import result_at
from cudeform.cpu.regions.slices import in_frames, rows_of
from cudeform.cpu.regions.strips import in_planes, value_at

_NOWHERE = -2  # where a sample is that reads nothing


@kernel
def pool(given, staged, output, ys, xs, split, first, last):
    """As `average_slices`: the samples and where they are. Without classes and groups."""
    results = bare(output, 0), bare(ys, 0), bare(xs, 0)
    _visit(given, bare(staged, 0), in_frames, results, (split, first, last), _sample)


@kernel
def pool_planes(given, starts, view, source, output, ys, xs, split, first, last):
    """The same of planes as they lie."""
    planes = bare(starts, 0), view, bare(source, 0)
    results = bare(output, 0), bare(ys, 0), bare(xs, 0)
    _visit(given, planes, in_planes, results, (split, first, last), _sample_of_planes)


@inlined
def _visit(given, source, find, results, tasks, sample):
    """Write the largest samples of the bins of some tasks.

    In memory are values of a sample, then of the largest, and their places along y and x.
    """
    work = unpacked(given)
    job, part, regions, _ = work
    output, ys, xs = results
    memory = lent(4 * job.pitch, output.dtype)
    values, best = bare(memory, 0), bare(memory, job.pitch)
    places = bare(memory, 2 * job.pitch), bare(memory, 3 * job.pitch)
    room = values, best, places
    bins = job.bins_y * job.bins_x
    for task in range(tasks[1], tasks[2]):
        t, s, top, bottom = rows_of(work, tasks, task)
        start, _, channels = find(work, source, t, part.class_begin, s)
        at = result_at(work, t, part.class_begin, s)
        for i in range(top, bottom):
            for j in range(job.bins_x):
                _choose(job, regions, (t, i, j), source, (start, channels), sample, room)
                for k in range(min(job.slice_channels, job.channels - s * job.slice_channels)):
                    to = at + k * bins + i * job.bins_x + j
                    output[to], ys[to], xs[to] = best[k], places[0][k], places[1][k]
    give_back(memory)


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
def _sample(job, at, staged, start, channels, values):
    """The sample at (y, x), inside, of a slice."""
    (y0, y1, x0, x1), (w00, w01, w10, w11) = corners(job, at[0], at[1], values)
    v00 = bare(staged, start + (y0 * job.width + x0) * job.pitch)
    v01 = bare(staged, start + (y0 * job.width + x1) * job.pitch)
    v10 = bare(staged, start + (y1 * job.width + x0) * job.pitch)
    v11 = bare(staged, start + (y1 * job.width + x1) * job.pitch)
    for c in range(channels):
        values[c] = w00 * v00[c] + w01 * v01[c] + w10 * v10[c] + w11 * v11[c]


@inlined
def _sample_of_planes(job, at, planes, start, channels, values):
    """The same of a slice whose planes begin at `start`."""
    (y0, y1, x0, x1), (w00, w01, w10, w11) = corners(job, at[0], at[1], values)
    for c in range(channels):
        plane = start + c * planes[1].channel
        upper = w00 * value_at(planes, plane, y0, x0) + w01 * value_at(planes, plane, y0, x1)
        upper += w10 * value_at(planes, plane, y1, x0)
        values[c] = upper + w11 * value_at(planes, plane, y1, x1)
