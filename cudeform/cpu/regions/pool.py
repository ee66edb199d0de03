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
from cudeform.cpu.regions import largest, strips
from cudeform.cpu.regions.at_once import pool_at_once, prepared
from cudeform.cpu.regions.blocking import (
    Job,
    Round,
    Work,
    averages_planes,
    count_groups,
    count_slices,
    effort_of,
    job_of,
    packed,
    pieces,
    reads_planes,
    taken_whole,
)
from cudeform.cpu.regions.extents import locate_regions
from cudeform.cpu.regions.planes import average_planes
from cudeform.cpu.regions.slices import average_slices, choose_slices
from cudeform.cpu.regions.staging import staged_rounds
from cudeform.plans.regions import RoiPlan


def forward(
    plan: RoiPlan,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """What `plan` pools, (R, C, ph, pw), and for the largest their argmax."""
    output = np.empty(plan.out_shape, input.dtype)
    results: tuple[np.ndarray, ...] = (output,)
    if plan.largest:
        argmax = np.empty(plan.results[1].shape, plan.argmax_dtype(input.dtype))
        places = 1 if plan.reads == "pixels" else 2
        chosen = (argmax,) if places == 1 else (argmax[:, 0], argmax[:, 1])
        results = output, *chosen
    known, given = prepared(plan, input.dtype), (input, boxes, offset, mask)
    if known and threads.takes_one(known.work):
        pool_at_once(known, given, results)
    elif output.size:
        _pool_rounds(plan, given, results)
    return (output, argmax) if plan.largest else (output,)


def _pool_rounds(plan: RoiPlan, given: tuple, results: tuple[np.ndarray, ...]) -> None:
    """Fill `results`: the output, and of what is the largest, argmax or y and x."""
    input, boxes, offset, mask = given
    wide = sum_dtype(input.dtype)
    regions = locate_regions(plan, boxes)
    averages, tasks = averages_planes(plan), plan.regions
    if averages:  # a task goes through all regions of an image
        tasks = count_groups(plan, regions)
    work = effort_of(plan, regions)
    wanted = threads.wanted_tasks(work)
    job = job_of(plan, wide.itemsize, tasks, averages, enough=wanted)
    as_planes = averages or reads_planes(plan, job, regions, wide.itemsize)
    whole = taken_whole(input.dtype, offset, mask, *results)
    in_order = tuple(
        a if a.flags.c_contiguous or not whole else np.empty(a.shape, a.dtype) for a in results
    )
    for part, source in staged_rounds(job, regions, input, wide, as_planes):
        for piece, chosen in pieces(job, regions, part, offset, mask, wide, whole):
            written = in_order
            if chosen is not None:
                size = len(chosen) * piece.span.region
                dtypes = wide, *(array.dtype for array in results[1:])
                written = tuple(np.empty(size, dtype) for dtype in dtypes)
            numbers = packed(Work(job, part, regions, piece))
            flat = [array.reshape(-1) for array in written]
            tasks = (piece.span.end - piece.span.begin) * (part.slice_end - part.slice_begin)
            if averages:
                task, tasks = partial(_average_planes, numbers, *source, *flat), count_slices(part)
            else:
                split = job.bins_y if as_planes else min(-(-wanted // tasks), job.bins_y)
                pool = (_OF_PLANES if as_planes else _OF_FRAMES)[len(flat)]
                task, tasks = partial(pool, numbers, *source, *flat, split), tasks * split
            threads.share(task, tasks, work)
            if chosen is not None:
                _keep(job, part, chosen, written, results)
    for values, result in zip(in_order, results, strict=True):
        if values is not result:
            result[...] = values


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
        result = result.reshape(-1, job.classes, job.channels, len(groups))
        shape = (len(chosen), *(span.stop - span.start for span in place[1:]), len(groups))
        values = rounded(values.reshape(shape), result.dtype)
        if len(bins) == len(groups):
            result[place] = values
        else:
            for b in bins:
                result[(*place, b)] = values[..., b]


_average_planes = kernel(average_planes.py_func)
# By the number of arrays that are filled
_OF_FRAMES = {
    1: kernel(average_slices.py_func),
    2: kernel(choose_slices.py_func),
    3: largest.pool,
}
_OF_PLANES = {1: strips.pool, 2: strips.choose, 3: largest.pool_planes}
