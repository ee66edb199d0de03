"""A pooling that takes less than to hand it from one kernel to the next: all of it in one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.language import workspace
from cudeform.cpu.language.bare import bare, cleared, give_back, lender, lent, records
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.regions.blocking import (
    Job,
    Round,
    Span,
    averages_planes,
    effort,
    job_of,
    rounds,
    whole_span,
)
from cudeform.cpu.regions.extents import NUMBERS, count_integers, locate, regions_in, rules_of
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
    image: int  # elements of an image
    chunks: int  # of pixels that are laid out, in an image
    room: int  # elements of all images
    integers: int  # of regions


_read = records(Job, Round, Span, View, _Sizes)


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
    integers = count_integers(plan.regions, plan.batch)
    sizes = _Sizes(rule, samples, image, chunks, staged, integers)
    span = whole_span(job, 0, plan.regions, plan.regions, plan.batch)
    numbers = numbers_of(job, parts[0], span, view, sizes)
    return Prepared(work, numbers, np.array([plan.scale, plan.offset_scale]))


def pool_at_once(
    known: Prepared, given: tuple[np.ndarray | None, ...], results: tuple[np.ndarray, ...]
) -> None:
    """Fill `results`: the output, and for the largest pixels the argmax."""
    arrays = [frozen(array, given[0]) for array in given]
    pool = _average if len(results) == 1 else _choose
    pool(known.numbers, known.scales, *arrays, *(array.reshape(-1) for array in results))


@lender
def _average(numbers, scales, source, boxes, offset, mask, output):
    given, staged, tasks = _begin(numbers, scales, source, boxes, offset, mask)
    average_slices(given, staged, output, 1, 0, tasks)
    _end(given, staged)


@lender
def _choose(numbers, scales, source, boxes, offset, mask, output, argmax):
    given, staged, tasks = _begin(numbers, scales, source, boxes, offset, mask)
    choose_slices(given, staged, output, argmax, 1, 0, tasks)
    _end(given, staged)


@inlined
def _begin(numbers, scales, source, boxes, offset, mask):
    """What is to be done, the image laid out for it, and the number of tasks."""
    job, part, span, view, sizes = _read(numbers)
    found = lent(span.regions * NUMBERS, boxes.dtype)
    integers = cleared(sizes.integers + span.frames, np.int64)
    regions = regions_in(found, integers, span.regions, span.frames)
    rules = sizes.rule, sizes.samples, job.bins_y, job.bins_x
    used = locate(rules, scales, bare(boxes, 0), regions, span.regions)
    starts = bare(integers, sizes.integers)
    for u in range(used):
        starts[u] = regions.images[u] * sizes.image
    staged = lent(sizes.room, source.dtype)
    views = job, part, view
    lay_out(views, regions.origin, starts, source, staged, 0, used * sizes.chunks)
    tasks = span.regions * (part.slice_end - part.slice_begin)
    return (numbers, found, integers, offset, mask), staged, tasks


@inlined
def _end(given, staged):
    _, found, integers, _, _ = given
    give_back(found)
    give_back(integers)
    give_back(staged)
