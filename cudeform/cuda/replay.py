"""A program on a device of CuPy's: what a call of it takes is made once.

A call then allocates the results and one workspace, writes the addresses of arrays where the driver
and cuBLAS read them, and starts one step after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from copy import copy
from itertools import accumulate
from typing import Any

import numpy as np

from cudeform.cuda.program import Copy, Launch, Product, Program, View, Zero, address, places

# CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE and _END of the driver's headers
_BUFFER, _SIZE, _END = 1, 2, 0
_WORD = 8  # bytes of an address


class Arguments:
    """The arguments of launches as the driver takes them: addresses, still 0, then Params."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        sizes = [_WORD * len(step.arrays) + step.params.nbytes for step in launches]
        self._firsts = list(accumulate((-(-size // _WORD) for size in sizes), initial=0))
        self._sizes = np.array(sizes, np.uint64)
        self.words = np.zeros(self._firsts.pop(), np.uint64)
        self.places: list[int] = []  # of the addresses among the words
        room = self.words.view(np.uint8)
        for step, first, size in zip(launches, self._firsts, sizes, strict=True):
            after = first + len(step.arrays)
            self.places += range(first, after)
            params = np.frombuffer(step.params.tobytes(), np.uint8)
            room[_WORD * after : _WORD * first + size] = params
        self._point()

    def _point(self) -> None:
        """Make what the driver is given of each launch: the address of a row of these."""
        start, of_sizes = self.words.ctypes.data, self._sizes.ctypes.data
        rows = [
            (_BUFFER, start + _WORD * first, _SIZE, of_sizes + _WORD * number, _END)
            for number, first in enumerate(self._firsts)
        ]
        self._extra = np.array(rows, np.uint64)
        of_extra = self._extra.ctypes.data
        self.extra = [of_extra + _WORD * 5 * number for number in range(len(rows))]

    def copy(self) -> Arguments:
        """The same in a place of its own."""
        other = copy(self)
        other.words = self.words.copy()
        other._point()
        return other


class Replay:
    """A program that a device can run."""

    def __init__(self, device: Any, program: Program) -> None:
        self.device = device
        self.results = [(view.shape, view.dtype) for view in program.results]
        self.names = program.names
        launches = [step for step in program.steps if isinstance(step, Launch)]
        others = [step for step in program.steps if not isinstance(step, Launch)]
        self.products = any(isinstance(step, Product) for step in others)
        # What the driver is told of launches, and what else there is to do, in order
        self.steps = [
            device.sizes(step) if isinstance(step, Launch) else step for step in program.steps
        ]
        self._place(program)
        views = [view for step in (*launches, *others) for view in step.arrays]
        wheres = np.array([self._where(view) for view in views], np.uint64).reshape(-1, 2)
        self.which, self.offsets = wheres[:, 0].astype(np.intp), wheres[:, 1].copy()
        self.arguments = Arguments(launches)
        self.places = np.array(self.arguments.places, np.intp)
        self._frames: list[_Frame] = []  # of which every thread takes one

    def _place(self, program: Program) -> None:
        """Find the base and the offset of each slot: of arguments, of results, in the workspace.

        Base 0 is for arrays that are not there.
        """
        results = [view.slot for view in program.results]
        lives, sizes = program.lives(), {}
        for number, slot in enumerate(program.slots):
            if number >= program.given and number not in results and number in lives:
                sizes[number] = slot.nbytes
        of_cublas = len(program.slots)
        if self.products:
            among = [n for n, step in enumerate(program.steps) if isinstance(step, Product)]
            lives[of_cublas] = among[0], among[-1]
            sizes[of_cublas] = self.device.cublas.workspace_bytes
        self._starts, self.workspace_bytes = places(lives, sizes)
        self.of_cublas = self._starts.get(of_cublas, 0)
        self.workspace = 1 + program.given + len(results)
        self._bases = {slot: 1 + slot for slot in range(program.given)}
        self._bases.update({slot: 1 + program.given + n for n, slot in enumerate(results)})

    def _where(self, view: View | None) -> tuple[int, int]:
        """Base and offset of a view."""
        if view is None:
            return 0, 0
        base = self._bases.get(view.slot, self.workspace)
        return base, self._starts.get(view.slot, 0) + view.offset

    def __call__(self, arrays: tuple[Any, ...], addresses: list[int]) -> Any:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(self)
        try:
            return frame.run(self, addresses)
        finally:
            self._frames.append(frame)


class _Frame:
    """The memory that one call of a program at a time needs on the host.

    It does not know its program, which would then wait for the garbage collector.
    """

    def __init__(self, replay: Replay) -> None:
        self._arguments = replay.arguments.copy()
        self._bases = np.zeros(replay.workspace + 1, np.uint64)
        self._addresses = np.zeros(replay.which.size, np.uint64)
        self._handle = ctypes.c_void_p()
        self._launch = replay.device.cuda.driver.launchKernel
        self._steps = self._started(replay)

    def _started(self, replay: Replay) -> list[Any]:
        """For each step the arguments of `_launch` before and after the stream, or a function."""
        extra = iter(self._arguments.extra)
        rest = iter(range(replay.places.size, self._addresses.size))
        steps: list[Any] = []
        for step in replay.steps:
            if isinstance(step, (Product, Copy, Zero)):
                places = [_WORD * next(rest) for _ in step.arrays]
                at = [ctypes.c_void_p.from_buffer(self._addresses, place) for place in places]
                steps.append(self._function(replay.device, step, at))
            else:
                steps.append((step, next(extra)))
        return steps

    def _function(
        self, device: Any, step: Product | Copy | Zero, at: list[Any]
    ) -> Callable[[int], None]:
        if isinstance(step, Product):
            arguments = device.cublas.arguments(step, self._handle, *at)
            return lambda stream: device.cublas.multiply(arguments)
        runtime, size = device.cuda.runtime, step.arrays[0].nbytes
        if isinstance(step, Zero):
            return lambda stream: runtime.memsetAsync(at[0].value, 0, size, stream)
        kind = runtime.memcpyDeviceToDevice
        return lambda stream: runtime.memcpyAsync(at[1].value, at[0].value, size, kind, stream)

    def run(self, replay: Replay, given: list[int]) -> Any:
        """Compute with arguments at these addresses, on the current device and stream."""
        device = replay.device
        results = [device.empty(shape, dtype) for shape, dtype in replay.results]
        workspace, start = None, 0
        if replay.workspace_bytes:
            workspace = device.cuda.alloc(replay.workspace_bytes)
            start = workspace.ptr
        self._bases[:] = [0, *given, *map(address, results), start]
        addresses = self._addresses
        np.take(self._bases, replay.which, out=addresses, mode="clip")
        np.add(addresses, replay.offsets, out=addresses)
        self._arguments.words[replay.places] = addresses[: replay.places.size]
        stream = device.stream()
        if replay.products:
            self._handle.value = handle = device.cublas_handle()
            with device.cublas.products(handle, stream, start + replay.of_cublas):
                self._start(stream)
        else:
            self._start(stream)
        if replay.names is None:
            return tuple(results)
        return dict(zip(replay.names, results, strict=True))

    def _start(self, stream: int) -> None:
        launch = self._launch
        for step in self._steps:
            if type(step) is tuple:
                launch(*step[0], stream, 0, step[1])
            else:
                step(stream)
