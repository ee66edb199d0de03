"""Sums of samples and their gradients, of some images and queries at a time.

Kernels take contiguous arrays. Where others would take much memory to copy, they are copied in
portions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.aggregator import Aggregator, Room
from cudeform.cpu.language.dtypes import rounded
from cudeform.cpu.spreading import SUMS

_COPIED = 16 << 20  # bytes of copies of what is not contiguous


class Portion(NamedTuple):
    """Some images, and some rows of the queries of each: the second axis of all but the values."""

    images: tuple[int, int]
    rows: tuple[int, int]
    whole: bool = True  # all images and all rows

    def of(self, array: np.ndarray | None) -> np.ndarray | None:
        """What it has of an array, copied only if that is not contiguous."""
        if array is None:
            return None
        some = array if self.whole else array[slice(*self.images), slice(*self.rows)]
        return np.ascontiguousarray(some)

    def values(self, array: np.ndarray) -> np.ndarray:
        """The values of its images, as they lie."""
        return array if self.whole else array[slice(*self.images)]


def portions(shape: tuple[int, ...], arrays: Iterable[np.ndarray | None]) -> list[Portion]:
    """All images and rows, or portions of which copies are small.  # shape: (images, rows, ...)"""
    images, rows = shape[:2]
    size = 0
    for array in arrays:
        if array is not None and not array.flags.c_contiguous:
            size += array.nbytes
    if size <= _COPIED:
        return [Portion((0, images), (0, rows))]
    together = max(_COPIED * images // size, 1)
    high = max(min(_COPIED * images * rows // size, rows), 1)
    return [
        Portion((n, min(n + together, images)), (r, min(r + high, rows)), False)
        for n in range(0, images, together)
        for r in range(0, rows, high)
    ]


Prepared = Callable[[Portion], tuple[Aggregator, np.ndarray]]


def differentiate_all(
    parts: list[Portion],
    prepare: Prepared,
    of_points: Callable[[Portion], tuple[np.ndarray | None, ...]] | None,
    room: Room | None,
) -> None:
    """Set the gradients of points, those that `of_points` has of a portion, and of the values.

    `prepare` makes the call of a portion, and the gradient of its results. None is not wanted.
    """
    once = prepare(parts[0]) if len(parts) == 1 else None

    def prepared(part: Portion) -> tuple[Aggregator, np.ndarray]:
        return once or prepare(part)

    if once and of_points is not None and room is not None:
        call, grad_output = once
        if call.differentiate_slices(grad_output, *of_points(parts[0]), room):
            return
    if of_points is not None:
        for part in parts:
            call, grad_output = prepared(part)
            call.differentiate(grad_output, *of_points(part))
    if room is not None:
        _spread_all(parts, prepared, room)


def _spread_all(parts: list[Portion], prepare: Prepared, room: Room) -> None:
    """Add up the gradient of the values; of fewer bits it is rounded once."""
    dtype, wide = room.array.dtype, sum_dtype(room.array.dtype)
    for _, group in groupby(parts, lambda part: part.images):
        some = list(group)
        target = some[0].values(room.array)
        if dtype == wide or len(some) == 1:
            for part in some:
                call, grad_output = prepare(part)
                call.spread(grad_output, Room(target, SUMS if part.rows[0] else room.holds))
            continue
        call, _ = prepare(some[0])
        target = target.reshape(len(target), call.extent.pixels, -1)
        high = max(_COPIED // (target[:, 0].size * wide.itemsize), 1)
        for first in range(0, call.extent.pixels, high):
            pixels = first, min(first + high, call.extent.pixels)
            sums = np.zeros((len(target), pixels[1] - first, target.shape[2]), wide)
            for part in some:
                call, grad_output = prepare(part)
                call.spread(grad_output, Room(sums, SUMS), pixels)
            target[:, slice(*pixels)] = rounded(sums, target.dtype)
