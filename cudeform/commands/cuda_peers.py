"""The contenders of the benchmark on a GPU: CuPy arrays here, torchvision's CUDA operator there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform import deform_conv2d, deform_conv2d_backward
from cudeform.commands.workload import GRADIENTS

__all__ = ["Contender", "exact", "ours", "torchvision"]

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One implementation, set up with several copies of the same arguments."""

    calls: list[Callable[[], Any]]  # one for each copy
    result: Callable[[], list[np.ndarray]]  # the output, or the five gradients, in NCHW
    capture: Callable[[Callable[[], Any]], Callable[[], Any]]  # a call -> the replay of its graph


def _run(arrays: Arrays, backward: bool, layout: str, precision: str) -> tuple[Any, ...]:
    options = {"padding": 1, "layout": layout, "precision": precision}
    left_out = "bias" if backward else "grad_output"
    given = {name: array for name, array in arrays.items() if name != left_out}
    if backward:
        return tuple(deform_conv2d_backward(**given, **options))
    return (deform_conv2d(**given, **options),)


def exact(cupy: Any, host: dict[str, np.ndarray], backward: bool) -> list[np.ndarray]:
    """What the rounded arguments give in float64, which the self-test compares with the CPU."""
    arrays = {name: cupy.asarray(array.astype(np.float64)) for name, array in host.items()}
    return [cupy.asnumpy(array) for array in _run(arrays, backward, "NCHW", "ieee")]


def ours(
    cupy: Any,
    host: dict[str, np.ndarray],
    backward: bool,
    copies: int,
    layout: str,
    precision: str,
) -> Contender:
    if layout == "NHWC":
        host = {
            name: np.ascontiguousarray(np.moveaxis(array, 1, -1))
            if array.ndim == 4 and name != "weight"
            else array
            for name, array in host.items()
        }
    inputs = [{name: cupy.asarray(a) for name, a in host.items()} for _ in range(copies)]
    calls = [lambda arrays=arrays: _run(arrays, backward, layout, precision) for arrays in inputs]

    def result() -> list[np.ndarray]:
        arrays = [cupy.asnumpy(array) for array in calls[0]()]
        if layout == "NCHW":
            return arrays
        names = GRADIENTS if backward else ("output",)
        return [
            np.moveaxis(array, -1, 1) if array.ndim == 4 and name != "weight" else array
            for name, array in zip(names, arrays, strict=True)
        ]

    def capture(call: Callable[[], Any]) -> Callable[[], Any]:
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            call()  # compiles, and fills this stream's memory pool
            stream.synchronize()
            stream.begin_capture()
            kept = call()
            graph = stream.end_capture()
        return lambda: (graph.launch(), kept)

    return Contender(calls, result, capture)


def torchvision(
    host: dict[str, np.ndarray], backward: bool, copies: int, dtype: str, precision: str
) -> Contender:
    """torchvision's kernels without autograd around them."""
    import torch
    import torchvision  # noqa: F401  registers its operators

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    operators = torch.ops.torchvision
    float32 = {name: torch.from_numpy(a.astype(np.float32)) for name, a in host.items()}
    inputs = [
        {name: t.to("cuda", getattr(torch, dtype)) for name, t in float32.items()}
        for _ in range(copies)
    ]
    # stride, padding, dilation along y and x, weight groups, offset groups, with a mask
    settings = (1, 1, 1, 1, 1, 1, 1, 1, True)

    def run(t: Arrays) -> tuple[Any, ...]:
        if not backward:
            return (
                operators.deform_conv2d(
                    t["input"], t["weight"], t["offset"], t["mask"], t["bias"], *settings
                ),
            )
        image, weight, offset, mask, bias = operators._deform_conv2d_backward(
            t["grad_output"],
            t["input"],
            t["weight"],
            t["offset"],
            t["mask"],
            t["bias"],
            *settings,
        )
        return image, offset, weight, bias, mask

    calls = [lambda arrays=arrays: run(arrays) for arrays in inputs]

    def result() -> list[np.ndarray]:
        return [tensor.float().cpu().numpy() for tensor in calls[0]()]

    def capture(call: Callable[[], Any]) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
        return lambda: (graph.replay(), kept)

    return Contender(calls, result, capture)
