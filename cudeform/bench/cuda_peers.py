"""The contenders on a GPU: CuPy arrays here, torchvision's CUDA operators there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform.bench.workload import BINS, SCALE, Convolution, Workload

__all__ = ["Contender", "exact", "ours", "torchvision"]

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One implementation, set up with several copies of the same arguments."""

    calls: list[Callable[[], Any]]  # one for each copy
    result: Callable[[], list[np.ndarray]]  # the output, or the gradients, in NCHW
    capture: Callable[[Callable[[], Any]], Callable[[], Any]]  # a call -> the replay of its graph


def exact(cupy: Any, work: Workload, host: Arrays, backward: bool) -> list[np.ndarray]:
    """What the rounded arguments give in float64, which the self-test compares with the CPU."""
    arrays = {name: cupy.asarray(array.astype(np.float64)) for name, array in host.items()}
    return [cupy.asnumpy(array) for array in work.call(arrays, backward)()]


def ours(
    cupy: Any,
    work: Workload,
    host: Arrays,
    backward: bool,
    copies: int,
    **options: str,
) -> Contender:
    last = options.get("layout") == "NHWC"
    if last:
        host = {
            name: np.ascontiguousarray(np.moveaxis(array, 1, -1))
            if _is_image(name, array)
            else array
            for name, array in host.items()
        }
    inputs = [{name: _copied(cupy, name, a) for name, a in host.items()} for _ in range(copies)]
    calls = [work.call(arrays, backward, **options) for arrays in inputs]

    def result() -> list[np.ndarray]:
        names = work.gradients if backward else ("output",)
        arrays = zip(names, map(cupy.asnumpy, calls[0]()), strict=False)
        return [
            np.moveaxis(array, -1, 1) if last and _is_image(name, array) else array
            for name, array in arrays
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


def _is_image(name: str, array: np.ndarray) -> bool:
    return array.ndim == 4 and name != "weight"


def _copied(cupy: Any, name: str, array: np.ndarray) -> Any:
    """A copy on the GPU; boxes image by image, as their indices need no look from the host then."""
    if name != "boxes":
        return cupy.asarray(array)
    ends = np.flatnonzero(np.diff(array[:, 0])) + 1
    return [cupy.asarray(np.ascontiguousarray(part[:, 1:])) for part in np.split(array, ends)]


def torchvision(
    work: Workload, host: Arrays, backward: bool, copies: int, dtype: str, precision: str
) -> Contender:
    """torchvision's kernels without autograd around them."""
    import torch
    import torchvision  # noqa: F401  registers its operators

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    float32 = {name: torch.from_numpy(a.astype(np.float32)) for name, a in host.items()}
    inputs = [
        {name: t.to("cuda", getattr(torch, dtype)) for name, t in float32.items()}
        for _ in range(copies)
    ]
    set_up = _convolution if isinstance(work, Convolution) else _pooling
    calls = [set_up(torch.ops.torchvision, work, arrays, backward) for arrays in inputs]

    def result() -> list[np.ndarray]:
        return [tensor.float().cpu().numpy() for tensor in calls[0]()]

    def capture(call: Callable[[], Any]) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
        return lambda: (graph.replay(), kept)

    return Contender(calls, result, capture)


def _convolution(
    operators: Any, work: Workload, t: Arrays, backward: bool
) -> Callable[[], tuple[Any, ...]]:
    # stride, padding, dilation along y and x, weight groups, offset groups, with a mask
    settings = (1, 1, 1, 1, 1, 1, 1, 1, True)
    given = [t[name] for name in ("input", "weight", "offset", "mask", "bias")]
    if not backward:
        return lambda: (operators.deform_conv2d(*given, *settings),)

    def call() -> tuple[Any, ...]:
        image, weight, offset, mask, bias = operators._deform_conv2d_backward(
            t["grad_output"], *given, *settings
        )
        return image, offset, weight, bias, mask

    return call


def _pooling(
    operators: Any, work: Workload, t: Arrays, backward: bool
) -> Callable[[], tuple[Any, ...]]:
    forward = getattr(operators, work.operator)
    boxes, bins = t["boxes"], (SCALE, BINS, BINS)
    ratio = [work.options.get("sampling_ratio", -1)] if work.operator.endswith("align") else []
    if work.operator == "roi_align":
        if not backward:
            return lambda: (forward(t["input"], boxes, *bins, *ratio, False),)
        kept, more = [], [*t["input"].shape, *ratio, False]
    else:
        if not backward:
            return lambda: forward(t["input"], boxes, *bins, *ratio)[:1]
        kept = [forward(t["input"], boxes, *bins, *ratio)[1]]  # which pixels, or which channels
        more = [*ratio, *t["input"].shape]
    gradient = getattr(operators, f"_{work.operator}_backward")
    return lambda: (gradient(t["grad_output"], boxes, *kept, *bins, *more),)
