"""The contenders on a GPU: CuPy arrays here, kernels of other libraries on tensors there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform.bench.workload import BINS, SCALE, Convolution, Workload

__all__ = [
    "Contender",
    "Replay",
    "deformops",
    "exact",
    "kernel_hub",
    "levels",
    "of_torch",
    "ours",
    "torchvision",
]

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Replay:
    """A captured call."""

    launch: Callable[[], Any]
    result: Callable[[], list[np.ndarray]]  # after a launch of its own, in NCHW


@dataclass(frozen=True)
class Contender:
    """One implementation, set up with several copies of the same arguments."""

    calls: list[Callable[[], Any]]  # one for each copy
    result: Callable[[], list[np.ndarray]]  # the output, or the gradients, in NCHW
    capture: Callable[[Callable[[], Any]], Replay] | None  # or None where there are no graphs


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

    def on_host(arrays: Iterable[Any]) -> list[np.ndarray]:
        names = work.gradients if backward else ("output",)
        return [
            np.moveaxis(array, -1, 1) if last and _is_image(name, array) else array
            for name, array in zip(names, map(cupy.asnumpy, arrays), strict=False)
        ]

    def capture(call: Callable[[], Any]) -> Replay:
        """In memory that nothing else is given, as a graph writes to it in every replay."""
        stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
        with stream, cupy.cuda.using_allocator(pool.malloc):
            call()  # compiles, and fills the pool
            stream.synchronize()
            stream.begin_capture()
            try:
                kept = call()
            finally:
                graph = stream.end_capture()

        def result() -> list[np.ndarray]:
            graph.launch()
            return on_host(kept)

        return Replay(lambda: (graph.launch(), kept, pool), result)

    return Contender(calls, lambda: on_host(calls[0]()), capture)


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
    set_up = _convolution if isinstance(work, Convolution) else _pooling
    return of_torch(host, copies, dtype, lambda t: set_up(torch.ops.torchvision, work, t, backward))


def deformops(
    work: Workload, host: Arrays, backward: bool, copies: int, dtype: str, precision: str
) -> Contender:
    """Its functions of tensors, which choose a backend, and their derivatives by autograd."""
    if isinstance(work, Convolution):
        from deformops.integrations.torchvision import deform_conv2d

        def function(t: Arrays) -> Any:
            given = (t[name] for name in ("input", "offset", "weight", "bias"))
            return deform_conv2d(*given, padding=(1, 1), mask=t["mask"])

    else:
        from deformops.registry import msda

        def function(t: Arrays) -> Any:
            given = (t["value"], *levels(work), t["sampling_locations"], t["attention_weights"])
            return msda(*given)

    def set_up(t: Arrays) -> Callable[[], Any]:
        import torch

        if not backward:
            return lambda: (function(t),)
        wanted = [t[name].requires_grad_() for name in work.gradients]
        output = function(t)
        return lambda: torch.autograd.grad(output, wanted, t["grad_output"], retain_graph=True)

    # Autograd's backward stays on the stream of the forward, which no capture sees.
    return of_torch(host, copies, dtype, set_up, graphs=not backward)


def kernel_hub(
    work: Workload, host: Arrays, backward: bool, copies: int, dtype: str, precision: str
) -> Contender:
    """The kernels of attention that transformers fetches for its detectors."""
    from kernels import get_kernel

    module = get_kernel("kernels-community/deformable-detr")
    step = 64  # images at a time

    def set_up(t: Arrays) -> Callable[[], Any]:
        given = (t["value"], *levels(work), t["sampling_locations"], t["attention_weights"])
        if not backward:
            return lambda: (module.ms_deform_attn_forward(*given, step),)
        return lambda: module.ms_deform_attn_backward(*given, t["grad_output"], step)

    return of_torch(host, copies, dtype, set_up)


def levels(work: Workload) -> tuple[Any, Any]:
    """Sizes of levels, and where each begins, as tensors on the GPU."""
    import torch

    sizes = np.array(work.options["spatial_shapes"])
    begins = np.cumsum([0, *sizes.prod(1)[:-1]])
    return torch.from_numpy(sizes).to("cuda"), torch.from_numpy(begins).to("cuda")


def of_torch(
    host: Arrays,
    copies: int,
    dtype: str,
    set_up: Callable[[Arrays], Callable[[], Any]],
    graphs: bool = True,
) -> Contender:
    """Calls on tensors; `set_up` makes one of the arguments by name."""
    import torch

    float32 = {name: torch.from_numpy(a.astype(np.float32)) for name, a in host.items()}
    inputs = [
        {name: t.to("cuda", getattr(torch, dtype)) for name, t in float32.items()}
        for _ in range(copies)
    ]
    calls = [set_up(tensors) for tensors in inputs]

    def on_host(tensors: Iterable[Any]) -> list[np.ndarray]:
        return [tensor.detach().float().cpu().numpy() for tensor in tensors]

    def capture(call: Callable[[], Any]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()

        def result() -> list[np.ndarray]:
            graph.replay()
            return on_host(kept)

        return Replay(lambda: (graph.replay(), kept), result)

    return Contender(calls, lambda: on_host(calls[0]()), capture if graphs else None)


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
