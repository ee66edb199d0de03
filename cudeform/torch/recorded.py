"""Calls on a GPU that were recorded, from tensors to kernels without an array in between.

What a call starts follows from its options, and from the shape, the dtype and the place on the grid
of vectors of each tensor: see `cudeform.cuda.recorded`. So a call like one before needs no more
than the addresses of its tensors, and memory for its results.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from cudeform.arrays import dtype_name
from cudeform.cuda.device import device_of
from cudeform.cuda.program import Known, Program, Programs
from cudeform.cuda.replay import Replay
from cudeform.ops.call import implementation
from cudeform.torch.asked import Asked
from cudeform.torch.state import raw_stream

_devices: dict[int, _Device] = {}  # by the number of the GPU


class _Recorded(NamedTuple):
    """What becomes of the addresses of a call."""

    run: Replay
    names: tuple[str | None, ...]  # of the program's arguments, None for what is not there
    several: type | None  # results: a tuple, or the named one of gradients; None for one


@functools.lru_cache(maxsize=64)
def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The torch dtype that stands for a NumPy one."""
    return getattr(torch, dtype_name(dtype))


def replay(call: Asked) -> tuple[Any] | None:
    """What a call on a GPU returns, in a tuple; None where it is still to be computed."""
    index, device = call.place, _devices.get(call.place)
    known = None if device is None else device.programs.get(call.key)
    if known is None or known.run is None:
        return None
    run, names, several = known.run
    addresses = [0 if name is None else call.arguments[name].data_ptr() for name in names]
    cuda = run.device.cuda
    if cuda.runtime.getDevice() == index:
        found = run((), addresses)
    else:
        with cuda.Device(index):
            found = run((), addresses)
    if several is None:
        return (found[0].tensor,)
    if several is tuple:
        return (tuple([array.tensor for array in found]),)
    return (several(*[found[n].tensor if n in found else None for n in several._fields]),)


def record(call: Asked, arrays: Mapping[str, Any], result: Any) -> None:
    """Remember a call that was computed with these arrays, and had this result."""
    index, device = call.place, _devices.get(call.place)
    if device is None:
        with device_of(next(a for a in arrays.values() if hasattr(a, "device"))) as of_cupy:
            device = _devices.setdefault(index, _Device(of_cupy, index))
    if device.programs.get(call.key) is None:
        device.programs.keep(call.key, _recorded(device, call, arrays, result))


def _recorded(device: _Device, asked: Asked, arrays: Mapping[str, Any], result: Any) -> Known:
    call, given, several = asked.checked(arrays, result)

    def compute(module: Any, **arrays: Any) -> Any:
        if several in (None, tuple):
            return module.forward(call.plan, **arrays)
        return call.gradients(module, arrays)

    known = implementation(call.kind, call.plan.family).record(device, compute, given)
    if known.run is None:
        return known
    names = tuple([None if array is None else name for name, array in given.items()])
    return Known(_Recorded(known.run, names, several), known.steps)


class _Device:
    """A GPU of CuPy's whose memory and whose stream are torch's, and what is known of its calls."""

    def __init__(self, device: Any, index: int) -> None:
        self.programs = Programs()
        self._of_cupy, self._threads = device, threading.local()
        self._where = torch.device("cuda", index)
        cuda = device.cuda
        kept = {name: getattr(cuda, name) for name in ("Device", "driver", "runtime")}
        self.cuda = SimpleNamespace(alloc=self._alloc, **kept)

    def __getattr__(self, name: str) -> Any:
        """What is CuPy's, asked for once."""
        found = getattr(self._of_cupy, name)
        setattr(self, name, found)
        return found

    def empty(self, shape: Iterable[int], dtype: np.dtype) -> Any:
        tensor = torch.empty(shape, dtype=torch_dtype(dtype), device=self._where)
        return SimpleNamespace(tensor=tensor, data=SimpleNamespace(ptr=tensor.data_ptr()))

    def _alloc(self, size: int) -> Any:
        storage = torch.UntypedStorage(size, device=self._where)
        return SimpleNamespace(storage=storage, ptr=storage.data_ptr())

    def stream(self) -> int:
        if not hasattr(self._threads, "known"):
            self._threads.known = self._of_cupy.stream()  # makes the device's context the thread's
        return raw_stream(self._where.index)

    def prepare(self, program: Program) -> Replay:
        return Replay(self, program)
