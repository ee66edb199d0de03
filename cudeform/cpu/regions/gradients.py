"""The gradients of a pooling of regions.

For the gradient of the input a task takes a slice of an image, its channels last or its planes as
they lie, and adds up in it what all regions of that image spread. For those of offset and mask a
task takes a region, through all slices. So nothing is locked, and every sum has one order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language import workspace
from cudeform.cpu.language.compiler import kernel
from cudeform.cpu.language.dtypes import rounded
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.regions import strips
from cudeform.cpu.regions.at_once import gradients_at_once, prepared
from cudeform.cpu.regions.blocking import (
    Job,
    Round,
    Work,
    averages_planes,
    by_class,
    count_groups,
    count_rows,
    count_slices,
    effort,
    effort_of,
    job_of,
    one_round,
    packed,
    pieces,
    reads_planes,
    rounds,
    taken_whole,
)
from cudeform.cpu.regions.extents import Regions, locate_regions, reach_of_argmax, reach_of_regions
from cudeform.cpu.regions.frames import framed
from cudeform.cpu.regions.planes import scatter, scatter_samples, spread_planes
from cudeform.cpu.regions.slices import measure_slices, spread_slices
from cudeform.cpu.regions.staging import room, staged_rounds, writing
from cudeform.plans.regions import RoiPlan

_LAID_OUT = 2  # times the workspace, of all threads together, if that makes one round of many
_APART = 1.25  # times the work, about, where columns of a row of groups are tasks of their own
_CLEARED = 32 << 20  # bytes that tasks clear: where more is asked for, malloc has zeros for nothing
_spread, _measure = kernel(spread_slices.py_func), kernel(measure_slices.py_func)
# By the number of arrays that say what is the largest.
_PLANES = [kernel(spread.py_func) for spread in (spread_planes, scatter, scatter_samples)]


def backward(
    plan: RoiPlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    argmax: np.ndarray | None = None,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, each in the dtype of its argument."""
    wide = sum_dtype(input.dtype)
    moved = {"offset": offset, "mask": mask}
    shapes = {name: plan.gradients[name].shape if name in needs else 0 for name in moved}
    sums = {name: np.zeros(shape, wide) for name, shape in shapes.items()}
    chosen: tuple[np.ndarray, ...] = ()
    if plan.largest and "input" in needs:
        chosen = (argmax,) if plan.reads == "pixels" else (argmax[:, 0], argmax[:, 1])
    known = prepared(plan, input.dtype)
    if known and threads.takes_one(known.work):
        arrays = input, boxes, offset, mask, grad_output
        grad_input = np.zeros(input.shape if "input" in needs else 0, input.dtype)
        gradients_at_once(known, arrays, chosen, (grad_input, *sums.values()))
    elif grad_output.size:
        regions, given = locate_regions(plan, boxes), (offset, mask, grad_output, chosen)
        if "input" in needs:
            grad_input = _input_gradient(plan, regions, given, input)
        if needs & moved.keys():
            _element_gradients(plan, regions, given, input, sums)
    elif "input" in needs:
        grad_input = np.zeros(input.shape, input.dtype)
    result = {name: rounded(sums[name], moved[name].dtype) for name in needs & moved.keys()}
    return result | ({"input": grad_input} if "input" in needs else {})


def _input_gradient(plan: RoiPlan, regions: Regions, given: tuple, input: np.ndarray) -> np.ndarray:
    as_planes = plan.largest or averages_planes(plan)
    dtype, wide, *_, argmax = input.dtype, sum_dtype(input.dtype), *given
    work = effort(plan) if as_planes else effort_of(plan, regions)
    spread = _PLANES[len(argmax)] if as_planes else _spread
    grad_input = None
    for some, job, part, share in _cut(plan, regions, given, dtype, as_planes, work):
        clears = as_planes and dtype == wide and input.nbytes <= _CLEARED
        if grad_input is None:
            whole = (job.rows, job.columns) == (job.height, job.width)
            whole &= len(some.images) == plan.batch and (clears or spread is _spread)
            grad_input = (np.empty if whole else np.zeros)(input.shape, dtype)
        with writing(job, some, part, grad_input, wide) as written:
            for piece, grad, chosen in _works(job, some, part, given):
                begins = clears and whole and piece.piece.span.begin == 0
                arrays = packed(piece, begins), *written, frozen(grad, written[2])
                task = partial(spread, *arrays, *(frozen(array, array) for array in chosen))
                tasks = count_slices(part) if as_planes else count_rows(job, part)
                if not as_planes:
                    split = _split(job, tasks, work)
                    task, tasks = partial(task, split), tasks * split
                threads.share(task, tasks, work * share)
    return np.zeros(input.shape, dtype) if grad_input is None else grad_input


