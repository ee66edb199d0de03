"""A pooling that takes less than to hand it from one kernel to the next: all of it in one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.language import workspace
from cudeform.cpu.language.compiler import inlined, kernel, records
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.scratch import empty, zeroed
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.regions.blocking import (
    Job,
    Piece,
    Round,
    Work,
    averages_planes,
    effort,
    job_of,
    rounds,
)
from cudeform.cpu.regions.extents import NUMBERS, Regions, locate, rules_of
from cudeform.cpu.regions.slices import average_slices, choose_slices
from cudeform.cpu.regions.staging import View, contiguous, count_chunks, lay_out, room
from cudeform.plans.regions import RoiPlan

__all__ = ["Prepared", "pool_at_once", "prepared"]

_MOST = 2**14  # multiplications, and numbers to lay out: about five microseconds


class Prepared(NamedTuple):
    """What follows from a plan, for the kernel."""

    work: int  # multiplications
    numbers: np.ndarray
    scales: np.ndarray


class _Sizes(NamedTuple):
    rule: int  # as `rules_of` has these two
    samples: int
    batch: int
    regions: int
    image: int  # elements of an image
    chunks: int  # of pixels that are laid out, in an image
    room: int  # elements of all images


_read = records(Job, Round, View, _Sizes)


@remembered
def prepared(plan: RoiPlan, dtype: np.dtype) -> Prepared | None:
    """For C-contiguous images of a dtype; None if the work is much, or of another sort."""
    wide, work = sum_dtype(dtype), effort(plan)
    sampled = plan.largest and plan.reads != "pixels"
    laid_out = plan.batch * plan.channels * plan.height * plan.width
    if not 0 < work <= _MOST or laid_out > _MOST:
        return None
    if dtype != wide or sampled or averages_planes(plan):
        return None
    job = job_of(plan, wide.itemsize, plan.regions)
    parts = rounds(job, plan.batch, wide.itemsize)
    if len(parts) != 1 or room(job, parts[0]) * wide.itemsize > workspace.SCRATCH_BYTES:
        return None
    rule, samples, *_ = rules_of(plan)
    view, image = contiguous(job)
    chunks = count_chunks(job, parts[0]) // plan.batch
    staged = room(job, parts[0])
    sizes = _Sizes(rule, samples, plan.batch, plan.regions, image, chunks, staged)
    numbers = numbers_of(job, parts[0], view, sizes)
    return Prepared(work, numbers, np.array([plan.scale, plan.offset_scale]))


def pool_at_once(
    known: Prepared,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None,
    mask: np.ndarray | None,
    results: tuple[np.ndarray, ...],
) -> None:
    """Fill `results`: the output, and for the largest pixels the argmax."""
    arrays = [frozen(array, input) for array in (input, boxes, offset, mask)]
    pool = _average if len(results) == 1 else _choose
    pool(known.numbers, known.scales, *arrays, *(array.reshape(-1) for array in results))


@kernel
def _average(numbers, scales, source, boxes, offset, mask, output):
    work, staged, tasks = _begin(numbers, scales, source, boxes, offset, mask)
    average_slices(work, staged, output, 1, 0, tasks)


@kernel
def _choose(numbers, scales, source, boxes, offset, mask, output, argmax):
    work, staged, tasks = _begin(numbers, scales, source, boxes, offset, mask)
    choose_slices(work, staged, output, argmax, 1, 0, tasks)


@inlined
def _begin(numbers, scales, source, boxes, offset, mask):
    """What is to be done, the image laid out for it, and the number of tasks."""
    job, part, _, sizes = _read(numbers)
    rule, samples, batch, count, image, chunks, room = sizes
    found, counts = empty(count * NUMBERS, boxes.dtype), empty(2 * count, np.int64)
    place, order = empty(count, np.int64), empty(count, np.int64)
    images, first = empty(batch, np.int64), empty(batch + 1, np.int64)
    rules = rule, samples, job.bins_y, job.bins_x
    used = locate(rules, scales, boxes, (place, order, images, first), found, counts)
    starts, origin = empty(used, np.int64), zeroed(2 * used, np.int64)
    for u in range(used):
        starts[u] = images[u] * image
    staged = empty(room, source.dtype)
    lay_out(numbers, origin, starts, source, staged, 0, used * chunks)
    regions = Regions(found, counts, place, order, images, first, origin)
    of_class = job.channels * job.bins_y * job.bins_x
    piece = Piece(0, count, job.classes * of_class, of_class, 0, order, offset, mask)
    tasks = count * (part.slice_end - part.slice_begin)
    return Work(job, part, regions, piece), staged, tasks
