"""Microseconds of every kernel of a call on a GPU, ours and torchvision's, as JSON.

They come from CUPTI, through PyTorch's profiler, and hold nothing of what launches cost. Arguments
rotate through more copies than the L2 cache holds.

    python benchmarks/gpu_kernels.py --json benchmarks/results/gpu-kernels.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout that nobody installed will do

from cudeform.bench import cuda, peers  # noqa: E402
from cudeform.bench.cuda_contender import Contender  # noqa: E402
from cudeform.bench.workload import CUDA, Workload, cast  # noqa: E402
from cudeform.commands import machine  # noqa: E402
from cudeform.commands.dtypes import numpy_dtype  # noqa: E402

ROUNDS = 4
NAME = 90  # characters of a kernel's that are kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", required=True)
    parser.add_argument("--dtype", nargs="+", default=["float16", "float32"])
    parser.add_argument("--operator", nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=120.0, help="default: %(default)s")
    given = parser.parse_args()
    cupy, reason = machine.cupy_or_reason()
    if cupy is None:
        raise SystemExit(f"no GPU to measure: {reason}")
    until = time.monotonic() + given.seconds
    results: dict[str, Any] = {}
    content = {"machine": machine.describe(*peers.DISTRIBUTIONS), "kernels": results}
    for work in CUDA:
        if given.operator is not None and work.operator not in given.operator:
            continue
        for title, make in contenders(cupy, work, given.dtype):
            if time.monotonic() > until:
                results[title] = "left out: no time"
                continue
            results[title] = attempt(cupy, make)
            print(title, total(results[title]), flush=True)
        Path(given.json).write_text(json.dumps(content, indent=1) + "\n")
    return 0


Make = Callable[[], Contender]
MEASURED = {"cudeform": "", "cudeform NHWC": ", NHWC", "torchvision": ", torchvision"}


def contenders(cupy: Any, work: Workload, dtypes: list[str]) -> Iterator[tuple[str, Make]]:
    """What is measured of a workload, by what it is called."""
    arrays = work.arrays()
    for dtype, name in product(dtypes, cuda.PASSES):
        host = cast(arrays, numpy_dtype(dtype))
        found = cuda.contenders(cupy, work, host, name == "backward", (dtype, "ieee"))
        for peer in filter(found.get, MEASURED):
            yield f"{work.operator}, {work}, {dtype}, {name}{MEASURED[peer]}", found[peer]


def attempt(cupy: Any, make: Make) -> Any:
    """Its kernels, or why there are none."""
    try:
        return kernels(cupy, make().calls)
    except Exception as problem:  # recorded, so that the others are measured
        return f"{type(problem).__name__}: {problem}"
    finally:
        cupy.get_default_memory_pool().free_all_blocks()


def kernels(cupy: Any, calls: list[Callable[[], Any]]) -> list[tuple[str, float, float]]:
    """Of each kernel its name, launches and microseconds of a call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    device = cupy.cuda.Device()
    for call in calls:
        call()
    device.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for number in range(ROUNDS):
            calls[number % len(calls)]()
        device.synchronize()
    found: dict[str, list[float]] = {}
    for event in profiled.events():
        if event.device_type.name == "CUDA":
            found.setdefault(event.name[:NAME], []).append(event.device_time)
    rows = [(name, len(t) / ROUNDS, round(sum(t) / ROUNDS, 2)) for name, t in found.items()]
    return sorted(rows, key=lambda row: -row[2])


def total(result: Any) -> str:
    return result if isinstance(result, str) else f"{sum(row[2] for row in result):.1f} us"


if __name__ == "__main__":
    sys.exit(main())
