"""What follows of a sum of samples from the shapes of its arrays, as kernels are told it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.located import PLANE
from cudeform.cpu.queries import Extent, Strides


class At(NamedTuple):
    """Where values are: the last fields of `Strides`."""

    start: int
    image: int
    head: int
    pixel: int
    channel: int
    gap: int


class Taps(NamedTuple):
    """Where the taps of a grid are, for kernels: numbered down columns, in pixels from the base."""

    height: int  # of a column
    removed: int  # the tap that is no point; where all are, their number
    step_y: int
    step_x: int
    center_y: int
    center_x: int


class Sizes(NamedTuple):
    """What follows of a call from shapes, for kernels: made once for equal ones."""

    shape: tuple[int, ...]  # of the values: (N, H, W, M, D), or (N, 1, S, M, D) for levels
    extent: Extent
    # Height, width and first pixel of the level of each point, all heights first; of a grid, of one
    levels: np.ndarray
    taps: np.ndarray | None  # of a grid: `Taps`
    nearest: bool | None  # None: a point reads four pixels
    softmax: bool | None  # None: of no weights
    scale: np.ndarray  # one number, in the dtype of sums; of a grid: of the taps with their offsets
    at: At  # of contiguous values

    @property
    def places(self) -> tuple[np.ndarray | bool | None, ...]:
        """Where points are, and what a kernel is compiled for."""
        return self.levels, self.taps, self.nearest, self.softmax

    @property
    def slices(self) -> int:
        return self.shape[0] * self.extent.heads


def sized(
    shape: tuple[int, ...],
    extent: Extent,
    levels: np.ndarray,
    taps: Taps | None,
    scale: float,
    dtype: np.dtype,
    nearest: bool = False,
    softmax: bool = False,
) -> Sizes:
    """The sizes of a call, for values of a dtype."""
    pixel = extent.heads * extent.channels
    at = At(0, extent.pixels * pixel, extent.channels, pixel, 1, 0)
    places = None if taps is None else np.array(taps, np.int64)
    factor = np.array([scale], sum_dtype(dtype))
    return Sizes(shape, extent, levels, places, nearest or None, softmax or None, factor, at)


def job_of(extent: Extent, first: int, pieces: int, at: At, *more: tuple[int, ...]) -> np.ndarray:
    """The integers of a job, for kernels: of values at a place, from a slice on."""
    return numbers_of(extent, Strides(rows_of(extent), first, pieces, *at), *more)


def rows_of(extent: Extent) -> int:
    """Queries of a block."""
    return max(min(PLANE // extent.points, extent.queries), 1)
