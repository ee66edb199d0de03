"""What a call starts on a GPU, step by step, and where in one workspace its arrays lie."""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from cudeform.cuda.compile import Unit
from cudeform.cuda.gemm import Gemm, gemm_arguments

_GRID = 256  # bytes: where every allocation of a GPU starts
_MOST_STEPS = 1 << 15  # of all programs of a device together, a kB or two each


def address(array: Any) -> int:
    """Where an array's first element is in its device's memory."""
    return array.data.ptr


def _nbytes(array: Any) -> int:
    return prod(array.shape) * array.dtype.itemsize


class Slot(NamedTuple):
    """An array of a program: an argument, a result, or what is needed in between."""

    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes = property(_nbytes)


class View(NamedTuple):
    """A part of the array in a slot; offset and strides in bytes."""

    slot: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    nbytes = property(_nbytes)


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


class Starter(Protocol):
    """What host code has its launches and products started by."""

    def start(self, step: Launch | Product) -> None:
        """Start a step that has arrays, or None, in the place of views."""

    def launch(
        self,
        unit: Unit,
        kernel: str,
        grid: int,
        block: int,
        arrays: tuple[Any, ...],
        params: np.ndarray,
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel: contiguous arrays or None first, its Params last.

        `shared_bytes` is what a block has of shared memory besides what the kernel declares.
        """
        self.start(Launch(arrays, unit, kernel, grid, block, params, shared_bytes))

    def gemm(
        self, a: Any, b: Any, out: Any, *, accumulate: bool = False, precision: str = "ieee"
    ) -> None:
        """out = a @ b, or out += a @ b, on (batches of) strided matrices, summed in `sum_dtype`."""
        self.start(Product((a, b, out), gemm_arguments(a, b, out), accumulate, precision))


class Program(NamedTuple):
    """What a call does; its arguments have the first slots, in their order."""

    given: int
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    results: tuple[View, ...]
    names: tuple[str, ...] | None  # of gradients, which are a dictionary

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
        size, start = -(-sizes[slot] // _GRID) * _GRID, 0
        for begin, end, other in placed:
            overlaps = lives[other][0] <= last and first <= lives[other][1]
            if overlaps and begin < start + size:
                start = max(start, end)
        insort(placed, (start, start + size, slot))
    starts = {slot: start for start, _, slot in placed}
    return starts, max((stop for _, stop, _ in placed), default=0)


class Known(NamedTuple):
    """How calls with one key are computed: None for the host code."""

    run: Callable[[tuple[Any, ...], list[int]], Any] | None
    steps: int  # and what else takes the memory of one


class Programs:
    """What is known of the calls on a device, up to a number of steps; the oldest is forgotten."""

    def __init__(self) -> None:
        self._kept: dict[Any, Known] = {}
        self._steps = 0
        self._lock = threading.RLock()
        self.get = self._kept.get

    def keep(self, key: Any, kept: Known) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = kept
            self._steps += kept.steps
            while self._steps > _MOST_STEPS:
                self._steps -= self._kept.pop(next(iter(self._kept))).steps
