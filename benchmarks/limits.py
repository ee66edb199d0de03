"""Peak memory and time of calls on the CPU that read little of 64 megapixels, in any layout.

Each operator and dtype has a process of its own, with an address space that keeps it from swapping.
The memory is what the call takes beyond what it is given and returns; the time is that of all
processors. Both should follow what is read, which is next to nothing: tens of points or one box.

    python benchmarks/limits.py --dtypes float32 float16
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import cudeform
from cudeform.commands.table import table
from cudeform.registry import OPERATORS

SIDE = 8000
DTYPES = ("float32", "float64", "float16", "bfloat16")
LIMIT = 14 << 30  # bytes of address space
# Else the C library keeps what was freed, and a later call seems to take nothing
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

Make = Callable[..., np.ndarray]
Calls = Iterator[tuple[Callable[[], Any], Callable[[], Any]]]


def layouts(dtype: np.dtype) -> dict[str, Make]:
    """Images of zeros, of which only what is touched takes memory."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype)

    def read_only(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.zeros(shape, dtype), shape)

    return {
        "contiguous": zeros,
        "read-only": read_only,
        "second axis last": lambda n, c, *rest: np.moveaxis(zeros(n, *rest, c), -1, 1),
        "every second": lambda *shape: zeros(*shape[:-1], 2 * shape[-1])[..., ::2],
        "stride 0": lambda *shape: np.broadcast_to(np.ones((), dtype), shape),
        "Fortran": lambda *shape: np.zeros(shape, dtype, order="F"),
    }


def convolutions(op: str, make: Make, ones: Make, side: int) -> Calls:
    image, weight, offset = make(1, 4, side, side), ones(2, 4, 3, 3), ones(1, 18, 3, 3)
    grad, options = ones(1, 2, 3, 3), {"stride": side // 3}
    given = (image, weight) if op == "conv2d" else (image, offset, weight)
    yield from both(op, grad, given, options)


def samples(op: str, make: Make, ones: Make, side: int) -> Calls:
    points = ones(1, 10, 2) * np.linspace(1, side - 2, 10)[:, None].astype(ones(1).dtype)
    yield from both(op, ones(1, 4, 10), (make(1, 4, side, side), points), {})


def attention(op: str, make: Make, ones: Make, side: int) -> Calls:
    given = make(1, side**2, 1, 4), ((side, side),), ones(1, 10, 1, 1, 4, 2) / 2
    yield from both(op, ones(1, 10, 4), (*given, ones(1, 10, 1, 1, 4)), {})


def aggregations(op: str, make: Make, ones: Make, side: int) -> Calls:
    points = (ones(1, 3, 3, 18), ones(1, 3, 3, 9)) if op == "dcnv3" else (ones(1, 3, 3, 32),)
    options = {"kernel_size": 3, "stride": side // 3}
    yield from both(op, ones(1, 3, 3, 4), (make(1, side, side, 4), *points), options)


def poolings(op: str, make: Make, ones: Make, side: int) -> Calls:
    bins = 2 if "ps" in op else 7
    boxes = np.array([[0, 3, 3, 23, 23]], np.float64 if ones(1).itemsize == 8 else np.float32)
    given: tuple[Any, ...] = make(1, 4, side, side), boxes
    options: dict[str, Any] = {"output_size": bins}
    if op.startswith("deform"):
        given += (ones(1, 2, bins, bins),)
    if op == "deform_ps_roi_pool":
        options.update(spatial_scale=1.0, output_dim=1, group_size=2)
    grad = ones(1, 1 if "ps" in op else 4, bins, bins)
    yield from both(op, grad, given, options)


def both(op: str, grad: np.ndarray, given: tuple, options: dict[str, Any]) -> Calls:
    forward, backward = getattr(cudeform, op), getattr(cudeform, op + "_backward")
    yield lambda: (forward(*given, **options),)
    yield lambda: backward(grad, *given, **options)


FAMILIES = {
    "conv": convolutions,
    "sampling": samples,
    "attention": attention,
    "aggregation": aggregations,
    "regions": poolings,
}


def measure(op: str, dtype: np.dtype) -> Iterator[dict[str, Any]]:
    """A forward and a backward for each layout."""
    family = FAMILIES[next(r.family for r in OPERATORS if r.name == op)]

    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, dtype)

    for layout, make in layouts(dtype).items():
        for call in family(op, make, ones, 66):
            call()  # compiles
        for name, call in zip(("forward", "backward"), family(op, make, ones, SIDE), strict=True):
            call()
            megabytes, seconds = peak(call)
            facts = {"operator": op, "dtype": dtype.name, "layout": layout, "pass": name}
            yield {**facts, "extra_mb": round(megabytes, 1), "ms": round(1000 * seconds, 1)}


def peak(call: Callable[[], Any]) -> tuple[float, float]:
    """Megabytes beyond results, and seconds of processors."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from what is resident now
    before, began = status("VmRSS"), time.process_time()
    results = call()
    seconds = time.process_time() - began
    most, after = status("VmHWM"), status("VmRSS")
    del results
    gc.collect()
    return (most - before - (after - status("VmRSS"))) / 1e6, seconds


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [row.name for row in OPERATORS]
    parser.add_argument("--operators", nargs="+", default=names, choices=names)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    parser.add_argument("--one", nargs=2, metavar=("OPERATOR", "DTYPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        op, dtype = given.one
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        print(json.dumps(list(measure(op, dtype))))
        return 0
    results = []
    for op in given.operators:
        for dtype in given.dtypes:
            command = [sys.executable, __file__, "--one", op, dtype]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC)
            if done.returncode:
                raise SystemExit(done.stderr)
            results += json.loads(done.stdout)
    print(table(tuple(results[0]), [tuple(map(str, result.values())) for result in results]))
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
