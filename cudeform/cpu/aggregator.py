"""Sums of samples of the heads of queries: a head of an image at a time, a block of its queries.

The pixels of a head lie apart in memory, among those of the others. Where they are read often they
are first copied side by side, so that they stay in the cache.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language.compiler import inlined, kernel, record
from cudeform.cpu.language.halves import element, put, words
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import SCRATCH_BYTES, numbers_of
from cudeform.cpu.located import (
    BASE_X,
    BASE_Y,
    HEIGHT,
    PLANE,
    SHARE,
    START,
    WIDTH,
    Rows,
    View,
    X,
    Y,
    block_arrays,
    dot_points,
    locate_beside,
    locate_nearest,
    locate_points,
    slopes,
    spread_points,
    sum_points,
)

__all__ = ["Aggregator", "Extent"]

_TASKS = 4  # for each thread
_FEW = 16  # queries that are not worth a task of their own
_RANGE_BYTES = 4 << 20  # of the sums of a range of pixels, which a thread has at a time
_MOST_RANGES = 8  # each locates all points anew
_FARTHEST = 2**31 - 1  # from the image, of a base that a plane of integers holds


class Extent(NamedTuple):
    """How many there are, and where in their arrays they lie: steps in elements.

    With an `out_width` queries are pixels of an output, whose bases are at (y, x) multiples of a
    stride from an origin, and locations are offsets from the taps of a kernel there, in pixels.
    Without one, locations are parts of a level.
    """

    pixels: int  # of an image, on all levels
    heads: int
    channels: int  # of a head
    queries: int
    points: int  # of a head of a query
    nearest: int
    softmax: int
    location_query: int
    location_head: int
    weight_query: int
    weight_head: int
    out_width: int = 0
    stride_y: int = 0
    stride_x: int = 0
    origin_y: int = 0
    origin_x: int = 0


class _Strides(NamedTuple):
    """Where values are, and how a part of them is cut up."""

    rows: int  # of a block
    first: int  # slice of the part: a slice is a head of an image
    pieces: int  # of the queries of a slice, or of its pixels
    image: int  # from one image to the next in the values
    head: int
    pixel: int


_Job = namedtuple("_Job", Extent._fields + _Strides._fields)
_read_job = record(_Job)


class _Queries(NamedTuple):
    """A head of so many queries, for kernels."""

    first: int  # of the image
    row: int  # the same, of all images
    head: int
    count: int


class _Part(NamedTuple):
    """Slices that are worked on together."""

    first: int
    last: int
    packed: bool


def _pieces(part: _Part, count: int) -> int:
    """How many pieces to cut each slice of a part into, of `count` queries or pixels."""
    tasks = threads.get_num_threads()
    tasks = 1 if tasks == 1 else _TASKS * tasks
    return max(min(-(-tasks // (part.last - part.first)), count // _FEW), 1)


class Aggregator:
    """Sums of samples, and their gradients, for one call.

    Parameters
    ----------
    batch : int
    extent : Extent
    levels : int64 array
        Height, width and first pixel of the level of each point, all heights first; in a grid
        also where its tap is from the base, y and x.
    value, locations, weights : array
    scale : float
        Of a grid: of the taps with their offsets.
    """

    def __init__(
        self,
        batch: int,
        extent: Extent,
        levels: np.ndarray,
        value: np.ndarray,
        locations: np.ndarray,
        weights: np.ndarray,
        scale: float = 1.0,
    ) -> None:
        self.extent = extent
        self.slices = batch * extent.heads
        self.levels = levels
        self.value = value
        self.dtypes = locations.dtype, weights.dtype
        self.points = [frozen(words(array), array) for array in (locations, weights)]
        self.scale = np.array([scale], sum_dtype(value.dtype))

    def aggregate(self, output: np.ndarray) -> None:
        """Set the output."""
        target = words(output.reshape(-1))
        for part in self._parts():
            tasks, job = self._tasks(part)
            given = (job, self.levels, self._source(part), *self.points, self.scale, target)
            threads.share(partial(_attend, *given), tasks, self._work(output))

    def differentiate(
        self,
        grad_output: np.ndarray,
        grad_locations: np.ndarray | None,
        grad_weights: np.ndarray | None,
    ) -> None:
        """Set the gradients of locations and weights; each may be None."""
        targets = [
            words(np.empty(0, dtype) if grad is None else grad.reshape(-1))
            for grad, dtype in zip((grad_locations, grad_weights), self.dtypes, strict=True)
        ]
        grads = frozen(words(grad_output), grad_output)
        for part in self._parts():
            tasks, job = self._tasks(part)
            given = (job, self.levels, self._source(part), *self.points, grads, self.scale)
            task = partial(_point_gradients, *given, *targets)
            threads.share(task, tasks, self._work(grad_output))

    def spread(self, grad_output: np.ndarray, grad_value: np.ndarray) -> None:
        """Set the gradient of the values."""
        extent, part = self.extent, _Part(0, self.slices, False)
        size = extent.pixels * extent.channels * self.scale.itemsize
        pieces = max(min(_pieces(part, extent.pixels), _MOST_RANGES), -(-size // _RANGE_BYTES))
        grads = frozen(words(grad_output), grad_output)
        given = (self._job(part, pieces), self.levels, *self.points, grads, self.scale)
        task = partial(_value_gradients, *given, words(grad_value.reshape(-1)))
        threads.share(task, part.last * pieces, self._work(grad_output))

    def _work(self, output: np.ndarray) -> int:
        return output.size * self.extent.points * 4

    def _parts(self) -> Iterator[_Part]:
        """All slices, so many at a time that copies of them are small."""
        extent = self.extent
        size = extent.pixels * extent.channels * self.scale.itemsize
        often = extent.queries * extent.points >= extent.pixels
        if size > SCRATCH_BYTES or not often:
            yield _Part(0, self.slices, False)
            return
        most = max(min(SCRATCH_BYTES // size, threads.get_num_threads()), 1)
        for first in range(0, self.slices, most):
            yield _Part(first, min(first + most, self.slices), True)

    def _tasks(self, part: _Part) -> tuple[int, Any]:
        pieces = _pieces(part, self.extent.queries)
        return (part.last - part.first) * pieces, self._job(part, pieces)

    def _job(self, part: _Part, pieces: int) -> np.ndarray:
        extent = self.extent
        each, pixel = extent.pixels * extent.channels, extent.heads * extent.channels
        head, pixel = (each, extent.channels) if part.packed else (extent.channels, pixel)
        rows = max(min(PLANE // extent.points, extent.queries), 1)
        image = each * extent.heads
        return numbers_of(extent, _Strides(rows, part.first, pieces, image, head, pixel))

    def _source(self, part: _Part) -> np.ndarray:
        """The values as kernels take them."""
        flat = frozen(words(self.value), self.value)
        if not part.packed:
            return flat
        extent, pieces = self.extent, _pieces(part, self.extent.pixels)
        slices = part.last - part.first
        target = np.empty(slices * extent.pixels * extent.channels, self.scale.dtype)
        job = self._job(part._replace(packed=False), pieces)
        threads.share(partial(_pack, job, flat, target), slices * pieces, target.size)
        return frozen(target, target)


@inlined
def _place(job, task, count):
    """The slice of a task, and the range of `count` queries or pixels."""
    piece = task % job.pieces
    first, last = count * piece // job.pieces, count * (piece + 1) // job.pieces
    return job.first + task // job.pieces, first, last


@kernel
def _pack(numbers, source, target, first_task, last_task):
    """Copy the values of slices side by side."""
    job = _read_job(numbers, 0)
    for task in range(first_task, last_task):
        number, first, last = _place(job, task, job.pixels)
        start = number // job.heads * job.image + number % job.heads * job.head
        to = (number - job.first) * job.pixels * job.channels
        for pixel in range(first, last):
            given, copied = source[start + pixel * job.pixel :], target[to + pixel * job.channels :]
            for c in range(job.channels):
                copied[c] = element(given, c)


@inlined
def _fill_shares(job, weights, queries, shares):
    """The factors of the points of so many queries."""
    points = job.points
    for r in range(queries.count):
        at = (queries.row + r) * job.weight_query + queries.head * job.weight_head
        given, own = weights[at:], shares[r * points :]
        for k in range(points):
            own[k] = element(given, k)
        if job.softmax:
            most = own[0]
            for k in range(1, points):
                most = max(most, own[k])
            total = own.dtype.type(0)
            for k in range(points):
                own[k] = np.exp(own[k] - most)
            for k in range(points):
                total += own[k]
            for k in range(points):
                own[k] /= total


@inlined
def _fill_levels(levels, points, first, rows, block):
    """The levels of the points of a block, from point `first` of each row on."""
    _, whole = block
    for r in range(rows.count):
        at = r * rows.each
        for k in range(rows.each):
            whole[HEIGHT + at + k] = levels[first + k]
            whole[WIDTH + at + k] = levels[points + first + k]
            whole[START + at + k] = levels[2 * points + first + k]


@inlined
def _locations(job, queries, r, first):
    """Where the locations of query `r` begin, from point `first` on."""
    return (queries.row + r) * job.location_query + queries.head * job.location_head + 2 * first


@inlined
def _locate(job, levels, locations, queries, shares, first, rows, block, scale):
    """The points of a block, from point `first` of each row on."""
    reals, whole = block
    for r in range(rows.count):
        given, own = (
            locations[_locations(job, queries, r, first) :],
            shares[r * job.points + first :],
        )
        to = r * rows.each
        for k in range(rows.each):
            reals[X + to + k] = element(given, 2 * k)
            reals[Y + to + k] = element(given, 2 * k + 1)
        for k in range(rows.each):
            reals[SHARE + to + k] = own[k]
    count = rows.count * rows.each
    if job.out_width:
        _displace(job, levels, queries, first, rows, block, scale)
        locate_beside(block, count)
        return
    half = reals.dtype.type(0.5 if job.nearest else -0.5)
    for p in range(count):
        reals[X + p] = reals[X + p] * reals.dtype.type(whole[WIDTH + p]) + half
        reals[Y + p] = reals[Y + p] * reals.dtype.type(whole[HEIGHT + p]) + half
    if job.nearest:
        locate_nearest(block, count)
    else:
        locate_points(block, count)


@inlined
def _displace(job, levels, queries, first, rows, block, scale):
    """From the offsets of a block to bases, and how far its points are from them."""
    reals, whole = block
    real, factor = reals.dtype.type, scale[0]
    taps_y, taps_x = levels[3 * job.points + first :], levels[4 * job.points + first :]
    for r in range(rows.count):
        to, q = r * rows.each, queries.first + r
        i = q // job.out_width
        y = i * job.stride_y + job.origin_y
        x = (q - i * job.out_width) * job.stride_x + job.origin_x
        y = np.int32(min(max(y, -_FARTHEST), _FARTHEST))
        x = np.int32(min(max(x, -_FARTHEST), _FARTHEST))
        for k in range(rows.each):
            whole[BASE_Y + to + k], whole[BASE_X + to + k] = y, x
            reals[Y + to + k] = (real(taps_y[k]) + reals[Y + to + k]) * factor
            reals[X + to + k] = (real(taps_x[k]) + reals[X + to + k]) * factor


@kernel
def _attend(numbers, levels, source, locations, weights, scale, output, first_task, last_task):
    """The results of queries of slices."""
    job = _read_job(numbers, 0)
    channels, points = job.channels, job.points
    block = block_arrays(scale)
    shares = np.empty(job.rows * points, scale.dtype)
    sums = np.empty(job.rows * channels, scale.dtype)
    for task in range(first_task, last_task):
        number, first, last = _place(job, task, job.queries)
        image, head = number // job.heads, number % job.heads
        start = image * job.image + head * job.head
        if job.pixel == channels:
            start -= job.first * job.head
        view = View(start, job.pixel, channels)
        for q in range(first, last, job.rows):
            count = min(job.rows, last - q)
            queries = _Queries(q, image * job.queries + q, head, count)
            sums[: count * channels] = 0
            _fill_shares(job, weights, queries, shares)
            for k in range(0, points, PLANE):
                rows = Rows(count, min(PLANE, points - k))
                if q == first or points > PLANE:
                    _fill_levels(levels, points, k, rows, block)
                _locate(job, levels, locations, queries, shares, k, rows, block, scale)
                sum_points(block, rows, source, view, sums)
            for r in range(count):
                to = output[_results(job, queries, r) :]
                own = sums[r * channels :]
                for c in range(channels):
                    put(to, c, own[c])


@inlined
def _results(job, queries, r):
    """Where the result of query `r` begins."""
    return ((queries.row + r) * job.heads + queries.head) * job.channels


@inlined
def _fill_grads(job, grad_output, queries, grads):
    """The gradients of the results of so many queries."""
    for r in range(queries.count):
        given = grad_output[_results(job, queries, r) :]
        own = grads[r * job.channels :]
        for c in range(job.channels):
            own[c] = element(given, c)


@kernel
def _point_gradients(
    numbers,
    levels,
    source,
    locations,
    weights,
    grad_output,
    scale,
    grad_locations,
    grad_weights,
    first_task,
    last_task,
):
    """The gradients of the locations and weights of queries of slices; an empty one is skipped."""
    job = _read_job(numbers, 0)
    channels, points = job.channels, job.points
    block = block_arrays(scale)
    dots = np.empty(4 * PLANE, scale.dtype)
    shares, found = (
        np.empty(job.rows * points, scale.dtype),
        np.empty(job.rows * points, scale.dtype),
    )
    grads = np.empty(job.rows * channels, scale.dtype)
    for task in range(first_task, last_task):
        number, first, last = _place(job, task, job.queries)
        image, head = number // job.heads, number % job.heads
        start = image * job.image + head * job.head
        if job.pixel == channels:
            start -= job.first * job.head
        view = View(start, job.pixel, channels)
        for q in range(first, last, job.rows):
            count = min(job.rows, last - q)
            queries = _Queries(q, image * job.queries + q, head, count)
            _fill_shares(job, weights, queries, shares)
            _fill_grads(job, grad_output, queries, grads)
            for k in range(0, points, PLANE):
                rows = Rows(count, min(PLANE, points - k))
                if q == first or points > PLANE:
                    _fill_levels(levels, points, k, rows, block)
                _locate(job, levels, locations, queries, shares, k, rows, block, scale)
                dot_points(block, rows, source, view, grads, dots)
                _write_locations(job, block, rows, dots, grad_locations, queries, k, scale)
                for r in range(count):
                    for i in range(rows.each):
                        found[r * points + k + i] = dots[r * rows.each + i]
            if len(grad_weights):
                _write_weights(job, shares, found, grad_weights, queries)


@inlined
def _write_locations(job, block, rows, dots, target, queries, first, scale):
    """From the dots of a block to gradients of its locations, and of its shares in their place."""
    _, whole = block
    if job.nearest:
        for r in range(rows.count):
            to = target[_locations(job, queries, r, first) :]
            for k in range(2 * rows.each if len(target) else 0):
                put(to, k, dots.dtype.type(0))
        return
    count = rows.count * rows.each
    slopes(block, count, dots)
    if job.out_width:
        for p in range(count):
            dots[PLANE + p] *= scale[0]
            dots[2 * PLANE + p] *= scale[0]
    else:
        for p in range(count):
            dots[PLANE + p] *= dots.dtype.type(whole[WIDTH + p])
            dots[2 * PLANE + p] *= dots.dtype.type(whole[HEIGHT + p])
    if len(target):
        for r in range(rows.count):
            to = target[_locations(job, queries, r, first) :]
            at = r * rows.each
            for k in range(rows.each):
                put(to, 2 * k, dots[PLANE + at + k])
                put(to, 2 * k + 1, dots[2 * PLANE + at + k])


@inlined
def _write_weights(job, shares, found, target, queries):
    """The gradients of the weights of so many queries."""
    points = job.points
    for r in range(queries.count):
        at = (queries.row + r) * job.weight_query + queries.head * job.weight_head
        to = target[at:]
        own, grad = shares[r * points :], found[r * points :]
        if job.softmax:
            total = grad.dtype.type(0)
            for k in range(points):
                total += own[k] * grad[k]
            for k in range(points):
                grad[k] = own[k] * (grad[k] - total)
        for k in range(points):
            put(to, k, grad[k])


@kernel
def _value_gradients(
    numbers, levels, locations, weights, grad_output, scale, target, first_task, last_task
):
    """The gradients of ranges of pixels of slices."""
    job = _read_job(numbers, 0)
    channels, points = job.channels, job.points
    block = block_arrays(scale)
    shares = np.empty(job.rows * points, scale.dtype)
    grads = np.empty(job.rows * channels, scale.dtype)
    sums = np.empty((job.pixels // job.pieces + 1) * channels, scale.dtype)
    view = View(0, channels, channels)
    for task in range(first_task, last_task):
        number, first, end = _place(job, task, job.pixels)
        image, head = number // job.heads, number % job.heads
        sums[: (end - first) * channels] = 0
        for q in range(0, job.queries, job.rows):
            count = min(job.rows, job.queries - q)
            queries = _Queries(q, image * job.queries + q, head, count)
            _fill_shares(job, weights, queries, shares)
            _fill_grads(job, grad_output, queries, grads)
            for k in range(0, points, PLANE):
                rows = Rows(count, min(PLANE, points - k))
                if q == 0 or points > PLANE:
                    _fill_levels(levels, points, k, rows, block)
                _locate(job, levels, locations, queries, shares, k, rows, block, scale)
                spread_points(block, rows, grads, sums, view, (first, end))
        for pixel in range(first, end):
            to = target[(image * job.pixels + pixel) * job.heads * channels + head * channels :]
            own = sums[(pixel - first) * channels :]
            for c in range(channels):
                put(to, c, own[c])
