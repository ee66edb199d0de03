"""Weighted sums over a patch: the rows and columns of pixels that one bin reads.

The weight of a pixel is that of its row times that of its column, so a patch is two axes (index,
weight, derivative of the weight) as `samplers.locate_axis` writes them. Vectors go along the
channels of a slice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.compiler import inlined, inner
from cudeform.cpu.regions import NUMBERS
from cudeform.cpu.samplers import Image, locate_axis
from cudeform.cpu.simd import fma, lanes, load, splat, store, total, zeros

__all__ = ["Axis", "Patch", "axis_of", "blend_patch", "find_patch", "largest", "measure_patch"]
__all__ += ["slice_of", "spread_patch"]


class Axis(NamedTuple):
    """What bins read along one axis: slot k has `size` entries from k*size on."""

    size: int
    pixel: np.ndarray
    weight: np.ndarray
    slope: np.ndarray
    entries: np.ndarray  # of a slot
    inside: np.ndarray  # samples of a slot that count


class Patch(NamedTuple):
    """Slots of the two axes, and what the sum is multiplied by."""

    along_y: Axis
    along_x: Axis
    slot_y: int
    slot_x: int
    scale: float


@inlined
def axis_of(like, size, slots):
    """Room for what some bins read along an axis of so many pixels."""
    return Axis(
        size,
        np.empty(slots * size, np.int64),
        np.empty(slots * size, like.dtype),
        np.empty(slots * size, like.dtype),
        np.empty(slots, np.int64),
        np.empty(slots, np.int64),
    )
