"""Bilinear sampling at given points: a convolution of one tap that has nothing to multiply.

So is its gradient where an image with its channels last fits in a workspace, and there are images
and slices of their channels for all threads. Else it is made field by field, see `fields`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.conv import widening
from cudeform.cpu.conv.blocking import cut, gradient_slice
from cudeform.cpu.conv.gradients import gradients, workspace_bytes
from cudeform.cpu.fields import (
    Fields,
    Lies,
    Memory,
    add_fields,
    collect,
    find_fields,
    sort_points,
)
from cudeform.cpu.language.dtypes import copied, copy
from cudeform.cpu.language.halves import words
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.strided import aligned, lying
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.sampler import PLANE, grid_of
from cudeform.plans.convolution import ConvPlan
from cudeform.plans.sampling import SamplePlan

STRIDED = ("grad_output", "input", "points")  # need not be contiguous

_ROOM = 56 << 20  # bytes of a backward as a convolution
_POINTS = 1 << 20  # of a round, at most
_SAMPLES = 4 << 20  # bytes of a round of a forward, and as many of the one before
_FOUND = 16 << 20  # bytes of what slices find for the points of a round
_FIELD = 1 << 20  # bytes of the pixels of a field and their gradient
_LEAST = 256  # pixels of a field: those of its rim are read, and their points added up, twice
_COUNTS = 1 << 18  # of the points of fields, by task that sorts
_BLOCK = 16 * PLANE  # points that a task sorts, at least
_BAND = 24 << 20  # bytes of the sums of a band
_ROWS = 16  # of a band, if that is no more of one channel
_FAR = 1 << 62  # pixels: no point is that far

_NOTHING = np.empty(0, np.int32)


def forward(plan: SamplePlan, input: np.ndarray, points: np.ndarray) -> tuple[np.ndarray]:
    """The samples."""
    if points.flags.c_contiguous or (points := _flat(points)).ndim == 3:
        (output,) = widening.forward(plan.convolution, input, points)
    else:
        output = _in_rounds(plan.convolution, input, points)
    return (output.reshape(plan.results[0].shape),)


def _in_rounds(plan: ConvPlan, input: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The samples at points that do not lie in a row, and are copied some at a time."""
    output, axis = np.empty(plan.out_shape, input.dtype), 2 if plan.points.channels_last else 3
    by_point, wide = np.moveaxis(output, axis, 1), sum_dtype(input.dtype)
    most = max(_SAMPLES // (wide.itemsize * max(plan.points.channels, 2)), PLANE)
    for image, point in _rounds(plan, most):
        own = _some(points[image], point.start, point.stop, wide)
        located = replace(plan.points, batch=len(own), out_width=own.shape[1])
        (found,) = widening.forward(replace(plan, points=located), input[image], own)
        copy(np.moveaxis(found, axis, 1), by_point[image, point])
    return output


def _rounds(plan: ConvPlan, most: int) -> Iterator[tuple[slice, slice]]:
    """Of at most so many points: images, and the points of each."""
    batch, pixels = plan.points.batch, plan.points.pixels
    images = max(most // max(pixels, 1), 1)
    for first in range(0, pixels, most):
        for image in range(0, batch, images):
            last = min(image + images, batch), min(first + most, pixels)
            yield slice(image, last[0]), slice(first, last[1])


def backward(
    plan: SamplePlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    points: np.ndarray,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients of "input" and "points", as far as they are in `needs`."""
    if grad_output.size == 0:
        given = {"input": input, "points": points}
        return {name: np.zeros(given[name].shape, given[name].dtype) for name in needs}
    convolution = plan.convolution
    names = {"input": "input", "points": "offset"}
    wanted = frozenset(names[name] for name in needs)
    arrays, wide = (grad_output, input, points), sum_dtype(input.dtype)
    plain = widening.are_plain(arrays, wide)
    if plain and not _takes_fields(convolution, input.dtype, wanted, threads.get_num_threads()):
        grad_output = grad_output.reshape(convolution.out_shape)
        found = gradients(convolution, grad_output, input, points, None, None, wanted)
        return {name: found[names[name]] for name in needs}
    result, narrow = {}, input.dtype != wide
    if "input" in needs and narrow and plan.points.pixels > _most_points(convolution, 4):
        # of 16 bits, it is rounded once, and so never added to
        result, needs = {"input": _by_bands(plan, arrays)}, needs - {"input"}
    if needs:
        result |= _by_fields(plan, arrays, needs)
    return result


@remembered
def _takes_fields(plan: ConvPlan, dtype: np.dtype, needs: frozenset[str], count: int) -> bool:
    """Whether the gradients are made field by field: of plain arrays to the same bytes."""
    points = plan.points
    if workspace_bytes(plan, dtype, False, needs) > _ROOM:
        return True
    tasks = points.batch * -(-points.channels // gradient_slice(plan))
    whole = _fields(plan, dtype.itemsize, 1).sort == 0
    return whole or (count > 1 and not threads.takes_one(_work(plan)) and threads.too_few(tasks))


def _most_points(plan: ConvPlan, itemsize: int) -> int:
    """Of an image in a round."""
    slices = -(-plan.points.channels // gradient_slice(plan))
    return min(_POINTS, max(_FOUND // (2 * itemsize * slices), PLANE))


def _work(plan: ConvPlan) -> int:
    """Multiplications: of vectors, and what it takes to find a point."""
    points, widest = plan.points, gradient_slice(plan)
    slices = -(-points.channels // widest)
    of_point = slices * (8 * max(min(widest, points.channels), 16) + 64)
    return points.batch * (points.pixels * of_point + points.height * points.width)


def _fields(
    plan: ConvPlan, itemsize: int, tasks: int, between: tuple[int, int] | None = None
) -> Fields:
    """How images of which each has so many points are cut into fields; `tasks` is of an image and
    a slice. Points are looked at `between` two coordinates, if that is not None.
    """
    points, slices = plan.points, cut(plan, gradient_slice(plan), False)
    widest = int(np.diff(slices.first).max())
    most = max(_FIELD // (2 * widest * itemsize), 1)
    tall, long = (points.height - 1).bit_length(), (points.width - 1).bit_length()
    most = min(most, max((1 << tall + long) // tasks, _LEAST))
    high = wide = 0
    while high + wide < min(tall + long, most.bit_length() - 1):
        if wide < long and (wide <= high or high == tall):
            wide += 1
        else:
            high += 1
    down, across = -(-points.height >> high), -(-points.width >> wide)
    return Fields(
        points.pixels,
        down,
        across,
        high,
        wide,
        len(slices.weight_group),
        widest,
        points.channels,
        int(points.channels_last),
        1,
        points.pixels,
        int(down * across > 1 or between is not None),
        *(between or (-_FAR, _FAR)),
        0,
        0,
        0,
    )


class _Cut(NamedTuple):
    """What follows of a round from a plan."""

    images: int
    fields: Fields
    numbers: np.ndarray  # of kernels
    slices: np.ndarray  # where they begin, and an end
    work: int


@remembered
def _cut(
    plan: ConvPlan,
    itemsize: int,
    wants: tuple[int, int, int],
    count: int,
    between: tuple[int, int] | None = None,
) -> _Cut:
    """Of as many images as are worked on at a time, or of one with some of its points.

    The cut for `count` threads does not change a bit.
    """
    points = plan.points
    images = max(min(points.batch, _most_points(plan, itemsize) // points.pixels), 1)
    work = _work(plan) * images // points.batch
    slices = cut(plan, gradient_slice(plan), False)
    whole, tasks = images * (len(slices.first) - 1), threads.wanted_tasks(work, count)
    tasks_each = -(-tasks // whole) if threads.too_few(whole) else 1
    fields = _fields(plan, itemsize, tasks_each, between)
    if fields.sort:
        images = min(images, max(_COUNTS // (fields.down * fields.across), 1))
        most = _COUNTS // (fields.down * fields.across * images)
        most = max(min(-(-tasks // images), most, points.pixels // _BLOCK), 1)
        block = -(-points.pixels // (most * PLANE)) * PLANE
        fields = fields._replace(block=block, blocks=-(-points.pixels // block))
    fields = fields._replace(wants_input=wants[0], wants_points=wants[1], adds=wants[2])
    grid = grid_of(points, True, False)
    return _Cut(images, fields, numbers_of(grid, fields), slices.first, work)


def _by_fields(
    plan: SamplePlan, arrays: tuple[np.ndarray, ...], needs: frozenset[str]
) -> dict[str, np.ndarray]:
    grad_output, input, points = arrays
    convolution, wide = plan.convolution, sum_dtype(input.dtype)
    given, count = {"input": input, "points": points}, threads.get_num_threads()
    result = {name: np.zeros(given[name].shape, given[name].dtype) for name in needs}
    targets = [result.get("input"), result.get("points")]
    wants = int("input" in needs), int("points" in needs), 0
    lies, *flat = _lies(plan, aligned(input), aligned(grad_output))
    batch, pixels = plan.points.batch, plan.points.pixels
    most = min(_most_points(convolution, wide.itemsize), pixels)
    made = _cut(_of_points(convolution, most), wide.itemsize, wants, count)
    if most == pixels and made.images == batch and points.flags.c_contiguous:
        own = points if points.dtype == wide else copied(points, wide)
        _add_round(made, lies, (*flat, own), targets)
        return result
    points = _flat(points)
    targets[1] = None if targets[1] is None else targets[1].reshape(batch, pixels, 2)
    for first in range(0, pixels, most):
        last = min(first + most, pixels)
        made = _cut(
            _of_points(convolution, last - first),
            wide.itemsize,
            (*wants[:2], int(first > 0)),
            count,
        )
        for image in range(0, batch, made.images):
            place = slice(image, min(image + made.images, batch)), slice(first, last)
            here = [
                None if array is None else array[index]
                for array, index in zip(targets, (place[0], place), strict=True)
            ]
            at = lies.of(image)._replace(grad_first=first)
            own = _some(points[place[0]], first, last, wide)
            _add_round(made, at, (*flat, own), here)
    return result


class _Band(NamedTuple):
    """Some channels of some rows of an image, whose gradient is summed up at a time."""

    channels: tuple[int, int]
    rows: tuple[int, int]
    around: tuple[int, int]  # rows that points read which read any of these

    def of(self, plan: ConvPlan, count: int) -> ConvPlan:
        """As an image by itself, with so many points."""
        channels, (top, bottom) = self.channels[1] - self.channels[0], self.around
        origin = plan.points.origin[0] - top, plan.points.origin[1]
        own = replace(plan.points, batch=1, channels=channels, height=bottom - top, origin=origin)
        own = replace(own, out_height=1, out_width=count)
        return replace(plan, points=own, out_channels=channels)


def _bands(plan: ConvPlan, itemsize: int) -> Iterator[_Band]:
    """All of an image."""
    points = plan.points
    line = points.width * itemsize
    together = max(min(_BAND // (_ROWS * line), points.channels), 1)
    high = max(_BAND // (line * together) - 2, 1)
    for channel in range(0, points.channels, together):
        for top in range(0, points.height, high):
            bottom = min(top + high, points.height)
            around = max(top - 1, 0), min(bottom + 1, points.height)
            last = min(channel + together, points.channels)
            yield _Band((channel, last), (top, bottom), around)


def _by_bands(plan: SamplePlan, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """The gradient of an input of fewer bits than its sums, by points of several rounds."""
    grad_output, input, points = arrays
    convolution, wide = plan.convolution, sum_dtype(input.dtype)
    result, points = np.zeros(input.shape, input.dtype), _flat(points)
    lies, *flat = _lies(plan, aligned(input), aligned(grad_output))
    for image in range(plan.points.batch):
        for band in _bands(convolution, wide.itemsize):
            given = lies.of(image, band.channels[0]), *flat, points[image : image + 1]
            sums = _sums_of_band(convolution, band, given, wide)
            channels, rows = slice(*band.channels), slice(*band.rows)
            own = slice(*(row - band.around[0] for row in band.rows))
            if plan.points.channels_last:
                copy(sums[0, own], result[image, rows, :, channels])
                continue
            for plane, target in zip(sums[0], result[image, channels], strict=True):
                copy(plane[own], target[rows])  # without gaps
    return result


def _sums_of_band(
    plan: ConvPlan, band: _Band, given: tuple[Lies | np.ndarray, ...], dtype: np.dtype
) -> np.ndarray:
    """The gradient of the rows around a band; only that of its own rows is whole."""
    lies, *flat, points = given
    pixels, count = plan.points.pixels, threads.get_num_threads()
    most, own = _most_points(plan, dtype.itemsize), band.of(plan, 0).points
    size = own.height, own.width
    sums = np.zeros(
        (1, *size, own.channels) if own.channels_last else (1, own.channels, *size), dtype
    )
    between = band.around[0] - 2, band.around[1] + 1
    for first in range(0, pixels, most):
        last = min(first + most, pixels)
        asked = band.of(plan, last - first), dtype.itemsize, (1, 0, int(first > 0)), count
        some = *flat, _some(points, first, last, dtype)
        _add_round(_cut(*asked, between), lies._replace(grad_first=first), some, [sums, None])
    return sums


def _axes(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Counts and strides of as few axes as hold the same elements in the same order."""
    found = [(1, 0)]
    for count, stride in zip(shape, strides, strict=True):
        if count > 1:
            before, step = found[-1]
            if before == 1:
                found[-1] = count, stride
            elif step == count * stride:
                found[-1] = before * count, stride
            else:
                found.append((count, stride))
    return found


def _flat(points: np.ndarray) -> np.ndarray:
    """The points of an image in a row, where that takes no copy; else as they are."""
    grid = points.shape[1:-1]
    if len(_axes(grid, points.strides[1:-1])) > 1:
        return points
    return points.reshape(len(points), prod(grid), 2)


def _some(points: np.ndarray, first: int, last: int, dtype: np.dtype) -> np.ndarray:
    """A copy of points `first` to `last` of some images, which lie anyhow.  # (N, points, 2)"""
    found = np.empty((len(points), last - first, 2), dtype)
    _copy_some(points, first, found)
    return found


def _copy_some(points: np.ndarray, first: int, target: np.ndarray) -> None:
    """Fill `target` with points from `first` on: whole rows of their grid, and parts of rows."""
    count, shape = target.shape[1], points.shape[2:]
    if points.ndim == 3:
        copy(points[:, first : first + count], target)
        return
    length, at = prod(shape[:-1]), 0
    while at < count:
        row, begin = divmod(first + at, length)
        rows = 0 if begin else (count - at) // length
        end = at + rows * length if rows else min(at + length - begin, count)
        here = target[:, at:end]
        if rows:
            copy(points[:, row : row + rows], here.reshape(len(here), rows, *shape))
        else:
            _copy_some(points[:, row], begin, here)
        at = end


def _of_points(plan: ConvPlan, count: int) -> ConvPlan:
    """With so many points in an image."""
    if count == plan.points.pixels:
        return plan
    return replace(plan, points=replace(plan.points, out_width=count))


def _lies(
    plan: SamplePlan, input: np.ndarray, grad_output: np.ndarray
) -> tuple[Lies, np.ndarray, np.ndarray, np.ndarray]:
    """Where the input and the gradient of the samples lie, the arrays, flat, and steps from one
    point to others.
    """
    flat, start, (image, *others) = lying(input)
    grad, grad_start, (grad_image, *more) = lying(grad_output)
    if plan.points.channels_last:
        others, more = others[2:] + others[:2], more[-1:] + more[:-1]
    channel, *grid = more
    steps = np.array(_axes(plan.grid, grid), np.int64).reshape(-1)
    return Lies(start, image, *others, grad_start, grad_image, channel, 0), flat, grad, steps


def _add_round(
    made: _Cut, lies: Lies, given: tuple[np.ndarray, ...], targets: list[np.ndarray | None]
) -> None:
    """Add what some points of some images say; `targets` are their gradients."""
    fields, slices = made.fields, made.slices
    input, grad_output, steps, points = given
    images, points = len(points), frozen(points, points)
    grad_input, grad_points = targets
    order = ends = _NOTHING
    if fields.sort:
        order, ends = _sorted(made, points, images)
    found, target, apart = np.empty(0, points.dtype), grad_points, False
    if grad_points is not None:
        dense = grad_points.flags.c_contiguous
        target = grad_points if dense else np.empty(grad_points.shape, grad_points.dtype)
        apart = not dense or fields.slices > 1 or target.dtype != points.dtype
        found = target.reshape(-1)
        if apart:
            found = np.zeros(fields.slices * points.size, points.dtype)
    flat = np.empty(0, input.dtype) if grad_input is None else words(grad_input).reshape(-1)
    memory = Memory(input, grad_output, steps, points, order, ends, found, flat)
    tasks = images * fields.slices * fields.down * fields.across
    task = partial(add_fields, made.numbers, numbers_of(lies), slices, memory)
    threads.share(task, tasks, made.work)
    if apart:
        task = partial(collect, fields.slices, found, words(target).reshape(-1))
        threads.share(task, points.size, 2 * found.size)
    if target is not grad_points:
        grad_points[...] = target


def _sorted(made: _Cut, points: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of each field, and where they end."""
    fields, numbers = made.fields, made.numbers
    shape = images, fields.blocks, fields.down * fields.across
    keys, counts = np.empty(points.size // 2, np.int32), np.empty(shape, np.int64)
    tasks, work = images * fields.blocks, 16 * points.size
    threads.share(partial(find_fields, numbers, points, keys, counts.reshape(-1)), tasks, work)
    by_field = counts.transpose(0, 2, 1)
    ends = by_field.cumsum().reshape(by_field.shape)
    places = np.ascontiguousarray((ends - by_field).transpose(0, 2, 1)).reshape(-1)
    order = np.empty(ends[-1, -1, -1], np.int32)
    threads.share(partial(sort_points, numbers, keys, places, order), tasks, work)
    return order, ends[:, :, -1].astype(np.int32).reshape(-1)
