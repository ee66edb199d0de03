"""Tensors as arrays and back, without a copy: NumPy's on the CPU, CuPy's on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cudeform import checks
from cudeform.arrays import DTYPES
from cudeform.cuda.device import load_cupy, stream_at
from cudeform.torch import host, recorded
from cudeform.torch.asked import Asked, asked, host_array, numpy_dtype
from cudeform.torch.recorded import torch_dtype
from cudeform.torch.state import raw_stream, settled

__all__ = [
    "check_dense",
    "compute",
    "direct",
    "host_array",
    "numpy_dtype",
    "to_array",
    "to_tensor",
]


def check_dense(op: str, tensors: Mapping[str, Any]) -> None:
    """All tensors of numbers side by side, of a dtype that operators compute in."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided:
            got = str(tensor.dtype if tensor.is_quantized else tensor.layout)
            got = "nested" if tensor.is_nested else got.removeprefix("torch.")
            checks.fail(op, name, "to be a dense tensor of numbers", got, error=TypeError)
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            expected = "of dtype " + ", ".join(DTYPES)
            checks.fail(op, name, expected, tensor.dtype, error=TypeError)


def to_array(tensor: torch.Tensor) -> Any:
    """The tensor's memory as a read-only NumPy array, or as a CuPy array."""
    tensor = settled(tensor)
    if tensor.is_cpu:
        return host_array(tensor)
    if not tensor.is_cuda:
        return load_cupy().from_dlpack(tensor.detach())
    return _device_array(tensor)


def _device_array(tensor: torch.Tensor) -> Any:
    """The same on a GPU, at a tenth of the time of DLPack, which asks who computes on what stream.

    It is the same one here: see `_on_gpu`.
    """
    cupy, dtype = load_cupy(), numpy_dtype(tensor.dtype)
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), tensor.nbytes, tensor, tensor.get_device())
    start = cupy.cuda.MemoryPointer(memory, 0)
    strides = tuple([step * dtype.itemsize for step in tensor.stride()])
    return cupy.ndarray(tuple(tensor.shape), dtype, start, strides)


def to_tensor(array: Any) -> Any:
    """The array's memory as a tensor; None stays None."""
    if array is None:
        return None
    if not isinstance(array, np.ndarray):
        return _device_tensor(array)
    if array.dtype.kind == "V":  # no dtype of NumPy's own
        return to_tensor(array.view(np.uint16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except ValueError:  # strides that no tensor has
        return torch.from_numpy(array.copy())


def _device_tensor(array: Any) -> torch.Tensor:
    """The memory of an array on a GPU, which is torch's own where `_allocator` gave it."""
    storage = getattr(array.data.mem, "_owner", None)
    if not isinstance(storage, torch.UntypedStorage):
        return torch.from_dlpack(array)
    dtype = torch_dtype(array.dtype)
    first = (array.data.ptr - storage.data_ptr()) // array.itemsize
    steps = [step // array.itemsize for step in array.strides]
    # No view of another tensor: autograd would refuse to write to those.
    return torch.empty(0, dtype=dtype, device=storage.device).set_(
        storage, first, array.shape, steps
    )


def compute(
    function: Callable[..., Any], tensors: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """What a function of arrays makes of tensors: a tensor, None, or a tuple of these.

    The first tensor is there, and the others, or None, are on its device. An array that is an
    option is the None of a tensor.
    """
    given = {**tensors, **options}
    call = asked(function, given)
    if call is not None:
        return direct(call)
    first = next(iter(tensors.values()))
    if first.is_cpu:
        return _as_tensors(function(**_as_arrays(function, given, to_array)))
    return _on_gpu(function, given, first.device.index, to_array)


def direct(call: Asked) -> Any:
    """The same of a call whose tensors are at one place: what was computed before is not checked
    again, and on a GPU it is started again.
    """
    if call.place < 0:
        return _as_tensors(host.answer(call))
    found = None if call.key is None else recorded.replay(call)
    if found is not None:
        return found[0]
    return _on_gpu(call.function, call.arguments, call.place, _device_array, call)


def _on_gpu(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    index: int,
    array: Callable[[torch.Tensor], Any],
    call: Asked | None = None,
) -> Any:
    """The same with CuPy, on torch's device and stream, in its memory: nothing waits or is copied.

    The allocator is this thread's alone, and autograd has threads of its own: it is set in every
    call.
    """
    cupy = load_cupy()
    with (
        cupy.cuda.Device(index),
        stream_at(cupy, raw_stream(index), index),
        cupy.cuda.using_allocator(_allocator(index)),
    ):
        arrays = _as_arrays(function, given, array)
        result = function(**arrays)
        if call is not None and call.key is not None:
            recorded.record(call, arrays, result)
        return _as_tensors(result)


def _as_arrays(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    array: Callable[[torch.Tensor], Any],
) -> dict[str, Any]:
    arguments = dict(given)
    failure = None
    try:
        for name, value in given.items():
            if isinstance(value, torch.Tensor):
                arguments[name] = array(value)
    except (BufferError, RuntimeError, TypeError) as error:
        failure = error
    if failure is not None:
        check_dense(function.__name__, given)
        raise failure
    return arguments


def _as_tensors(result: Any) -> Any:
    if not isinstance(result, tuple):
        return to_tensor(result)
    found = [to_tensor(array) for array in result]
    return type(result)(*found) if hasattr(result, "_fields") else tuple(found)


@functools.lru_cache(maxsize=64)
def _allocator(index: int) -> Callable[[int], Any]:
    """Memory of torch's, for its current stream on a device."""
    cuda, device = load_cupy().cuda, torch.device("cuda", index)

    def allocate(size: int) -> Any:
        storage = torch.UntypedStorage(size, device=device)
        memory = cuda.UnownedMemory(storage.data_ptr(), size, storage, index)
        return cuda.MemoryPointer(memory, 0)

    return allocate
