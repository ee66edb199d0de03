"""Arrays of any other framework that speaks DLPack: computed in place, answered in kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from cudeform import checks
from cudeform.cuda.device import load_cupy

_HOST = (1, 3)  # kDLCPU and kDLCUDAHost of dlpack.h
_GPU = (2, 13)  # kDLCUDA and kDLCUDAManaged


def call(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Answer a call of an operator with NumPy or CuPy views of its arrays, by their device."""
    arrays = [value for value in given.values() if hasattr(value, "__dlpack__")]
    device_type, ordinal = arrays[0].__dlpack_device__()
    with _device(device_type, ordinal):
        result = function(**{k: _view(name, k, value) for k, value in given.items()})
        if isinstance(result, tuple):
            answers = [_like(value, arrays[0]) for value in result]
            return type(result)(*answers) if hasattr(result, "_fields") else tuple(answers)
        return _like(result, arrays[0])


def _device(device_type: int, ordinal: int) -> Any:
    """The device to compute on made current: CuPy exchanges arrays on its current stream."""
    if device_type not in _GPU:
        return nullcontext()
    cupy = load_cupy()
    return cupy.cuda.Device(ordinal)


def _view(op: str, name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        views = [_view(op, f"{name}[{i}]", item) for i, item in enumerate(value)]
        return views if isinstance(value, list) else tuple(views)
    if not hasattr(value, "__dlpack__"):
        return value
    device_type, _ = value.__dlpack_device__()
    if device_type in _HOST:
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError) as error:  # bfloat16, for one
            checks.fail(op, name, "to be an array that NumPy can view", error, error=TypeError)
    if device_type in _GPU:
        cupy = load_cupy()
        return cupy.from_dlpack(value)
    expected = "on the CPU or a CUDA device"
    checks.fail(op, name, expected, f"DLPack device type {device_type}", error=TypeError)


def _like(result: Any, array: Any) -> Any:
    """A result as an array of the caller's framework, if that takes what DLPack hands over."""
    if not hasattr(result, "__dlpack__"):
        return result
    owner = array.__array_namespace__() if hasattr(array, "__array_namespace__") else type(array)
    take = getattr(owner, "from_dlpack", None)
    return result if take is None else take(result)
