"""The results of the bins of a tile, and their gradients: where they are, and how they lie."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.language.transpose import transpose
from cudeform.cpu.regions.extents import ALONG_X, NUMBERS, REACH
from cudeform.cpu.regions.patches import ELSEWHERE, element_of, row_of


@inlined
def result_at(work, t, c, s):
    """Where the results of a slice of a region begin."""
    job, _, _, (span, _, _) = work
    at = span.start + row_of(work, t) * span.region + c * span.of_class
    return at + s * job.slice_channels * job.bins_y * job.bins_x


@inner
def write_results(job, tile, count, s, values, output, to):
    """Write the results of a tile with the bins last."""
    channels = min(job.slice_channels, job.channels - s * job.slice_channels)
    bins = job.bins_y * job.bins_x
    whole = True
    for n in range(count):
        whole &= tile.start[n] != ELSEWHERE
    if whole:
        transpose(values, np.int64(0), job.pitch, count, channels, output, to, bins)
        return
    for n in range(count):
        if tile.start[n] != ELSEWHERE:
            for k in range(channels):
                output[to + n + k * bins] = values[n * job.pitch + k]


@inner
def read_gradients(work, place, grad, top, count, values):
    """The gradients of a tile that begins with row `top` of the bins, with the channels last."""
    job = work.job
    t, c, s = place
    channels = min(job.slice_channels, job.channels - s * job.slice_channels)
    at = result_at(work, t, c, s) + top * job.bins_x
    bins = job.bins_y * job.bins_x
    transpose(grad, at, bins, channels, count, values, np.int64(0), job.pitch)
    for n in range(count):  # so that what is no channel cannot be NaN
        for k in range(channels, job.pitch):
            values[n * job.pitch + k] = 0


@inner
def add_elements(job, regions, place, count, factor, found, sums):
    """Add what a slice of the bins of a tile says about their offsets and masks."""
    grad_offset, grad_mask, moved, masked = sums
    t, c, top = place
    row = regions.order[t]
    reach_y = regions.numbers[t * NUMBERS + REACH]
    reach_x = regions.numbers[t * NUMBERS + ALONG_X + REACH]
    for n in range(count):
        i, j = top + n // job.bins_x, n % job.bins_x
        value, down, across = found[3 * n], found[3 * n + 1], found[3 * n + 2]
        if masked:
            grad_mask[element_of(job, row, c, job.classes, i, j)] += value
        if moved:
            x = element_of(job, row, 2 * c, 2 * job.classes, i, j)
            y = x + job.part_y * job.part_x
            grad_offset[y] += factor[n] * reach_y * down
            grad_offset[x] += factor[n] * reach_x * across