def _split(job: Job, tasks: int, work: float) -> int:
    """How many tasks to make of one, each of some columns of its row of groups."""
    count = threads.get_num_threads()
    if -(-tasks // count) * count <= _APART * tasks:
        return 1
    return min(-(-threads.wanted_tasks(work) // tasks), job.groups_x)


def _cut(
    plan: RoiPlan, regions: Regions, given: tuple, dtype: np.dtype, as_planes: bool, work: int
) -> Iterator[tuple[Regions, Job, Round, float]]:
    """The rounds of a gradient, each with its frames and its share of the work."""
    wide = sum_dtype(dtype)
    if as_planes and dtype == wide:  # added to where it belongs
        wanted, tasks = threads.wanted_tasks(work), count_groups(plan, regions)
        job = job_of(plan, wide.itemsize, tasks, planes=True, enough=wanted)
        yield regions, job, one_round(job, len(regions.images)), 1
        return
    for some, job in _framed(plan, regions, given, wide.itemsize, as_planes, work):
        frames = len(some.images)
        parts = [one_round(job, frames)]
        each = room(job, parts[0]) // count_rows(job, parts[0]) * wide.itemsize
        if dtype != wide or threads.get_num_threads() * each > _LAID_OUT * workspace.SCRATCH_BYTES:
            parts = rounds(job, frames, wide.itemsize)
        for part in parts:
            yield some, job, part, 1 / len(parts)


def _framed(
    plan: RoiPlan, regions: Regions, given: tuple, itemsize: int, as_planes: bool, work: int
) -> Iterator[tuple[Regions, Job]]:
    """The regions of whole images, or of some of their parts at a time, and how the summing up is
    cut into slices.
    """
    wanted = threads.wanted_tasks(work)
    tasks = 1 if as_planes else plan.classes * plan.groups[0]  # in an image, of all channels
    tasks_of = partial(job_of, plan, itemsize, planes=as_planes, enough=wanted)
    job = tasks_of(len(regions.images) * tasks)
    parts = rounds(job, len(regions.images), itemsize)
    # A group has so few channels that to locate its bins in several frames would take longer.
    grouped = job.groups_x > 1 and not as_planes  # see `_split`
    shared = wanted > 1 and not grouped and threads.too_few(count_rows(job, parts[0]))
    if not shared and not reads_planes(plan, job, regions, itemsize):
        yield regions, job
        return
    wanted = wanted if shared else 1
    offset, _, _, argmax = given
    reach = (
        reach_of_argmax(plan, regions, argmax)
        if argmax
        else reach_of_regions(plan, regions, offset)
    )
    for some, frame in framed(plan, regions, reach, itemsize, wanted):
        yield some, tasks_of(len(some.images) * tasks, frame=frame)


def _element_gradients(
    plan: RoiPlan,
    regions: Regions,
    given: tuple,
    input: np.ndarray,
    sums: dict[str, np.ndarray],
) -> None:
    wide, whole_work = sum_dtype(input.dtype), effort_of(plan, regions)
    job = job_of(plan, wide.itemsize, plan.channels)  # a task goes through all slices
    flat = [sums[name].reshape(-1) for name in ("offset", "mask")]
    as_planes = reads_planes(plan, job, regions, wide.itemsize)
    measure = strips.measure if as_planes else _measure
    for part, source in staged_rounds(job, regions, input, wide, as_planes):
        for work, grad, _ in _works(job, regions, part, given):
            task = partial(measure, packed(work), *source, frozen(grad, flat[0]), *flat)
            threads.share(task, work.piece.span.end - work.piece.span.begin, whole_work)


def _works(
    job: Job, regions: Regions, part: Round, given: tuple
) -> Iterator[tuple[Work, np.ndarray, tuple[np.ndarray, ...]]]:
    """The pieces of a round, each with its gradients of the output and the arrays of argmax."""
    offset, mask, grad, argmax = given
    wide, whole = sum_dtype(grad.dtype), taken_whole(grad.dtype, grad, offset, mask, *argmax)
    for piece, chosen in pieces(job, regions, part, offset, mask, wide, whole):
        work = Work(job, part, regions, piece)
        if chosen is None:
            yield work, grad, argmax
            continue
        place = chosen, part.classes, part.channels(job)
        values = by_class(job, grad)[place].astype(wide)
        yield work, values, tuple(by_class(job, array)[place] for array in argmax)
