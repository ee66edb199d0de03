"""The largest of the bilinear samples of each bin, sample by sample."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.compiler import inner, kernel
from cudeform.cpu.regions.axes import cell_along, reachable, reads_along
from cudeform.cpu.regions.blocking import unpacked
from cudeform.cpu.regions.patches import samples_of
from cudeform.cpu.regions.staging import result_at, start_of

__all__ = ["pool"]

_NOWHERE = -2  # where a sample is that reads nothing


@kernel
def pool(given, staged, output, ys, xs, first, last):
    """Tasks `first` to `last` of a round, each a slice of a region: the samples and where they are.

    Without classes and groups.
    """
    work = unpacked(given)
    job, part, regions, piece = work
    bins = job.bins_y * job.bins_x
    slices = part.slice_end - part.slice_begin
    values = np.empty(job.pitch, staged.dtype)
    best = np.empty(job.pitch, staged.dtype)
    places = np.empty(job.pitch, staged.dtype), np.empty(job.pitch, staged.dtype)
    for task in range(first, last):
        t = task // slices
        s = part.slice_begin + task - t * slices
        t += piece.begin
        start = start_of(job, part, regions.place[t], part.class_begin, part.group_begin, s)
        channels = min(job.slice_channels, job.channels - s * job.slice_channels)
        at = result_at(work, t, part.class_begin, s)
        for i in range(job.bins_y):
            for j in range(job.bins_x):
                _choose(job, regions, (t, i, j), staged, start, values, best, places)
                for k in range(channels):
                    to = at + k * bins + i * job.bins_x + j
                    output[to], ys[to], xs[to] = best[k], places[0][k], places[1][k]


@inner
def _choose(job, regions, bin, staged, start, values, best, places):
    """Find the first sample of a bin that no other exceeds, for a slice. NaN exceeds any number."""
    t, i, j = bin
    still = staged.dtype.type(0)
    down = samples_of(job, regions.numbers, regions.counts, (t, False, i, still))
    across = samples_of(job, regions.numbers, regions.counts, (t, True, j, still))
    # Where samples are left out, one that is outside as they are is among the rest.
    top, bottom = reachable(down, job.height, -1.0, float(job.height))
    left, right = reachable(across, job.width, -1.0, float(job.width))
    best_y, best_x = places
    best[:] = 0
    nowhere = best.dtype.type(_NOWHERE)
    best_y[:] = nowhere
    best_x[:] = nowhere
    none = True
    for a in range(top, bottom):
        y = down[0] + best.dtype.type(a) * down[1]
        for b in range(left, right):
            x = across[0] + best.dtype.type(b) * across[1]
            inside = reads_along(y, job.height) and reads_along(x, job.width)
            y_here = y if inside else nowhere
            x_here = x if inside else nowhere
            if inside:
                _sample(job, (y, x), staged, start, values)
            else:
                values[:] = 0
            for c in range(job.pitch):
                value, before = values[c], best[c]
                larger = none | (value > before) | ((value != value) & (before == before))
                best[c] = value if larger else before
                best_y[c] = y_here if larger else best_y[c]
                best_x[c] = x_here if larger else best_x[c]
            none = False


@inner
def _sample(job, at, staged, start, values):
    """The sample at (y, x), inside, of a slice."""
    y0, y1, ly = cell_along(at[0], job.height)
    x0, x1, lx = cell_along(at[1], job.width)
    one = values.dtype.type(1)
    w00, w01, w10, w11 = (one - ly) * (one - lx), (one - ly) * lx, ly * (one - lx), ly * lx
    v00 = staged[start + (y0 * job.width + x0) * job.pitch :]
    v01 = staged[start + (y0 * job.width + x1) * job.pitch :]
    v10 = staged[start + (y1 * job.width + x0) * job.pitch :]
    v11 = staged[start + (y1 * job.width + x1) * job.pitch :]
    for c in range(job.pitch):
        values[c] = w00 * v00[c] + w01 * v01[c] + w10 * v10[c] + w11 * v11[c]
