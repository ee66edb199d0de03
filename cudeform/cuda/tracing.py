"""The host code of an operator, run once on arrays without contents to see what it starts.

Which kernels it starts, on which parts of which arrays, does not depend on what is in these: so a
`Tracer` writes it down, and a `Program` does it again with other arrays.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.device import register
from cudeform.cuda.lanes import VECTOR_BYTES
from cudeform.cuda.program import Copy, Program, Slot, Starter, Step, View, Zero, address

_LONGEST = 1 << 10  # steps of a program: what starts more keeps a GPU busy while host code runs
_current = threading.local()


class Unforeseen(Exception):
    """Host code starts too much, looks at what is in an array, or brings what is in one."""


class _Place(NamedTuple):
    """Where an array's first element is; named as in CuPy."""

    ptr: int


class Traced(np.ndarray):
    """An array of which only the place, shape, strides and dtype mean something.

    Its memory is reserved and never there; it reads as zeros and cannot be written.
    """

    slot: int  # which of the arrays of a program this is a part of
    _place: _Place | None  # which takes NumPy a microsecond

    def __array_finalize__(self, parent: Any) -> None:
        self.slot = getattr(parent, "slot", -1)
        self._place = None

    @property
    def data(self) -> Any:
        if self._place is None:
            self._place = _Place(self.__array_interface__["data"][0])
        return self._place

    def copy(self, order: Any = "C") -> Any:
        return _tracer().copy(self)

    def fill(self, value: Any) -> None:
        _tracer().fill(self, value)


def _tracer() -> Tracer:
    """That of the call that this thread traces."""
    return _current.tracer


register(Traced, lambda: _tracer())


class Tracer(Starter):
    """What the host code sees in the place of a device."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.steps: list[Step] = []
        self._starts: list[int] = []

    def array(self, shape: tuple[int, ...], dtype: Any, past: int = 0) -> Traced:
        """A new array that starts so many bytes past the grid of vectors."""
        slot = Slot(tuple(shape), np.dtype(dtype))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, VECTOR_BYTES + slot.nbytes, flags=flags, prot=mmap.PROT_READ)
        array = np.ndarray.__new__(Traced, slot.shape, slot.dtype, memory, past)
        array.slot = len(self.slots)
        self.slots.append(slot)
        self._starts.append(address(array))
        return array

    def argument(self, array: Any) -> Traced | None:
        """One like this, which has a slot too if it is None."""
        if array is None:
            self.array((0,), np.uint8)
            return None
        return self.array(array.shape, array.dtype, address(array) % VECTOR_BYTES)

    def empty(self, shape: Any, dtype: Any) -> Traced:
        return self.array((shape,) if isinstance(shape, int) else shape, dtype)

    def to_device(self, array: np.ndarray) -> Any:
        raise Unforeseen("an array of the host")

    def to_host(self, array: Any) -> np.ndarray:
        raise Unforeseen("a copy to the host")

    def start(self, step: Step) -> None:
        if len(self.steps) == _LONGEST:
            raise Unforeseen("more steps than a program has")
        views = (None if array is None else self.view(array) for array in step.arrays)
        self.steps.append(step._replace(arrays=tuple(views)))

    def copy(self, array: Traced) -> Traced:
        """A copy of a part of an array without gaps."""
        copy = self.empty(array.shape, array.dtype)
        self._move(Copy((array, copy)))
        return copy

    def fill(self, array: Traced, value: Any) -> None:
        if value != 0:
            raise ValueError(f"expected a fill with 0, got {value!r}")
        self._move(Zero((array,)))

    def _move(self, step: Copy | Zero) -> None:
        array = step.arrays[0]
        if not array.flags.c_contiguous:
            raise ValueError(f"expected an array without gaps, got strides {array.strides}")
        if array.nbytes:
            self.start(step)

    def view(self, array: Any) -> View:
        """Which part of which array of the program this is."""
        slot = getattr(array, "slot", -1)
        offset = address(array) - self._starts[slot] if slot >= 0 else -1
        if not 0 <= offset <= self.slots[slot].nbytes - array.nbytes:
            raise ValueError(f"host code copied an array of shape {array.shape} on the host")
        return View(slot, offset, array.shape, array.strides, array.dtype)


def trace(function: Callable[..., Any], given: Mapping[str, Any]) -> Program:
    """What a function, which is given arrays by name, does with arrays like these.

    Raises
    ------
    Unforeseen
        It depends on what is in them, or is too much.
    """
    tracer = Tracer()
    before = getattr(_current, "tracer", None)
    _current.tracer = tracer
    try:
        places = {name: tracer.argument(array) for name, array in given.items()}
        count = len(tracer.slots)
        found = function(**places)
        names = tuple(found) if isinstance(found, dict) else None
        arrays = found if names is None else found.values()
        results = tuple(_whole(tracer, array, count) for array in arrays)
    finally:
        _current.tracer = before
    return Program(count, tuple(tracer.slots), tuple(tracer.steps), results, names)


def _whole(tracer: Tracer, result: Any, arguments: int) -> View:
    """The view of a result, which is all of an array that the host code asked for, in its order."""
    view = tracer.view(result)
    whole = result.flags.c_contiguous and result.nbytes == tracer.slots[view.slot].nbytes
    if view.slot < arguments or not whole:
        raise ValueError(f"a result of shape {result.shape} is an argument or a part of an array")
    return view
