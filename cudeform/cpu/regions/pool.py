"""The pooling of regions: every bin is a weighted sum over the patch of pixels that it reads.

The input is laid out with its channels last, a few images or slices of channels at a time. A task
takes one slice of one region: it finds the patches of the bins, and sums them up for vectors of
channels. Where little of the images is read, or a slice of one is too large, their planes are read
as they lie.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language.compiler import kernel
from cudeform.cpu.language.dtypes import rounded
from cudeform.cpu.language.scratch import zeroed
from cudeform.cpu.regions import largest, planes, strips
from cudeform.cpu.regions.blocking import (
    Job,
    Round,
    Work,
    averages_planes,
    effort,
    job_of,
    one_round,
    packed,
    pieces,
    reads_planes,
    rounds,
    unpacked,
)
from cudeform.cpu.regions.extents import locate_regions
from cudeform.cpu.regions.gradients import backward
from cudeform.cpu.regions.patches import (
    blend_tile,
    largest_of_tile,
    locate_region,
    locate_tile,
    tile_of,
)
from cudeform.cpu.regions.results import result_at, write_results
from cudeform.cpu.regions.staging import reading, room, slice_of, stage
from cudeform.plans.regions import RoiPlan

__all__ = ["backward", "forward"]


def forward(
    plan: RoiPlan,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """What `plan` pools, (R, C, ph, pw), and for the largest their argmax."""
    output = np.empty(plan.out_shape, input.dtype)
    results: tuple[np.ndarray, ...] = output, np.empty(0, np.int32)
    if plan.largest:
        chosen = plan.argmax_dtype(input.dtype)
        places = 1 if plan.reads == "pixels" else 2
        results = output, *(np.empty(plan.out_shape, chosen) for _ in range(places))
    if output.size:
        _pool_rounds(plan, input, boxes, offset, mask, results)
    if not plan.largest:
        return (output,)
    return output, results[1] if len(results) == 2 else np.stack(results[1:], 1)


def _pool_rounds(
    plan: RoiPlan,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None,
    mask: np.ndarray | None,
    results: tuple[np.ndarray, ...],
) -> None:
    """Fill `results`: output and argmax, or output and y and x of what is the largest."""
    wide = sum_dtype(input.dtype)
    regions = locate_regions(plan, boxes)
    averages, frames = averages_planes(plan), len(regions.images)
    wanted, tasks = threads.wanted_tasks(effort(plan)), plan.regions
    if averages:  # a task goes through all regions of an image
        tasks = frames * plan.classes * plan.groups[0] * plan.groups[1]
    job = job_of(plan, wide.itemsize, tasks, averages, enough=wanted)
    as_planes = averages or reads_planes(plan, job, regions, wide.itemsize)
    parts = [one_round(job, frames)] if as_planes else rounds(job, frames, wide.itemsize)
    if as_planes:
        source = reading(job, regions, input)
    else:
        staged = np.empty(max(room(job, part) for part in parts), wide)
    for part in parts:
        if not as_planes:
            stage(job, regions, part, input, staged)
        for piece, chosen in pieces(job, regions, part, offset, mask, input):
            written = results
            if chosen is not None:
                size = len(chosen) * piece.region
                dtypes = [wide, *(array.dtype for array in results[1:])]
                sizes = [size, *(size if array.size else 0 for array in results[1:])]
                written = tuple(map(np.empty, sizes, dtypes))
            work = packed(Work(job, part, regions, piece))
            flat = [array.reshape(-1) for array in written]
            tasks = (piece.end - piece.begin) * (part.slice_end - part.slice_begin)
            if averages:
                task = partial(planes.average, work, *source, flat[0])
                tasks = planes.count_tasks(job, part)
            elif as_planes:
                pool = strips.pool if len(flat) == 2 else largest.pool_planes
                task, tasks = partial(pool, work, *source, *flat), tasks * job.bins_y
            else:
                pool, split = largest.pool, min(-(-wanted // tasks), job.bins_y)
                if len(flat) == 2:
                    pool, tasks = partial(_pool, split), tasks * split
                task = partial(pool, work, staged, *flat)
            threads.share(task, tasks, effort(plan))
            if chosen is not None:
                _keep(job, part, chosen, written, results)


def _keep(
    job: Job,
    part: Round,
    chosen: np.ndarray,
    written: tuple[np.ndarray, ...],
    results: tuple[np.ndarray, ...],
) -> None:
    """Copy what was computed of some regions to where it belongs."""
    groups_y = np.arange(job.bins_y) * job.groups_y // job.bins_y
    groups_x = np.arange(job.bins_x) * job.groups_x // job.bins_x
    groups = (groups_y[:, None] * job.groups_x + groups_x).reshape(-1)
    bins = np.flatnonzero((groups >= part.group_begin) & (groups < part.group_end))
    place = chosen, part.classes, part.channels(job)
    for values, result in zip(written, results, strict=True):
        if result.size == 0:
            continue
        result = result.reshape(-1, job.classes, job.channels, len(groups))
        shape = (len(chosen), *(span.stop - span.start for span in place[1:]), len(groups))
        values = rounded(values.reshape(shape), result.dtype)
        if len(bins) == len(groups):
            result[place] = values
        else:
            for b in bins:
                result[(*place, b)] = values[..., b]


@kernel
def _pool(split, given, staged, output, argmax, first, last):
    """Tasks `first` to `last` of a round, each a slice of some rows of the bins of a region, of
    which there are `split` times as many as regions.
    """
    work = unpacked(given)
    job, part, regions, piece = work
    tile = tile_of(job, staged)
    values = zeroed(job.tile * job.pitch, staged.dtype)
    pixels = zeroed(job.tile * job.pitch if job.largest else 0, np.int32)
    slices = part.slice_end - part.slice_begin
    line = job.columns * job.pitch
    high = job.tile // job.bins_x
    for task in range(first, last):
        rows, s = task // slices, part.slice_begin + task % slices
        t, rows = piece.begin + rows // split, rows % split
        begin, end = job.bins_y * rows // split, job.bins_y * (rows + 1) // split
        locate_region(job, regions, t, begin, end, tile)
        for c in range(part.class_begin, part.class_end):
            starts = slice_of(job, part, regions.origin, regions.place[t], c, s)
            for top in range(begin, end, high):
                bottom = min(top + high, end)
                count = (bottom - top) * job.bins_x
                locate_tile(work, (t, c, s), starts, top, bottom, tile)
                to = result_at(work, t, c, s) + top * job.bins_x
                if job.largest:
                    largest_of_tile(tile, count, staged, job.pitch, job.width, values, pixels)
                    write_results(job, tile, count, s, pixels, argmax, to)
                else:
                    blend_tile(tile, count, staged, job.pitch, line, values)
                write_results(job, tile, count, s, values, output, to)
