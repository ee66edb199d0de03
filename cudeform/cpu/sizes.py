"""What follows of a sum of samples from the shapes of its arrays, as kernels are told it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.located import PLANE
from cudeform.cpu.queries import Extent, Strides

__all__ = ["At", "Sizes", "job_of", "rows_of", "sized"]


class At(NamedTuple):
    """Where values are: the last fields of `Strides`."""

    start: int
    image: int
    head: int
    pixel: int
    channel: int
    gap: int


class Sizes(NamedTuple):
    """What follows of a call from shapes, for kernels: made once for equal ones."""

    shape: tuple[int, ...]  # of the values: (N, H, W, M, D), or (N, 1, S, M, D) for levels
    extent: Extent
    levels: np.ndarray  # height, width and first pixel of that of each point, all heights first
    taps: np.ndarray | None  # of a grid: how far they are from the base, all y first
    scale: np.ndarray  # one number, in the dtype of sums; of a grid: of the taps with their offsets
    at: At  # of contiguous values

    @property
    def slices(self) -> int:
        return self.shape[0] * self.extent.heads


def sized(
    shape: tuple[int, ...],
    extent: Extent,
    levels: np.ndarray,
    taps: np.ndarray | None,
    scale: float,
    dtype: np.dtype,
) -> Sizes:
    """The sizes of a call, for values of a dtype."""
    pixel = extent.heads * extent.channels
    at = At(0, extent.pixels * pixel, extent.channels, pixel, 1, 0)
    return Sizes(shape, extent, levels, taps, np.array([scale], sum_dtype(dtype)), at)


def job_of(extent: Extent, first: int, pieces: int, at: At, *more: tuple[int, ...]) -> np.ndarray:
    """The integers of a job, for kernels: of values at a place, from a slice on."""
    return numbers_of(extent, Strides(rows_of(extent), first, pieces, *at), *more)


def rows_of(extent: Extent) -> int:
    """Queries of a block."""
    return max(min(PLANE // extent.points, extent.queries), 1)
