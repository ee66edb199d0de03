"""The gradients of a pooling of regions.

For the gradient of the input a task takes a slice of an image, and adds up in it what all regions
of that image spread. For those of offset and mask a task takes a region, through all slices. So
nothing is locked, and every sum has one order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu import threads
from cudeform.cpu.compiler import inlined, kernel
from cudeform.cpu.layout import frozen, transpose
from cudeform.cpu.patches import (
    axes_of,
    bins_of,
    cell_of,
    locate_bins,
    measure_patch,
    patch_at,
    scale_of,
    spread_patch,
)
from cudeform.cpu.precision import rounded
from cudeform.cpu.regions import (
    NUMBERS,
    Job,
    Regions,
    Round,
    Work,
    job_of,
    locate_regions,
    pieces,
    rounds,
)
from cudeform.cpu.staging import image_of, room, stage, unstage
from cudeform.geometry import RoiPlan

__all__ = ["backward"]


def backward(
    plan: RoiPlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None,
    mask: np.ndarray | None,
    argmax: np.ndarray | None,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, in the dtype of `input`."""
    wide = sum_dtype(input.dtype)
    cells = {"offset": plan.offset_shape, "mask": plan.mask_shape}
    sums = {name: np.zeros(shape if name in needs else 0, wide) for name, shape in cells.items()}
    grad_input = np.zeros(input.shape if "input" in needs else 0, input.dtype)
    if grad_output.size:
        regions = locate_regions(plan, boxes)
        given = offset, mask, grad_output, argmax
        if "input" in needs:
            _input_gradient(plan, regions, given, grad_input)
        if needs & cells.keys():
            _cell_gradients(plan, regions, given, input, sums)
    result = {name: rounded(sums[name], input.dtype) for name in needs & cells.keys()}
    return result | ({"input": grad_input} if "input" in needs else {})


