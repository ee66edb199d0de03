"""The gradients of a pooling of regions.

For the gradient of the input a task takes a slice of an image, its channels last or its planes as
they lie, and adds up in it what all regions of that image spread. For those of offset and mask a
task takes a region, through all slices. So nothing is locked, and every sum has one order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language.bare import bare, give_back, lender, lent
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.dtypes import rounded
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.regions import planes, strips
from cudeform.cpu.regions.blocking import (
    Job,
    Round,
    Work,
    averages_planes,
    by_class,
    count_groups,
    effort,
    effort_of,
    job_of,
    one_round,
    packed,
    pieces,
    reads_planes,
    rounds,
    taken_whole,
    unpacked,
)
from cudeform.cpu.regions.extents import Regions, locate_regions, reach_of_argmax, reach_of_regions
from cudeform.cpu.regions.frames import framed
from cudeform.cpu.regions.patches import (
    bins_of,
    locate_bins,
    locate_region,
    locate_tile,
    measure_tile,
    reached,
    return_tile,
    spread_tile,
    tile_of,
)
from cudeform.cpu.regions.results import add_elements, read_gradients
from cudeform.cpu.regions.staging import room, slice_of, staged_rounds, unstage, writing
from cudeform.plans.regions import RoiPlan

__all__ = ["backward", "group_rows"]

# By the number of arrays that say what is the largest.
_PLANES = planes.spread, planes.scatter, planes.scatter_samples
_CLEARED = 32 << 20  # bytes of a gradient that tasks clear: what malloc asks the system for anew


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
    shapes = {"offset": plan.offset_shape, "mask": plan.mask_shape}
    sums = {name: np.zeros(shape if name in needs else 0, wide) for name, shape in shapes.items()}
    grad_input = None
    if grad_output.size:
        regions = locate_regions(plan, boxes)
        chosen: tuple[np.ndarray, ...] = ()
        if plan.largest and "input" in needs:
            chosen = (argmax,) if plan.reads == "pixels" else (argmax[:, 0], argmax[:, 1])
        given = offset, mask, grad_output, chosen
        if "input" in needs:
            as_planes = plan.largest or averages_planes(plan)
            compute = _gradient_of_planes if as_planes else _input_gradient
            grad_input = compute(plan, regions, given, input.dtype)
        if needs & shapes.keys():
            _element_gradients(plan, regions, given, input, sums)
    like = {"offset": offset, "mask": mask}
    result = {name: rounded(sums[name], like[name].dtype) for name in needs & shapes.keys()}
    if "input" in needs:
        result["input"] = np.zeros(input.shape, input.dtype) if grad_input is None else grad_input
    return result


def _room(plan: RoiPlan, regions: Regions, dtype: np.dtype, whole: bool) -> np.ndarray:
    """For the gradient of the input: zeros, unless `whole` images are written, and all of them."""
    make = np.empty if whole and len(regions.images) == plan.batch else np.zeros
    return make((plan.batch, plan.channels, plan.height, plan.width), dtype)


def _input_gradient(plan: RoiPlan, regions: Regions, given: tuple, dtype: np.dtype) -> np.ndarray:
    wide = sum_dtype(dtype)
    target = np.empty(0, wide)
    tasks, whole_work = plan.classes * plan.groups[0], effort_of(plan, regions)
    copies = 1 if dtype == wide else 2  # of frames: the second is to be rounded
    framed, whole = _framed(plan, regions, given, wide.itemsize, tasks)
    grad_input = _room(plan, regions, dtype, whole)
    for some, job in framed:
        parts = rounds(job, len(some.images), copies * wide.itemsize)
        split = _split(job, parts[0], whole_work)
        for part in parts:
            if target.size < room(job, part):
                del target  # before there is another
                target = np.empty(room(job, part), wide)
            for work, grad, _ in _works(job, some, part, given):
                task = partial(_spread, packed(work), target, frozen(grad, target), split)
                threads.share(task, _tasks(job, part) * split, whole_work / len(parts))
            with writing(job, some, part, grad_input, wide) as written:
                unstage(job, some, part, target, written)
    return grad_input


def _framed(
    plan: RoiPlan, regions: Regions, given: tuple, itemsize: int, tasks: int, planes: bool = False
) -> tuple[Iterable[tuple[Regions, Job]], bool]:
    """The regions of whole images, or of some of their parts at a time, and how the summing up is
    cut into slices; and whether images are whole.

    There would be so many `tasks` in an image if a slice had all channels of a class in a group.
    """
    wanted = threads.wanted_tasks(effort(plan) if planes else effort_of(plan, regions))
    tasks_of = partial(job_of, plan, itemsize, planes=planes, enough=wanted)
    job = tasks_of(len(regions.images) * tasks)
    parts = rounds(job, len(regions.images), itemsize)
    shared = wanted > 1 and threads.too_few(_tasks(job, parts[0]))
    if job.groups_x > 1 and not planes:
        shared = False  # see `_split`
    if not shared and not reads_planes(plan, job, regions, itemsize):
        return [(regions, job)], True
    wanted = wanted if shared else 1
    offset, _, _, argmax = given
    reach = (
        reach_of_argmax(plan, regions, argmax)
        if argmax
        else reach_of_regions(plan, regions, offset)
    )
    parts = (
        (some, tasks_of(len(some.images) * tasks, frame=frame))
        for some, frame in framed(plan, regions, reach, itemsize, wanted)
    )
    return parts, False


def _gradient_of_planes(
    plan: RoiPlan, regions: Regions, given: tuple, dtype: np.dtype
) -> np.ndarray:
    wide = sum_dtype(dtype)
    if dtype == wide:
        # Memory of which more is asked for is fresh: zeros, which nobody has to write.
        clears = plan.batch * plan.channels * plan.height * plan.width * dtype.itemsize <= _CLEARED
        grad_input = _room(plan, regions, dtype, clears)
        wanted = threads.wanted_tasks(effort(plan))
        tasks = count_groups(plan, regions)
        job = job_of(plan, wide.itemsize, tasks, planes=True, enough=wanted)
        part = one_round(job, len(regions.images))
        _sum_planes(plan, job, regions, part, given, grad_input, clears)
        return grad_input
    framed, whole = _framed(plan, regions, given, wide.itemsize, 1, planes=True)
    grad_input = _room(plan, regions, dtype, whole)
    for some, job in framed:
        for part in rounds(job, len(some.images), wide.itemsize):
            _sum_planes(plan, job, some, part, given, grad_input)
    return grad_input


def _sum_planes(
    plan: RoiPlan,
    job: Job,
    regions: Regions,
    part: Round,
    given: tuple,
    grad_input: np.ndarray,
    clears: bool = False,
) -> None:
    """Add up planes: from zeros, which they are, or with `clears` become with the first pieces."""
    with writing(job, regions, part, grad_input, sum_dtype(grad_input.dtype)) as written:
        for work, grad, argmax in _works(job, regions, part, given):
            span = work.piece.span
            if clears and span.begin == 0:
                span = span._replace(cleared=job.height * job.width)
                work = work._replace(piece=work.piece._replace(span=span))
            arrays = packed(work), *written, frozen(grad, written[2])
            arrays += tuple(frozen(array, array) for array in argmax)
            task = partial(_PLANES[len(argmax)], *arrays)
            threads.share(task, planes.count_tasks(job, part), effort(plan))


def _tasks(job: Job, part: Round) -> int:
    """Slices of frames and rows of groups."""
    images, classes, *_ = part.shape(job)
    begin, end = group_rows(job, part)
    return images * classes * (end - begin) * (part.slice_end - part.slice_begin)


def _split(job: Job, part: Round, work: float) -> int:
    """How many tasks to make of one, each of some columns of its row of groups.

    A group has few channels, which take less time than to locate the bins in several frames.
    """
    tasks = _tasks(job, part)
    enough = not threads.too_few(tasks)
    return 1 if enough else min(-(-threads.wanted_tasks(work) // tasks), job.groups_x)


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


@lender
def _spread(given, target, grad, split, first, last):
    """Tasks `first` to `last` of a round: slices of images, and rows of groups, or of as many
    pieces of each.
    """
    work = unpacked(given)
    job, part, regions, piece = work
    tile, values, memory = tile_of(job, target)
    target, grad = bare(target, 0), bare(grad, 0)
    line = job.columns * job.pitch
    high = job.tile // job.bins_x
    for task in range(first, last):
        u, c, gy, s = _task(job, part, task // split)
        groups = job.groups_x * (task % split) // split, job.groups_x * (task % split + 1) // split
        rows, columns = bins_of(job.bins_y, job.groups_y, gy), _bins_of(job, groups)
        starts = slice_of(job, part, regions.origin, u, c, s)
        if piece.span.begin == regions.first[part.image_begin]:  # the first of the round
            _clear(job, part, (regions.origin, u, gy), groups, starts, target)
        since, until = regions.first[u], regions.first[u + 1]
        for t in range(max(since, piece.span.begin), min(until, piece.span.end)):
            locate_bins(job, regions, t, rows, columns, tile)
            first_row, last_row, left, right = reached(job, tile, rows, columns)
            for top in range(first_row, last_row, high):
                bottom = min(top + high, last_row)
                locate_tile(work, (t, c, s), starts, (top, bottom), (left, right), tile)
                # Bins that follow each other: of a row, or of all if the task has whole rows
                step = bottom - top if split == 1 else 1
                begin, end = (0, step * job.bins_x) if split == 1 else (left, right)
                for row in range(top, bottom, step):
                    own = bare(values, ((row - top) * job.bins_x + begin) * job.pitch)
                    read_gradients(work, (t, c, s), bare(grad, begin), row, end - begin, own)
                count = (bottom - top) * job.bins_x
                spread_tile(tile, count, values, job.pitch, line, target)
    return_tile(memory)


@inlined
def _bins_of(job, groups):
    """The columns of bins that read some columns of groups."""
    first, _ = bins_of(job.bins_x, job.groups_x, groups[0])
    _, end = bins_of(job.bins_x, job.groups_x, groups[1] - 1)
    return first, end


@inlined
def _clear(job, part, place, groups, starts, target):
    """Let the gradient of a task's slices begin with zeros."""
    origin, u, gy = place
    pixel = origin[2 * u] * job.columns + origin[2 * u + 1]
    first = max(gy * job.groups_x + groups[0], part.group_begin)
    for g in range(first, min(gy * job.groups_x + groups[1], part.group_end)):
        at = starts[0] + g * starts[1] + pixel * job.pitch
        for k in range(at, at + job.rows * job.columns * job.pitch):
            target[k] = 0


