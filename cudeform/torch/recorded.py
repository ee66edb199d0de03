"""Calls on a GPU that were recorded, from tensors to kernels without an array in between.

What a call starts follows from its options, and from the shape, the dtype and the place on the grid
of vectors of each tensor: see `cudeform.cuda.recorded`. So a call like one before needs no more
than the addresses of its tensors, and memory for its results.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from cudeform.arrays import dtype_name
from cudeform.cuda.device import device_of
from cudeform.cuda.lanes import VECTOR_BYTES
from cudeform.cuda.program import Known, Program, Programs
from cudeform.cuda.replay import Replay
from cudeform.ops.call import checked, implementation
from cudeform.plans import ARGUMENTS, TYPES, known_options
from cudeform.torch.autocast import wide
from cudeform.torch.state import PLAIN, raw_stream

__all__ = ["Asked", "asked", "record", "replay", "torch_dtype"]

_devices: dict[int, _Device] = {}  # by the number of the GPU


class Asked(NamedTuple):
    """A call as it may have been recorded."""

    key: Any
    addresses: list[int]  # of the arguments, 0 for what is no tensor, and one 0 more
    arguments: dict[str, Any]  # their tensors without gaps


class _Recorded(NamedTuple):
    """What becomes of the addresses of a call."""

    run: Replay
    order: tuple[int, ...]  # of the program's arguments among those of the call
    kind: type | None  # of several results: a tuple, the named one of gradients; None for one


@functools.lru_cache(maxsize=64)
def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The torch dtype that stands for a NumPy one."""
    return getattr(torch, dtype_name(dtype))


def asked(function: Callable[..., Any], given: Mapping[str, Any]) -> Asked | None:
    """What a call of a function is known by; None where it is not to be recorded."""
    roles = ARGUMENTS.get(function.__name__)
    if roles is None:
        return None
    key: list[Any] = [function, *given]
    addresses, arguments = [], dict(given)
    for name, value in given.items():
        of, place = type(value), 0
        if of in PLAIN:
            if value.is_cpu:  # sizes of levels, which are looked at
                return None
            if name == roles.boxes and value.dtype == given[roles.images].dtype:
                arguments[name] = value = wide(value)  # as the operator would; others are refused
            if not value.is_contiguous():
                arguments[name] = value = value.contiguous()
            place = value.data_ptr()
            key += value.shape, value.dtype, place % VECTOR_BYTES
        elif of in TYPES:
            key += of, value
        else:
            known = known_options((value,))
            if known is None:
                return None
            key += known
        addresses.append(place)
    addresses.append(0)
    return Asked(tuple(key), addresses, arguments)


def replay(index: int, call: Asked) -> tuple[Any] | None:
    """What a call on a GPU returns, in a tuple; None where it is still to be computed."""
    device = _devices.get(index)
    known = None if device is None else device.programs.get(call.key)
    if known is None or known.run is None:
        return None
    run, order, kind = known.run
    addresses, cuda = [call.addresses[place] for place in order], run.device.cuda
    if cuda.runtime.getDevice() == index:
        found = run((), addresses)
    else:
        with cuda.Device(index):
            found = run((), addresses)
    if kind is None:
        return (found[0].tensor,)
    if kind is tuple:
        return (tuple([array.tensor for array in found]),)
    return (kind(*[found[n].tensor if n in found else None for n in kind._fields]),)


def record(
    index: int, call: Asked, function: Callable[..., Any], arrays: Mapping[str, Any], result: Any
) -> None:
    """Remember a call that was computed with these arrays, and had this result."""
    device = _devices.get(index)
    if device is None:
        with device_of(next(a for a in arrays.values() if hasattr(a, "device"))) as of_cupy:
            device = _devices.setdefault(index, _Device(of_cupy, index))
    if device.programs.get(call.key) is None:
        kind = type(result) if isinstance(result, tuple) else None
        device.programs.keep(call.key, _recorded(device, call, function, arrays, kind))


def _recorded(
    device: _Device,
    asked: Asked,
    function: Callable[..., Any],
    arrays: Mapping[str, Any],
    kind: Any,
) -> Known:
    parameters = inspect.signature(function).parameters
    arguments = {name: arrays.get(name, p.default) for name, p in parameters.items()}
    fields = getattr(kind, "_fields", ())
    call, given = checked(function.__name__, arguments, fields)

    def compute(module: Any, **arrays: Any) -> Any:
        return call.gradients(module, arrays) if fields else module.forward(call.plan, **arrays)

    known = implementation(call.kind, call.plan.family).record(device, compute, given)
    if known.run is None:
        return known
    names = list(asked.arguments)
    order = tuple(names.index(name) if name in names else -1 for name in given)
    return Known(_Recorded(known.run, order, kind), known.steps)


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
