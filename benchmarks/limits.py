"""Peak memory and time of calls on the CPU on images of 64 megapixels and more, in any layout.

Each operator, dtype, case and size has a process of its own. The memory is what the call takes
beyond what it is given and returns; the time is that of all processors. Where a call reads tens of
points or one small box both should be next to nothing. The other cases are a box as large as the
image, and a kernel of 1500 by 1500 taps. What takes more memory or time than is allowed is stopped,
and noted as not run.

    python benchmarks/limits.py --dtypes float32 --json benchmarks/results/limits.json

adds to what the file has already.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import cudeform
from cudeform.commands import machine
from cudeform.registry import OPERATORS

SIDES = (8000, 16000)  # of 64 and of 256 megapixels
KERNEL = 1500
DTYPES = ("float32", "float64", "float16", "bfloat16")
KEY = ("operator", "dtype", "case", "side", "layout", "pass")
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


def convolutions(op: str, make: Make, ones: Make, side: int, kernel: int = 3) -> Calls:
    out = 3 if kernel == 3 else 2
    image, weight = make(1, 4, side, side), ones(2, 4, kernel, kernel)
    grad, options = ones(1, 2, out, out), {"stride": (side - kernel) // (out - 1)}
    given = (image, weight)
    if op != "conv2d":
        given = image, ones(1, 2 * kernel**2, out, out), weight
    yield from both(op, grad, given, options)


def samples(op: str, make: Make, ones: Make, side: int) -> Calls:
    points = ones(1, 10, 2) * np.linspace(1, side - 2, 10)[:, None].astype(ones(1).dtype)
    yield from both(op, ones(1, 4, 10), (make(1, 4, side, side), points), {})


def attention(op: str, make: Make, ones: Make, side: int) -> Calls:
    given = make(1, side**2, 1, 4), ((side, side),), ones(1, 10, 1, 1, 4, 2) / 2
    yield from both(op, ones(1, 10, 4), (*given, ones(1, 10, 1, 1, 4)), {})


def aggregations(op: str, make: Make, ones: Make, side: int, kernel: int = 3) -> Calls:
    out, taps = (3 if kernel == 3 else 2), kernel**2
    points = (ones(1, out, out, 2 * taps), ones(1, out, out, taps))
    if op == "dcnv4":
        points = (ones(1, out, out, -(-3 * taps // 8) * 8),)
    options = {"kernel_size": kernel, "stride": (side - kernel) // (out - 1)}
    yield from both(op, ones(1, out, out, 4), (make(1, side, side, 4), *points), options)


def poolings(op: str, make: Make, ones: Make, side: int, box: float = 20) -> Calls:
    bins = 2 if "ps" in op else 7
    corners = [[0, 3, 3, 3 + box, 3 + box]]
    boxes = np.array(corners, np.float64 if ones(1).itemsize == 8 else np.float32)
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
# Of a case: the families, the layouts, and options for an image of a side
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[int], dict[str, Any]]]] = {
    "little": (tuple(FAMILIES), (), lambda side: {}),
    "large box": (("regions",), ("contiguous", "stride 0"), lambda side: {"box": side - 6}),
    "large kernel": (
        ("conv", "aggregation"),
        ("contiguous", "stride 0"),
        lambda side: {"kernel": KERNEL if side > KERNEL else 5},
    ),
}


def family_of(op: str) -> str:
    return next(row.family for row in OPERATORS if row.name == op)


def sides_of(case: str, sides: list[int]) -> list[int]:
    return [KERNEL + 100] if case == "large kernel" else sides


def measure(op: str, dtype: np.dtype, case: str, side: int) -> Iterator[dict[str, Any]]:
    """A forward and a backward for each layout."""
    family, (_, chosen, options) = FAMILIES[family_of(op)], CASES[case]

    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, dtype)

    for layout, make in layouts(dtype).items():
        if chosen and layout not in chosen:
            continue
        for call in family(op, make, ones, 66, **options(66)):
            call()  # compiles
        calls = family(op, make, ones, side, **options(side))
        for name, call in zip(("forward", "backward"), calls, strict=True):
            if case == "little":
                call()
            megabytes, seconds = peak(call)
            values = op, dtype.name, case, side, layout, name
            facts = dict(zip(KEY, values, strict=True))
            yield {**facts, "beyond_mb": round(megabytes, 1), "ms": round(1000 * seconds, 1)}


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


def status(field: str, process: int | str = "self") -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def in_a_process(
    op: str, dtype: str, case: str, side: int, most: tuple[float, float]
) -> list[dict[str, Any]]:
    """What was measured until the process ended, or was stopped: `most` is bytes and seconds."""
    command = [sys.executable, __file__, "--one", op, dtype, case, str(side)]
    stopped, began = "", time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC
    ) as process:
        while process.poll() is None:
            if status("VmRSS", process.pid) > most[0]:
                stopped = "not run: memory"
            elif time.monotonic() - began > most[1]:
                stopped = "not run: time"
            if stopped:
                process.kill()
            time.sleep(0.02)
        found = [json.loads(line) for line in process.stdout]
    if process.returncode and not stopped:
        raise SystemExit(f"{op} {dtype} {case} {side}: {process.returncode}")
    if stopped:
        values = op, dtype, case, side, "all that are not here", "both"
        found.append({**dict(zip(KEY, values, strict=True)), "problem": stopped})
    return found


def merged(path: Path, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a file has of other operators, dtypes, cases and sizes, and these."""
    old = json.loads(path.read_text())["results"] if path.exists() else []
    new = {tuple(result[name] for name in KEY[:4]) for result in results}
    return [r for r in old if tuple(r[name] for name in KEY[:4]) not in new] + results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [row.name for row in OPERATORS]
    parser.add_argument("--operators", nargs="+", default=names, choices=names)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help="of the images")
    parser.add_argument("--memory", type=float, default=12, help="gigabytes of a process, at most")
    parser.add_argument("--seconds", type=float, default=600, help="of a process, at most")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also add the results to this")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        op, dtype, case, side = given.one
        dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        for result in measure(op, dtype, case, int(side)):
            print(json.dumps(result), flush=True)
        return 0
    most = given.memory * 2**30, given.seconds
    for case, dtype, op in product(given.cases, given.dtypes, given.operators):
        for side in sides_of(case, given.sides) if family_of(op) in CASES[case][0] else ():
            results = in_a_process(op, dtype, case, side, most)
            for result in results:
                print(*result.values(), sep="  ", flush=True)
            if given.json:
                facts = machine.describe("numpy", "numba")
                rows = ",\n".join(map(json.dumps, merged(given.json, results)))
                start = f'{{"machine": {json.dumps(facts)},\n"results": [\n'
                given.json.write_text(f"{start}{rows}\n]}}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
