"""An operator on the buffers of a running XLA program: no copies of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from cudeform.cuda.device import load_cupy, stream_at

_CPU = 1  # kDLCPU of dlpack.h


def compute(
    function: Callable[..., tuple[Any, ...]],
    results: list[jax.ShapeDtypeStruct],
    arrays: Sequence[Any],
) -> list[Any]:
    """Call `function` on views of `arrays`, NumPy's or CuPy's, when the program runs.

    `results` are the shapes and dtypes of the tuple that it returns.
    """

    def callback(context: Any, outputs: Any, *inputs: Any) -> None:
        device_type, ordinal = outputs[0].__dlpack_device__()
        if device_type == _CPU:
            _on_cpu(function, outputs, inputs)
        else:
            _on_gpu(function, context.stream, ordinal, outputs, inputs)

    return buffer_callback(callback, results)(*arrays) if results else []


def _on_cpu(function: Callable[..., Any], outputs: Any, inputs: Any) -> None:
    views = [np.asarray(buffer) for buffer in inputs]
    for view in views:
        view.flags.writeable = False  # other values of the program may share this memory
    for buffer, result in zip(outputs, function(*views), strict=True):
        np.copyto(np.asarray(buffer), result)


def _on_gpu(
    function: Callable[..., Any], stream: int, ordinal: int, outputs: Any, inputs: Any
) -> None:
    """On XLA's own stream: the kernels stand in line there, so nothing waits."""
    cupy = load_cupy()
    with cupy.cuda.Device(ordinal), stream_at(cupy, stream, ordinal):
        views = [cupy.from_dlpack(buffer) for buffer in inputs]
        for buffer, result in zip(outputs, function(*views), strict=True):
            cupy.from_dlpack(buffer)[...] = result