def _input_gradient(plan: RoiPlan, regions: Regions, given: tuple, grad_input: np.ndarray) -> None:
    wide = sum_dtype(grad_input.dtype)
    images = len(regions.images)
    tasks = images * plan.classes * plan.groups[0] * plan.groups[1]
    job = job_of(plan, wide.itemsize, tasks)
    parts = list(rounds(job, images, wide.itemsize))
    target = np.empty(max(room(job, part) for part in parts), wide)
    for part in parts:
        size = room(job, part)
        target[:size] = 0
        for work, grad, argmax in _works(job, regions, part, given):
            arrays = (target, frozen(grad, target), frozen(argmax, np.empty(0, np.int32)))
            task = partial(_scatter if job.largest else _spread, work, *arrays)
            threads.share(task, size // (job.height * job.width * job.pitch))
        unstage(job, regions, part, target, grad_input)


def _cell_gradients(
    plan: RoiPlan,
    regions: Regions,
    given: tuple,
    input: np.ndarray,
    sums: dict[str, np.ndarray],
) -> None:
    wide = sum_dtype(input.dtype)
    job = job_of(plan, wide.itemsize, plan.channels)  # a task goes through all slices
    parts = list(rounds(job, len(regions.images), wide.itemsize))
    staged = np.empty(max(room(job, part) for part in parts), wide)
    flat = [sums[name].reshape(-1) for name in ("offset", "mask")]
    for part in parts:
        stage(job, regions, part, input, staged)
        for work, grad, _ in _works(job, regions, part, given):
            task = partial(_measure, work, staged, frozen(grad, staged), *flat)
            threads.share(task, work.piece.end - work.piece.begin)


def _works(
    job: Job, regions: Regions, part: Round, given: tuple
) -> Iterator[tuple[Work, np.ndarray, np.ndarray | None]]:
    """The pieces of a round, each with its gradients of the output and their argmax."""
    offset, mask, grad, argmax = given
    shape = (-1, job.classes, job.channels, job.bins_y * job.bins_x)
    for piece, chosen in pieces(job, regions, part, offset, mask, grad):
        work = Work(job, part, regions, piece)
        if chosen is None:
            yield work, grad, argmax
            continue
        place = chosen, part.classes, part.channels(job)
        values = grad.reshape(shape)[place].astype(sum_dtype(grad.dtype))
        yield work, values, None if argmax is None else argmax.reshape(shape)[place]


@kernel
def _spread(work, target, grad, argmax, first, last):
    """Tasks `first` to `last` of a round, each a slice of an image."""
    job, part, regions, piece = work
    axes = axes_of(job, target)
    tile = np.zeros(job.tile * job.pitch, target.dtype)
    for task in range(first, last):
        u, c, g, s = _slice_at(part, task)
        image = image_of(job, part, u, c, g, s)
        top, bottom, left, right = span = bins_of(job, g)
        high = _rows_at_once(job, left, right)
        for t in range(max(regions.first[u], piece.begin), min(regions.first[u + 1], piece.end)):
            if not job.deformable:
                locate_bins(job, regions, t, span, axes)
            for i0 in range(top, bottom, high):
                i1 = min(i0 + high, bottom)
                _read_tile(work, (t, c, s), grad, (i0, i1, left, right), tile)
                for n in range((i1 - i0) * (right - left)):
                    i = n // (right - left)
                    j = left + n - i * (right - left)
                    i += i0
                    patch = patch_at(work, t, c, i, j, axes)
                    scale = scale_of(job, regions, t, patch)
                    if job.modulated:
                        cell = cell_of(job, piece.rows[t], c, job.classes, i, j)
                        scale *= piece.mask[cell]
                    line = job.width * job.pitch
                    spread_patch(patch, scale, tile, n * job.pitch, target, image, line)


@inlined
def _slice_at(part, task):
    """(image with boxes, class, group, slice) of a task."""
    slices = part.slice_end - part.slice_begin
    rest = task // slices
    s = part.slice_begin + task - rest * slices
    groups = part.group_end - part.group_begin
    g = part.group_begin + rest % groups
    rest = rest // groups
    classes = part.class_end - part.class_begin
    c = part.class_begin + rest % classes
    return part.image_begin + rest // classes, c, g, s


@inlined
def _rows_at_once(job, left, right):
    """Rows of bins whose bins follow each other in memory and fit in a tile."""
    return job.tile // job.bins_x if right - left == job.bins_x else 1


@inlined
def _result_at(work, t, c, s):
    """Where the results of a slice of a region begin."""
    job, _, _, piece = work
    at = piece.start + piece.rows[t] * piece.region + c * piece.of_class
    return at + s * job.slice_channels * job.bins_y * job.bins_x


@inlined
def _read_tile(work, place, grad, span, tile):
    """The gradients of some bins that follow each other, with the channels last."""
    job = work.job
    top, bottom, left, right = span
    t, c, s = place
    bins = job.bins_y * job.bins_x
    count = (bottom - top) * (right - left)
    channels = min(job.slice_channels, job.channels - s * job.slice_channels)
    at = _result_at(work, t, c, s) + top * job.bins_x + left
    transpose(grad, at, bins, channels, count, tile, np.int64(0), job.pitch)
    for p in range(count):
        tile[p * job.pitch + channels : (p + 1) * job.pitch] = 0


@kernel
def _scatter(work, target, grad, argmax, first, last):
    """The same for the largest pixels."""
    job, part, regions, piece = work
    area = job.height * job.width
    bins = job.bins_y * job.bins_x
    for task in range(first, last):
        u, c, g, s = _slice_at(part, task)
        image = image_of(job, part, u, c, g, s)
        top, bottom, left, right = bins_of(job, g)
        channels = min(job.slice_channels, job.channels - s * job.slice_channels)
        for t in range(max(regions.first[u], piece.begin), min(regions.first[u + 1], piece.end)):
            for k in range(channels):
                at = _result_at(work, t, c, s) + k * bins
                for i in range(top, bottom):
                    for b in range(at + i * job.bins_x + left, at + i * job.bins_x + right):
                        pixel = argmax[b]
                        if pixel >= 0 and pixel < area:
                            target[image.start + pixel * image.pitch + k] += grad[b]


@kernel
def _measure(work, staged, grad, grad_offset, grad_mask, first, last):
    """Tasks `first` to `last` of a round, each a region: gradients of its offsets and masks."""
    job, part, regions, piece = work
    axes = axes_of(job, staged)
    tile = np.empty(job.tile * job.pitch, staged.dtype)
    for t in range(piece.begin + first, piece.begin + last):
        if not job.deformable:
            locate_bins(job, regions, t, (0, job.bins_y, 0, job.bins_x), axes)
        for c in range(part.class_begin, part.class_end):
            for g in range(part.group_begin, part.group_end):
                top, bottom, left, right = bins_of(job, g)
                high = _rows_at_once(job, left, right)
                for s in range(part.slice_begin, part.slice_end):
                    image = image_of(job, part, regions.place[t], c, g, s)
                    for i0 in range(top, bottom, high):
                        i1 = min(i0 + high, bottom)
                        _read_tile(work, (t, c, s), grad, (i0, i1, left, right), tile)
                        at = 0
                        for i in range(i0, i1):
                            for j in range(left, right):
                                source = (staged, image, tile, at)
                                _measure_bin(
                                    work, (t, c, i, j), axes, source, grad_offset, grad_mask
                                )
                                at += job.pitch


@inlined
def _measure_bin(work, place, axes, source, grad_offset, grad_mask):
    """Add what one slice of a bin has to say about its offset and mask."""
    job, _, regions, piece = work
    t, c, i, j = place
    staged, image, tile, at = source
    patch = patch_at(work, t, c, i, j, axes)
    line = job.width * job.pitch
    value, down, across = measure_patch(patch, staged, image, line, tile, at)
    scale = scale_of(job, regions, t, patch)
    row = regions.order[t]
    if grad_mask.size:
        grad_mask[cell_of(job, row, c, job.classes, i, j)] += scale * value
    if grad_offset.size:
        if job.modulated:
            scale *= piece.mask[cell_of(job, piece.rows[t], c, job.classes, i, j)]
        x = cell_of(job, row, 2 * c, 2 * job.classes, i, j)
        y = x + job.part_y * job.part_x
        grad_offset[x] += scale * regions.numbers[t * NUMBERS + 7] * across
        grad_offset[y] += scale * regions.numbers[t * NUMBERS + 3] * down
