"""A contender on a GPU: calls on CuPy arrays for us, on tensors for another library's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform.bench.workload import Workload

Arrays = dict[str, Any]
Call = Callable[[], Any]
SetUp = Callable[[Arrays], Call]  # makes a call of the tensors by their names
Peer = Callable[[Workload, bool], SetUp]  # of a workload, forward or backward


@dataclass(frozen=True)
class Contender:
    """One implementation, set up with several copies of the same arguments."""

    calls: list[Call]  # one for each copy: it returns the output, or the gradients
    on_host: Callable[[Iterable[Any]], list[np.ndarray]]  # these in NCHW
    capture: Callable[[Call], Call] | None  # replays a call as a graph; None: there are none


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

    def capture(call: Call) -> Call:
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

        def replay(pool: Any = pool) -> Any:  # which has to be there as long
            graph.launch()
            return kept

        return replay

    return Contender(calls, on_host, capture)


def _is_image(name: str, array: np.ndarray) -> bool:
    return array.ndim == 4 and name != "weight"


def _copied(cupy: Any, name: str, array: np.ndarray) -> Any:
    """A copy on the GPU; boxes image by image, as their indices need no look from the host then."""
    if name != "boxes":
        return cupy.asarray(array)
    ends = np.flatnonzero(np.diff(array[:, 0])) + 1
    return [cupy.asarray(np.ascontiguousarray(part[:, 1:])) for part in np.split(array, ends)]


def of_torch(
    peer: Peer,
    work: Workload,
    host: Arrays,
    backward: bool,
    copies: int,
    dtype: str,
    precision: str,
    graphs: bool = True,
) -> Contender:
    """A peer's calls on tensors, one for each copy of the arguments."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    set_up = peer(work, backward)
    float32 = {name: torch.from_numpy(a.astype(np.float32)) for name, a in host.items()}
    inputs = [
        {name: t.to("cuda", getattr(torch, dtype)) for name, t in float32.items()}
        for _ in range(copies)
    ]
    calls = [set_up(tensors) for tensors in inputs]

    def on_host(tensors: Iterable[Any]) -> list[np.ndarray]:
        return [tensor.detach().float().cpu().numpy() for tensor in tensors]

    def capture(call: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()

        def replay() -> Any:
            graph.replay()
            return kept

        return replay

    return Contender(calls, on_host, capture if graphs else None)
