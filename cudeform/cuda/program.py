"""What a call starts on a GPU, step by step, and where in one workspace its arrays lie."""

from __future__ import annotations

from bisect import insort
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.compile import Unit
from cudeform.cuda.gemm import Gemm

__all__ = [
    "GRID", "Copy", "Launch", "Product", "Program", "Slot", "Step", "View", "Zero", "places",
]  # fmt: skip

GRID = 256  # bytes: where every allocation of a GPU starts


class Slot(NamedTuple):
    """An array of a program: an argument, a result, or what is needed in between."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class View(NamedTuple):
    """A part of the array in a slot; offset and strides in bytes."""

    slot: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Launch(NamedTuple):
    """The start of a kernel."""

    arrays: tuple[View | None, ...]
    unit: Unit
    kernel: str
    grid: int
    block: int
    params: np.ndarray
    shared_bytes: int


class Product(NamedTuple):
    """A product of matrices: (a, b, out)."""

    arrays: tuple[View, View, View]
    gemm: Gemm
    accumulate: bool
    precision: str


class Copy(NamedTuple):
    """Bytes moved: (source, target)."""

    arrays: tuple[View, View]


class Zero(NamedTuple):
    """Bytes set to 0."""

    arrays: tuple[View]


Step = Launch | Product | Copy | Zero


class Program(NamedTuple):
    """What a call does with its arguments, which have the first slots in the order of their names."""

    given: int
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    results: tuple[View, ...]
    names: tuple[str, ...] | None  # of gradients, which are a dictionary

    def returned(self, arrays: list[Any]) -> Any:
        """The results as the host code would return them."""
        return tuple(arrays) if self.names is None else dict(zip(self.names, arrays, strict=True))

    def lives(self) -> dict[int, tuple[int, int]]:
        """The first and the last step that has to do with each slot."""
        found: dict[int, tuple[int, int]] = {}
        for number, step in enumerate(self.steps):
            for view in step.arrays:
                if view is not None:
                    found[view.slot] = found.get(view.slot, (number,))[0], number
        return found


def places(lives: dict[int, tuple[int, int]], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """Where each slot lies in a workspace, and how large that is.

    Slots that are never needed at the same time may share a place. The largest are placed first,
    each as low as it can be.
    """
    placed: list[tuple[int, int, int]] = []  # start, stop, slot
    for slot in sorted(sizes, key=lambda slot: (-sizes[slot], slot)):
        first, last = lives[slot]
        size, start = -(-sizes[slot] // GRID) * GRID, 0
        for begin, end, other in placed:
            overlaps = lives[other][0] <= last and first <= lives[other][1]
            if overlaps and begin < start + size:
                start = max(start, end)
        insort(placed, (start, start + size, slot))
    starts = {slot: start for start, _, slot in placed}
    return starts, max((stop for _, stop, _ in placed), default=0)
