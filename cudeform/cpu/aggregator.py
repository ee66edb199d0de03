"""Sums of samples of the heads of queries: a head of an image at a time, a block of its queries.

The pixels of a head lie apart in memory, among those of the others. Where they are read often they
are first copied side by side, so that they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language.halves import words
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import SCRATCH_BYTES, numbers_of
from cudeform.cpu.located import PLANE
from cudeform.cpu.queries import (
    Extent,
    Strides,
    aggregate,
    pack,
    point_gradients,
    value_gradients,
)

__all__ = ["Aggregator"]

_FEW = 16  # queries that are not worth a task of their own
_CACHED = 1 << 20  # bytes of copies that are worked on together, however few threads there are
_RANGE_BYTES = 4 << 20  # of the sums of a range of pixels, which a thread has at a time
_RANGES = 2  # for each thread: fewer than tasks, as each locates all points anew


class _Part(NamedTuple):
    """Slices that are worked on together."""

    first: int
    last: int
    packed: bool


def _pieces(part: _Part, count: int) -> int:
    """How many pieces to cut each slice of a part into, of `count` queries or pixels."""
    return max(min(-(-threads.wanted_tasks() // (part.last - part.first)), count // _FEW), 1)


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
        end = 3 * extent.points
        self.levels = levels[:end], levels[end:] if extent.out_width else None  # and the taps
        self.value = value
        self.dtypes = locations.dtype, weights.dtype
        self.points = [frozen(words(array), array) for array in (locations, weights)]
        self.scale = np.array([scale], sum_dtype(value.dtype))

    def aggregate(self, output: np.ndarray) -> None:
        """Set the output."""
        target = words(output.reshape(-1))
        for part in self._parts():
            tasks, job = self._tasks(part)
            given = (job, *self.levels, self._source(part), *self.points, self.scale, target)
            threads.share(partial(aggregate, *given), tasks, self._work(output))

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
            given = (job, *self.levels, self._source(part), *self.points, grads, self.scale)
            task = partial(point_gradients, *given, *targets)
            threads.share(task, tasks, self._work(grad_output))

    def spread(self, grad_output: np.ndarray, grad_value: np.ndarray) -> None:
        """Set the gradient of the values."""
        extent, part = self.extent, _Part(0, self.slices, False)
        size = extent.pixels * extent.channels * self.scale.itemsize
        count = threads.get_num_threads()
        ranges = 1 if count == 1 else min(-(-_RANGES * count // self.slices), extent.pixels // _FEW)
        pieces = max(ranges, -(-size // _RANGE_BYTES))
        cuts = _cuts(self.levels[0].reshape(3, -1), extent.pixels, pieces)
        grads = frozen(words(grad_output), grad_output)
        given = (self._job(part, pieces), *self.levels, cuts, *self.points, grads, self.scale)
        task = partial(value_gradients, *given, words(grad_value.reshape(-1)))
        threads.share(task, part.last * pieces, self._work(grad_output))

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

    def _tasks(self, part: _Part) -> tuple[int, Any]:
        pieces = _pieces(part, self.extent.queries)
        return (part.last - part.first) * pieces, self._job(part, pieces)

    def _job(self, part: _Part, pieces: int) -> np.ndarray:
        extent = self.extent
        each, pixel = extent.pixels * extent.channels, extent.heads * extent.channels
        head, pixel = (each, extent.channels) if part.packed else (extent.channels, pixel)
        rows = max(min(PLANE // extent.points, extent.queries), 1)
        image = each * extent.heads
        return numbers_of(extent, Strides(rows, part.first, pieces, image, head, pixel))

    def _source(self, part: _Part) -> np.ndarray:
        """The values as kernels take them."""
        flat = frozen(words(self.value), self.value)
        if not part.packed:
            return flat
        extent, pieces = self.extent, _pieces(part, self.extent.pixels)
        slices = part.last - part.first
        target = np.empty(slices * extent.pixels * extent.channels, self.scale.dtype)
        job = self._job(part._replace(packed=False), pieces)
        threads.share(partial(pack, job, flat, target), slices * pieces, target.size)
        return frozen(target, target)
