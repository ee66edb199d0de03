"""Sums of samples of the heads of queries: a head of an image at a time, a block of its queries.

The pixels of a head lie apart in memory, among those of the others. Where they are read often they
are first copied side by side, so that they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language.dtypes import rounded
from cudeform.cpu.language.halves import words
from cudeform.cpu.language.strided import aligned, lying
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import SCRATCH_BYTES, numbers_of
from cudeform.cpu.located import PLANE
from cudeform.cpu.queries import (
    Extent,
    Strides,
    aggregate,
    aggregate_gathered,
    pack,
    point_gradients,
    point_gradients_gathered,
)
from cudeform.cpu.spreading import Spread, survey, value_gradients

__all__ = ["Aggregator", "Portion", "portions", "spread_all", "unfilled"]

_FEW = 16  # queries that are not worth a task of their own
_CACHED = 1 << 20  # bytes of copies that are worked on together, however few threads there are
_RANGE_BYTES = 4 << 20  # of the sums of a range of pixels, which a thread has at a time
_RANGES = 2  # for each thread: fewer than tasks, as each locates all points anew
_WIDE = 4  # ranges from which on it pays to know which pixels queries reach
_BUNDLES = 2**16  # of queries of which that is known, in all slices
_PAGE = 1024  # pixels of which it is known whether they are reached
_COPIED = 16 << 20  # bytes of copies of what is not contiguous


class Portion(NamedTuple):
    """Some images, and some rows of the queries of each: the second axis of all but the values."""

    images: slice
    rows: slice

    def of(self, array: np.ndarray | None) -> np.ndarray | None:
        """What it has of an array, copied only if that is not contiguous."""
        return None if array is None else np.ascontiguousarray(array[self])


def portions(shape: tuple[int, ...], arrays: tuple[np.ndarray | None, ...]) -> list[Portion]:
    """All images and rows, or portions of which copies are small.  # shape: (images, rows, ...)"""
    images, rows = shape[:2]
    size = sum(a.nbytes for a in arrays if a is not None and not a.flags.c_contiguous)
    if size <= _COPIED:
        return [Portion(slice(0, images), slice(0, rows))]
    together = max(_COPIED * images // size, 1)
    high = max(min(_COPIED * images * rows // size, rows), 1)
    return [
        Portion(slice(n, min(n + together, images)), slice(r, min(r + high, rows)))
        for n in range(0, images, together)
        for r in range(0, rows, high)
    ]


def unfilled(array: np.ndarray) -> np.ndarray:
    """For the gradient of values: zeros if it is large, as `spread` leaves what no point reads."""
    large = array.size * sum_dtype(array.dtype).itemsize > _WIDE * _RANGE_BYTES
    return (np.zeros if large else np.empty)(array.shape, array.dtype)


def spread_all(
    parts: list[Portion],
    prepare: Callable[[Portion], tuple[Aggregator, np.ndarray]],
    grad_value: np.ndarray,
) -> None:
    """Add up the gradient of the values, which is `unfilled`; of fewer bits it is rounded once.

    `prepare` makes the call of a portion, and the gradient of its results.
    """
    wide = sum_dtype(grad_value.dtype)
    for images, group in groupby(parts, lambda part: (part.images.start, part.images.stop)):
        some, target = list(group), grad_value[slice(*images)]
        if grad_value.dtype == wide or len(some) == 1:
            for part in some:
                call, grad_output = prepare(part)
                call.spread(grad_output, target, adds=part.rows.start > 0)
            continue
        call, _ = prepare(some[0])
        target = target.reshape(len(target), call.extent.pixels, -1)
        high = max(_COPIED // (target[:, 0].size * wide.itemsize), 1)
        for first in range(0, call.extent.pixels, high):
            pixels = first, min(first + high, call.extent.pixels)
            sums = np.zeros((len(target), pixels[1] - first, target.shape[2]), wide)
            for part in some:
                call, grad_output = prepare(part)
                call.spread(grad_output, sums, pixels, adds=True)
            target[:, slice(*pixels)] = rounded(sums, target.dtype)


class _Part(NamedTuple):
    """Slices that are worked on together."""

    first: int
    last: int
    packed: bool


def _pieces(part: _Part, count: int) -> int:
    """How many pieces to cut each slice of a part into, of `count` queries or pixels."""
    most = count // _FEW
    return 1 if most < 2 else min(-(-threads.wanted_tasks() // (part.last - part.first)), most)


def _cuts(levels: np.ndarray, pixels: int, pieces: int) -> np.ndarray:
    """Where so many ranges of pixels begin, and the end.

    Half of what a range costs goes with its pixels, half with the points that may lie in it: a
    small level has as many of them as a large one.
    """
    if pieces == 1:
        return np.array([0, pixels], np.int64)
    heights, widths, starts = levels
    sizes = np.maximum(heights * widths, 1)
    edges = np.unique([0, pixels, *starts, *(starts + heights * widths)])
    shares = np.clip((edges[:, None] - starts) / sizes, 0, 1).mean(1)
    return np.interp(np.linspace(0, 2, pieces + 1), edges / pixels + shares, edges).astype(np.int64)


class _At(NamedTuple):
    """Where values are: the last fields of `Strides`."""

    start: int
    image: int
    head: int
    pixel: int
    channel: int
    gap: int


class Aggregator:
    """Sums of samples, and their gradients, for one call.

    Parameters
    ----------
    batch : int
    extent : Extent
    levels : int64 array
        Height, width and first pixel of the level of each point, all heights first; in a grid
        also where its tap is from the base, y and x.
    value : array
        Of any strides.  # (N, H, W, M, D); (N, 1, S, M, D) for levels
    locations, weights : array
        Contiguous.
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
        end = 3 * extent.points
        self.levels = levels[:end], levels[end:] if extent.out_width else None  # and the taps
        self.rows = max(min(PLANE // extent.points, extent.queries), 1)  # of a block
        self.value = aligned(value)
        self.at, self.gathers, self.memory = self._lying()
        self.dtypes = locations.dtype, weights.dtype
        self.points = [frozen(words(array), array) for array in (locations, weights)]
        self.scale = np.array([scale], sum_dtype(value.dtype))

    def aggregate(self, output: np.ndarray) -> None:
        """Set the output."""
        target = words(output.reshape(-1))
        for part in self._parts():
            source, at, gathers = self._source(part)
            tasks, job = self._tasks(part, at)
            given = (job, *self.levels, source, *self.points, self.scale, target)
            kernel = aggregate_gathered if gathers else aggregate
            threads.share(partial(kernel, *given), tasks, self._work(output))

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
            source, at, gathers = self._source(part)
            tasks, job = self._tasks(part, at)
            given = (job, *self.levels, source, *self.points, grads, self.scale)
            task = partial(
                point_gradients_gathered if gathers else point_gradients, *given, *targets
            )
            threads.share(task, tasks, self._work(grad_output))

    def spread(
        self,
        grad_output: np.ndarray,
        grad_value: np.ndarray,
        pixels: tuple[int, int] | None = None,
        adds: bool = False,
    ) -> None:
        """Set the gradient of the values, or add to it; of a range of pixels or all.

        In a large one what no point reads is left as it is.
        """
        extent, part = self.extent, _Part(0, self.slices, False)
        begin, end = pixels or (0, extent.pixels)
        size = (end - begin) * extent.channels * self.scale.itemsize
        count = threads.get_num_threads()
        ranges = 1 if count == 1 else min(-(-_RANGES * count // self.slices), extent.pixels // _FEW)
        pieces = max(ranges, -(-size // _RANGE_BYTES))
        cuts = _cuts(self.levels[0].reshape(3, -1), extent.pixels, pieces)
        if pixels:
            cuts = np.linspace(begin, end, pieces + 1).astype(np.int64)
        known = size > _WIDE * _RANGE_BYTES
        how, *reach = self._surveyed(begin, adds) if known else self._anywhere(begin, adds)
        grads = frozen(words(grad_output), grad_output)
        numbers = self._job(part, pieces, self.at, how)
        given = (numbers, *self.levels, cuts, *reach, *self.points, grads, self.scale)
        task = partial(value_gradients, *given, words(grad_value.reshape(-1)))
        threads.share(task, part.last * pieces, self._work(grad_output))

    def _anywhere(self, begin: int, adds: bool) -> tuple[Spread, np.ndarray, np.ndarray]:
        """What is known of queries that nobody looked at: they may reach all pixels."""
        how = Spread(begin, int(adds), self.extent.queries, self.extent.pixels)
        reach = np.tile([0, self.extent.pixels], self.slices)
        return how, reach, np.ones(self.slices, np.uint8)

    def _surveyed(self, begin: int, adds: bool) -> tuple[Spread, np.ndarray, np.ndarray]:
        """Which pixels queries reach."""
        extent = self.extent
        bundles = max(_BUNDLES // self.slices, 1)
        bundle = -(-extent.queries // bundles)
        bundle = -(-bundle // self.rows) * self.rows
        how = Spread(begin, int(adds), bundle, _PAGE)
        tasks = self.slices * -(-extent.queries // bundle)
        reach = np.empty(2 * tasks, np.int64)
        touched = np.zeros(self.slices * -(-extent.pixels // _PAGE), np.uint8)
        numbers = self._job(_Part(0, self.slices, False), 1, self.at, how)
        given = numbers, *self.levels, self.points[0], self.scale, reach, touched
        threads.share(partial(survey, *given), tasks, self.slices * extent.queries * extent.points)
        return how, reach, touched

    def _work(self, output: np.ndarray) -> int:
        return output.size * self.extent.points * 2  # four corners, at twice the usual speed

    def _parts(self) -> Iterator[_Part]:
        """All slices, so many at a time that copies of them are small."""
        extent = self.extent
        size = extent.pixels * extent.channels * self.scale.itemsize
        often = extent.queries * extent.points >= extent.pixels
        if size > SCRATCH_BYTES or not often:
            yield _Part(0, self.slices, False)
            return
        most = max(min(SCRATCH_BYTES // size, max(threads.get_num_threads(), _CACHED // size)), 1)
        for first in range(0, self.slices, most):
            yield _Part(first, min(first + most, self.slices), True)

    def _tasks(self, part: _Part, at: _At) -> tuple[int, Any]:
        pieces = _pieces(part, self.extent.queries)
        return (part.last - part.first) * pieces, self._job(part, pieces, at)

    def _job(self, part: _Part, pieces: int, at: _At, *more: tuple[int, ...]) -> np.ndarray:
        strides = Strides(self.rows, part.first, pieces, *at)
        return numbers_of(self.extent, strides, *more)

    def _lying(self) -> tuple[_At, bool, np.ndarray | None]:
        """Where the values are, whether their channels are gathered, and their memory if it is no
        contiguous array.
        """
        extent, value = self.extent, self.value
        pixel = extent.heads * extent.channels
        if value.flags.c_contiguous:
            return _At(0, extent.pixels * pixel, extent.channels, pixel, 1, 0), False, None
        flat, start, (image, row, pixel, head, channel) = lying(value)
        gap = row - value.shape[2] * pixel if value.shape[1] > 1 else 0
        gathers = gap != 0 or (channel != 1 and extent.channels > 1)
        return _At(start, image, head, pixel, channel, gap), gathers, flat

    def _source(self, part: _Part) -> tuple[np.ndarray, _At, bool]:
        """The values as kernels take them, where they are, and whether they are gathered."""
        at, gathers, flat = self.at, self.gathers, self.memory
        if not part.packed:
            return frozen(words(self.value), self.value) if flat is None else flat, at, gathers
        extent, pieces = self.extent, _pieces(part, self.extent.pixels)
        slices, each = part.last - part.first, extent.pixels * extent.channels
        target = np.empty(slices * each, self.scale.dtype)
        packed = _At(0, each * extent.heads, each, extent.channels, 1, 0)
        if flat is None:
            flat = frozen(words(self.value), self.value)
            job = self._job(part._replace(packed=False), pieces, at)
            threads.share(partial(pack, job, flat, target), slices * pieces, target.size)
        else:
            self._pack(part, target.reshape(slices, *self.value.shape[1:3], extent.channels))
        return frozen(target, target), packed, False

    def _pack(self, part: _Part, target: np.ndarray) -> None:
        """Copy the values of slices side by side, however they lie."""

        def task(first: int, last: int) -> None:
            for number in range(part.first + first, part.first + last):
                image, head = divmod(number, self.extent.heads)
                target[number - part.first] = self.value[image, :, :, head]

        threads.share(task, len(target), target.size)
