"""A program on a device of CuPy's: what a call of it takes is made once.

A call then allocates the results and one workspace, writes the addresses of arrays where the driver
and cuBLAS read them, and starts one step after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from cudeform.cuda.program import Copy, Launch, Product, Program, View, Zero, address, places

__all__ = ["Arguments", "Replay"]

# CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE and _END of the driver's headers
_BUFFER, _SIZE, _END = 1, 2, 0
_WORD = 8  # bytes of an address


class Arguments:
    """Room for the arguments of launches, as the driver takes them: addresses, then Params."""

    def __init__(self, sizes: list[int]) -> None:
        """Of launches whose arguments have so many bytes."""
        self.firsts = np.cumsum([0, *[-(-size // _WORD) for size in sizes]]).tolist()
        self.words = np.zeros(self.firsts[-1], np.uint64)
        self.bytes = memoryview(self.words).cast("B") if self.words.size else b""
        self.sizes = np.array(sizes, np.uint64)
        start, of_sizes = self.words.ctypes.data, self.sizes.ctypes.data
        rows = [
            (_BUFFER, start + _WORD * first, _SIZE, of_sizes + _WORD * number, _END)
            for number, first in enumerate(self.firsts[:-1])
        ]
        self._extra = np.array(rows, np.uint64)
        of_extra = self._extra.ctypes.data
        self.extra = [of_extra + number * self._extra.strides[0] for number in range(len(rows))]


class Replay:
    """A program that a device can run."""

    def __init__(self, device: Any, program: Program) -> None:
        self.device = device
        self.program = program
        self.launches = [step for step in program.steps if isinstance(step, Launch)]
        self.functions = [device.function(s.unit, s.kernel, s.shared_bytes) for s in self.launches]
        self.products = any(isinstance(step, Product) for step in program.steps)
        self._place()
        self._frames: list[_Frame] = []  # of which every thread takes one

    def _place(self) -> None:
        """Find the base and the offset of each slot: of arguments, of results, in the workspace.

        Base 0 is for arrays that are not there.
        """
        program = self.program
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
        starts, self.workspace_bytes = places(lives, sizes)
        self.bases = {slot: 1 + slot for slot in range(program.given)}
        self.bases.update({slot: 1 + program.given + n for n, slot in enumerate(results)})
        self.workspace = 1 + program.given + len(results)
        self.bases.update(dict.fromkeys(starts, self.workspace))
        self.offsets = starts
        self.of_cublas = starts.get(of_cublas, 0)

    def where(self, view: View | None) -> tuple[int, int]:
        """Base and offset of a view."""
        if view is None:
            return 0, 0
        return self.bases[view.slot], self.offsets.get(view.slot, 0) + view.offset

    def __call__(self, arrays: tuple[Any, ...], addresses: list[int]) -> Any:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(self)
        try:
            return frame.run(addresses)
        finally:
            self._frames.append(frame)


class _Frame:
    """The memory that one call of a program at a time needs on the host."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        launches, program = replay.launches, replay.program
        self._arguments = Arguments([_WORD * len(s.arrays) + s.params.nbytes for s in launches])
        wheres: list[tuple[int, int]] = []  # of every address in `_addresses`
        places: list[int] = []  # of those of launches, in the words of `_arguments`
        for launch, first in zip(launches, self._arguments.firsts, strict=False):
            after = first + len(launch.arrays)
            places += range(first, after)
            wheres += map(replay.where, launch.arrays)
            start = _WORD * after
            self._arguments.bytes[start : start + launch.params.nbytes] = launch.params.tobytes()
        self._places = np.array(places, np.intp)
        others = [s for s in program.steps if not isinstance(s, Launch)]
        for step in others:
            wheres += map(replay.where, step.arrays)
        self._bases = np.zeros(replay.workspace + 1, np.uint64)
        self._which = np.array([base for base, _ in wheres], np.intp)
        self._offsets = np.array([offset for _, offset in wheres], np.uint64)
        self._addresses = np.zeros(len(wheres), np.uint64)
        self._handle = ctypes.c_void_p()
        self._steps = self._started()

    def _started(self) -> list[Callable[[int], None]]:
        """A function of the stream for each step."""
        replay, cuda = self._replay, self._replay.device.cuda
        launches = iter(zip(replay.functions, self._arguments.extra, strict=True))
        rest = iter(range(self._places.size, self._addresses.size))
        steps = []
        for step in replay.program.steps:
            if isinstance(step, Launch):
                steps.append(_launch(cuda.driver.launchKernel, step, *next(launches)))
                continue
            at = [
                ctypes.c_void_p.from_buffer(self._addresses, _WORD * next(rest))
                for _ in step.arrays
            ]
            if isinstance(step, Product):
                steps.append(_multiply(replay.device.cublas, step, self._handle, at))
            else:
                steps.append(_move(cuda.runtime, step, at))
        return steps

    def run(self, given: list[int]) -> Any:
        """Compute with arguments at these addresses, on the current device and stream."""
        replay, device = self._replay, self._replay.device
        results = [device.empty(view.shape, view.dtype) for view in replay.program.results]
        workspace, start = None, 0
        if replay.workspace_bytes:
            workspace = device.cuda.alloc(replay.workspace_bytes)
            start = workspace.ptr
        self._bases[:] = [0, *given, *map(address, results), start]
        addresses = self._addresses
        np.take(self._bases, self._which, out=addresses, mode="clip")
        np.add(addresses, self._offsets, out=addresses)
        self._arguments.words[self._places] = addresses[: self._places.size]
        stream = device.stream()
        if replay.products:
            self._handle.value = handle = device.cublas_handle()
            with device.cublas.products(handle, stream, start + replay.of_cublas):
                self._start(stream)
        else:
            self._start(stream)
        return replay.program.returned(results)

    def _start(self, stream: int) -> None:
        for step in self._steps:
            step(stream)


def _launch(launch: Any, step: Launch, function: int, extra: int) -> Callable[[int], None]:
    size = (step.grid, 1, 1, step.block, 1, 1, step.shared_bytes)
    return lambda stream: launch(function, *size, stream, 0, extra)


def _multiply(cublas: Any, step: Product, handle: Any, at: list[Any]) -> Callable[[int], None]:
    arguments = cublas.arguments(step, handle, *at)
    return lambda stream: cublas.multiply(arguments)


def _move(runtime: Any, step: Copy | Zero, at: list[Any]) -> Callable[[int], None]:
    size = step.arrays[0].nbytes
    if isinstance(step, Zero):
        return lambda stream: runtime.memsetAsync(at[0].value, 0, size, stream)
    device = runtime.memcpyDeviceToDevice
    return lambda stream: runtime.memcpyAsync(at[1].value, at[0].value, size, device, stream)