def group_rows(job: Job, part: Round) -> tuple[int, int]:
    """The rows of groups that a round has groups of, from the first up to the last."""
    return part.group_begin // job.groups_x, (part.group_end - 1) // job.groups_x + 1


_group_rows = inlined(group_rows)


@inlined
def _task(job, part, task):
    """(frame, class, row of groups, slice) of a task."""
    begin, end = _group_rows(job, part)
    slices = part.slice_end - part.slice_begin
    classes = part.class_end - part.class_begin
    rest = task // slices
    s = part.slice_begin + task - rest * slices
    gy = begin + rest % (end - begin)
    rest = rest // (end - begin)
    return part.image_begin + rest // classes, part.class_begin + rest % classes, gy, s


@lender
def _measure(given, staged, grad, grad_offset, grad_mask, first, last):
    """Tasks `first` to `last` of a round, each a region: gradients of its offsets and masks."""
    work = unpacked(given)
    job, part, regions, piece = work
    tile, values, memory = tile_of(job, staged)
    numbers = lent(3 * job.tile, staged.dtype)
    staged, grad, found = bare(staged, 0), bare(grad, 0), bare(numbers, 0)
    targets = bare(grad_offset, 0), bare(grad_mask, 0), grad_offset.size > 0, grad_mask.size > 0
    line = job.columns * job.pitch
    high = job.tile // job.bins_x
    for t in range(piece.span.begin + first, piece.span.begin + last):
        locate_region(job, regions, t, 0, job.bins_y, tile)
        for c in range(part.class_begin, part.class_end):
            for s in range(part.slice_begin, part.slice_end):
                starts = slice_of(job, part, regions.origin, regions.place[t], c, s)
                for top in range(0, job.bins_y, high):
                    bottom = min(top + high, job.bins_y)
                    count = (bottom - top) * job.bins_x
                    locate_tile(work, (t, c, s), starts, (top, bottom), (0, job.bins_x), tile)
                    read_gradients(work, (t, c, s), grad, top, count, values)
                    measure_tile(tile, count, staged, job.pitch, line, values, found)
                    add_elements(job, regions, (t, c, top), count, tile.factor, found, targets)
    return_tile(memory)
    give_back(numbers)
