"""A pooling, or its gradients, where that takes less than another kernel: all of it in one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.language import workspace
from cudeform.cpu.language.bare import bare, cleared, give_back, lent, records
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.regions.blocking import (
    Job,
    Round,
    Span,
    averages_planes,
    count_rows,
    count_slices,
    effort,
    job_of,
    rounds,
    whole_span,
)
from cudeform.cpu.regions.extents import NUMBERS, count_integers, locate, regions_in, rules_of
from cudeform.cpu.regions.planes import average_planes, scatter, spread_planes
from cudeform.cpu.regions.slices import (
    average_slices,
    choose_slices,
    measure_slices,
    spread_slices,
)
from cudeform.cpu.regions.staging import View, contiguous, count_chunks, room, stage
from cudeform.plans.regions import RoiPlan

_MOST = 2**14  # multiplications, and numbers to lay out: about five microseconds


class Prepared(NamedTuple):
    """What follows from a plan, for the kernels."""

    work: int  # multiplications
    averages: bool  # of planes as they lie
    numbers: np.ndarray
    scales: np.ndarray


class _Sizes(NamedTuple):
    rule: int  # as `rules_of` has these two
    samples: int
    image: int  # elements of an image
    chunks: int  # of pixels that are laid out, in an image
    slices: int  # of an image
    rows: int  # the same, with all groups of a row together
    room: int  # elements of all images
    integers: int  # of regions


_read = records(Job, Round, Span, View, _Sizes)


@remembered
def prepared(plan: RoiPlan, dtype: np.dtype) -> Prepared | None:
    """For arrays of a dtype; None if the work is much, or of another sort."""
    wide, work = sum_dtype(dtype), effort(plan)
    sampled = plan.largest and plan.reads != "pixels"
    laid_out = plan.batch * plan.channels * plan.height * plan.width
    if not 0 < work <= _MOST or laid_out > _MOST or dtype != wide or sampled:
        return None
    job = job_of(plan, wide.itemsize, plan.channels)  # no other thread is to have a slice
    parts = rounds(job, plan.batch, wide.itemsize)
    if len(parts) != 1 or room(job, parts[0]) * wide.itemsize > workspace.SCRATCH_BYTES:
        return None
    (part,) = parts
    view, image = contiguous(job)
    of_all = count_chunks(job, part), count_slices(part), count_rows(job, part)
    sizes = _Sizes(
        *rules_of(plan)[:2],
        image,
        *(count // plan.batch for count in of_all),
        room(job, part),
        count_integers(plan.regions, plan.batch),
    )
    span = whole_span(job, 0, plan.regions, plan.regions, plan.batch)
    numbers = numbers_of(job, part, span, view, sizes)
    scales = np.array([plan.scale, plan.offset_scale])
    return Prepared(work, averages_planes(plan), numbers, scales)


Given = tuple[np.ndarray | None, ...]


def pool_at_once(known: Prepared, given: Given, results: tuple[np.ndarray, ...]) -> None:
    """Fill `results`: the output, and for the largest pixels the argmax.

    `given` is input, boxes, offset and mask.
    """
    source, *regions = [frozen(array, given[0]) for array in given]
    pool = _choose if len(results) == 2 else _average_planes if known.averages else _average
    pool(known.numbers, known.scales, *regions, source, *(array.reshape(-1) for array in results))


def gradients_at_once(
    known: Prepared, given: Given, argmax: Given, results: tuple[np.ndarray, ...]
) -> None:
    """Fill those of `results` that are not empty, of zeros: gradients of input, offset and mask.

    `given` is as above, and then the gradient of the output.
    """
    source, *regions, grad = [frozen(array, given[0]) for array in given]
    given = known.numbers, known.scales, *regions
    grad_input, *sums = [array.reshape(-1) for array in results]
    if grad_input.size:
        spread = _scatter if argmax else _spread_planes if known.averages else _spread
        spread(*given, grad, *(frozen(array, array) for array in argmax), grad_input)
    if sums[0].size or sums[1].size:
        _measure(*given, source, grad, *sums)


@kernel
def _average(numbers, scales, boxes, offset, mask, source, output):
    given, starts, used = _begin(numbers, scales, boxes, offset, mask)
    staged, tasks = _stage(given, starts, used, source)
    average_slices(given, staged, output, 1, 0, tasks)
    give_back(staged)
    _end(given)


@kernel
def _choose(numbers, scales, boxes, offset, mask, source, output, argmax):
    given, starts, used = _begin(numbers, scales, boxes, offset, mask)
    staged, tasks = _stage(given, starts, used, source)
    choose_slices(given, staged, output, argmax, 1, 0, tasks)
    give_back(staged)
    _end(given)


@kernel
def _measure(numbers, scales, boxes, offset, mask, source, grad, grad_offset, grad_mask):
    given, starts, used = _begin(numbers, scales, boxes, offset, mask)
    staged, _ = _stage(given, starts, used, source)
    measure_slices(given, staged, grad, grad_offset, grad_mask, 0, _read(numbers)[2].regions)
    give_back(staged)
    _end(given)


@kernel
def _spread(numbers, scales, boxes, offset, mask, grad, target):
    given, starts, used = _begin(numbers, scales, boxes, offset, mask)
    _, _, _, view, sizes = _read(numbers)
    spread_slices(given, starts[1], view, target, grad, 1, 0, used * sizes.rows)
    _end(given)


@kernel
def _average_planes(numbers, scales, boxes, offset, mask, source, output):
    given, starts, used = _begin(numbers, scales, boxes, offset, mask)
    _, _, _, view, sizes = _read(numbers)
    average_planes(given, starts[1], view, source, output, 0, used * sizes.slices)
    _end(given)


@kernel
def _spread_planes(numbers, scales, boxes, offset, mask, grad, target):
    given, starts, used = _begin(numbers, scales, boxes, offset, mask)
    _, _, _, view, sizes = _read(numbers)
    spread_planes(given, starts[1], view, target, grad, 0, used * sizes.slices)
    _end(given)


@kernel
def _scatter(numbers, scales, boxes, offset, mask, grad, argmax, target):
    given, starts, used = _begin(numbers, scales, boxes, offset, mask)
    _, _, _, view, sizes = _read(numbers)
    scatter(given, starts[1], view, target, grad, argmax, 0, used * sizes.slices)
    _end(given)


@inlined
def _begin(numbers, scales, boxes, offset, mask):
    """What is to be done, where images begin, in their frames and in arrays, and how many have
    boxes.
    """
    job, _, span, _, sizes = _read(numbers)
    found = lent(span.regions * NUMBERS, boxes.dtype)
    integers = cleared(sizes.integers + span.frames, np.int64)
    regions = regions_in(found, integers, span.regions, span.frames)
    rules = sizes.rule, sizes.samples, job.bins_y, job.bins_x
    used = locate(rules, scales, bare(boxes, 0), regions, span.regions)
    starts = bare(integers, sizes.integers)
    for u in range(used):
        starts[u] = regions.images[u] * sizes.image
    return (numbers, found, integers, offset, mask), (regions.origin, starts), used


@inlined
def _stage(given, starts, used, source):
    """The images laid out, and how many slices all regions have."""
    job, part, span, view, sizes = _read(given[0])
    staged = lent(sizes.room, source.dtype)
    stage((job, part, view), starts[0], starts[1], source, staged, 0, used * sizes.chunks)
    return staged, span.regions * (part.slice_end - part.slice_begin)


@inlined
def _end(given):
    give_back(given[1])
    give_back(given[2])
