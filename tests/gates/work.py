"""The work of calls: what the emulator counts, and what follows of it. Nothing is timed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from emulator.device import EmulatorDevice, install, to_device

from cudeform.bench.workload import (
    DETECTOR,
    Aggregation,
    Attention,
    Convolution,
    Pooling,
    Workload,
)
from cudeform.cuda import lanes
from cudeform.registry import OPERATORS

from . import model, table
from .instructions import SORTS, Counter, of_kernels, of_sort

__all__ = [
    "DIRECTIONS",
    "PATH",
    "SCALED",
    "Scaled",
    "counts",
    "difference",
    "executed",
    "larger",
    "launches",
    "launches_of",
    "record",
    "with_instructions",
    "whole",
]

DIRECTIONS = ("forward", "backward")
PATH = Path(__file__).parents[2] / "benchmarks" / "work.json"


class Scaled(NamedTuple):
    """A workload, and the larger one whose work is known from it.

    Both have the same channels, taps, groups, heads and bins, and attention the same number of
    queries for each pixel; the larger one is `times` as large in output pixels, queries or regions.
    Points are independent of each other, so a kernel does so much once, as when the weight is
    packed, and so much for each image: both follow from one image and from two. Only, a small
    image has more points outside. Gathers are those of the larger one, which is large enough that
    they are not split. A workload that is not scaled is counted as it is.
    """

    name: str
    work: Workload  # one image
    of: Workload
    times: float

    @property
    def two(self) -> Workload:
        """Two images of the smaller workload."""
        return replace(self.work, batch=2)

    def larger(self, one: dict[str, int], two: dict[str, int]) -> dict[str, float]:
        """What a kernel does in the larger workload, from what it does for one image and two."""
        return {name: n + (self.times - 1) * (two[name] - n) for name, n in one.items()}


def _scaled() -> Iterator[Scaled]:
    large = Convolution(8, 256, 64, 64, 256)
    yield Scaled("a", Convolution(1, 256, 16, 12, 256), large, 8 * 64 * 64 / (16 * 12))
    large = Convolution(2, 256, 100, 152, 256)
    yield Scaled("b", Convolution(1, 256, 10, 19, 256), large, 2 * 100 * 152 / (10 * 19))
    small = ((10, 15), (5, 8), (3, 4), (2, 2))
    queries, part = (sum(h * w for h, w in shapes) for shapes in (DETECTOR, small))
    large = Attention(2, queries, DETECTOR)
    yield Scaled("c", Attention(1, part, small), large, 2 * queries / part)
    large = Aggregation("dcnv3", 64, 64, 56, 56)
    yield Scaled("d", Aggregation("dcnv3", 1, 64, 14, 14), large, 64 * 56 * 56 / 14**2)
    late = Aggregation("dcnv4", 1, 256, 14, 14)
    yield Scaled("d14", late, replace(late, batch=64), 64)
    pooled = {"sampling_ratio": 2}
    large = Pooling("roi_align", 2, 256, 50, 76, 500, pooled)
    yield Scaled("e", Pooling("roi_align", 1, 256, 10, 19, 25, pooled), large, 2 * 500 / 25)
    few = Convolution(1, 32, 24, 24, 32)
    yield Scaled("few", few, few, 1)


SCALED = tuple(_scaled())


class _Dry(EmulatorDevice):
    """Counts launches, and runs only those whose results the host looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0
        self.split = 0  # gathers

    def launch(self, unit: Any, *given: Any, **options: Any) -> None:
        self.counted += 1
        self.split += given[0].endswith("_split")
        if unit.file == "region_rows.cu":
            super().launch(unit, *given, **options)

    def gemm(self, *given: Any, **options: Any) -> None:
        self.products += 1


def launches() -> dict[str, dict[str, list[int]]]:
    """[kernels forward, products, kernels backward, products] of every case of the registry."""
    found: dict[str, dict[str, list[int]]] = {}
    for operator in OPERATORS:
        for case in operator.cases(np.random.default_rng(0)):
            counted = found.setdefault(operator.name, {})[case.name] = []
            device = _Dry()
            with install(device):
                output = operator.call(case, _single)
                counted += [device.counted, device.products]
                device.counted = device.products = 0
                operator.call_backward(_single(np.zeros(output.shape)), case, _single)
                counted += [device.counted, device.products]
    return found


def _single(array: np.ndarray) -> Any:
    return to_device(array.astype(np.float32) if array.dtype.kind == "f" else array)


def launches_of(work: Workload, backward: bool) -> dict[str, int]:
    """Kernels, products and split gathers of a call, none of which is run."""
    device = _Dry()
    with install(device):
        arrays = {name: to_device(array) for name, array in work.arrays().items()}
        call = work.call(arrays, backward)
        device.counted = device.products = device.split = 0
        call()
    return {"launches": device.counted, "products": device.products, "split": device.split}


def counts(scaled: Scaled, direction: str) -> dict[str, Any]:
    """Of a call in float32: kernels, matrix products, and what kernels do, also for two images."""
    with _gathers_of(scaled):
        device = _counted(scaled.work, direction)
        two = _counted(scaled.two, direction)
    return {
        "launches": len(device.launches),
        "products": device.products,
        "kernels": totals(device.launches),
        "kernels_of_two": totals(two.launches),
    }


@contextmanager
def _gathers_of(scaled: Scaled) -> Iterator[None]:
    """Split gathers only where the larger workload is as small."""
    enough = lanes.ENOUGH_WARPS
    if scaled.work != scaled.of:
        lanes.ENOUGH_WARPS = 0
    try:
        yield
    finally:
        lanes.ENOUGH_WARPS = enough


def executed(scaled: Scaled, direction: str) -> dict[str, dict[str, int]]:
    """Instructions of the kernels that have no hot loop, for one image and for two."""
    with _gathers_of(scaled):
        devices = {
            "kernels": _counted(scaled.work, direction, Counter()),
            "kernels_of_two": _counted(scaled.two, direction, Counter()),
        }
    return {name: of_kernels(device) for name, device in devices.items()}


def _counted(work: Workload, direction: str, device: Any = None) -> Any:
    """The device that a call ran on."""
    device = device or EmulatorDevice(count=True)
    with install(device):
        arrays = {name: to_device(array) for name, array in work.arrays().items()}
        call = work.call(arrays, direction == "backward")
        del device.launches[:]
        device.products = 0
        call()
    return device


def _array_bytes(work: Workload) -> list[int]:
    """Of arguments and results: of the forward, whose output is like grad_output, and backward."""
    sizes = {name: array.nbytes for name, array in work.arrays().items()}
    gradients = [name for name in work.gradients if name in sizes]
    return [sum(sizes.values()), sum(sizes.values()) + sum(sizes[name] for name in gradients)]


def with_instructions(kernels: dict[str, Any], executed: dict[str, int]) -> dict[str, Any]:
    """The counts of kernels with the instructions that each ran; see `executed`."""
    return {
        name: {
            **numbers,
            "instructions": executed[name]
            if name in executed
            else model.instructions(name, numbers),
        }
        for name, numbers in kernels.items()
    }


def larger(scaled: Scaled, counted: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What each kernel does in the larger workload."""
    one, two = counted["kernels"], counted["kernels_of_two"]
    return {name: scaled.larger(one[name], two[name]) for name in one}


def whole(scaled: Scaled, direction: str, counted: dict[str, Any]) -> dict[str, Any]:
    """What the larger workload takes, and what the model makes of it."""
    backward = DIRECTIONS.index(direction)
    kernels = larger(scaled, counted)
    names = ("instructions", "read_sectors", "written_sectors", "atomics")
    total = {name: round(sum(kernel[name] for kernel in kernels.values())) for name in names}
    started = launches_of(scaled.of, bool(backward))
    moved = _array_bytes(scaled.of)[backward]
    cycles = model.cycles(kernels, started["launches"], moved)
    return {**started, **total, "array_bytes": moved, "model_cycles": cycles}


def _one(scaled: Scaled) -> dict[str, Any]:
    """What is recorded of a workload."""
    found: dict[str, Any] = {
        "counted": f"{scaled.work.operator}, {scaled.work}",
        "of": f"{scaled.of.operator}, {scaled.of}",
        "times": scaled.times,
        "whole": {},
    }
    for direction in DIRECTIONS:
        counted = counts(scaled, direction)
        for name, ran in executed(scaled, direction).items():
            counted[name] = with_instructions(counted[name], ran)
        found[direction] = counted
        found["whole"][direction] = whole(scaled, direction, counted)
    return found


def record() -> dict[str, Any]:
    """All that is recorded."""
    return {
        "what": "counts and a model of them; no time was measured, see benchmarks/work.py",
        "model": model.A100._asdict(),
        "sort": {name: of_sort(name) for name in SORTS},
        "workloads": {scaled.name: _one(scaled) for scaled in SCALED},
        "launches": launches(),
    }


def difference(before: Any, now: Any, where: str = "") -> list[str]:
    """Where two records differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        parts = (difference(before.get(n), now.get(n), f"{where} {n}") for n in names)
        return [line for part in parts for line in part]
    return [] if before == now else [f"{where.strip()}: {before} -> {now}"]


def totals(launched: list[Any]) -> dict[str, dict[str, int]]:
    """What the launches of each kernel did together, by the name of its unit and its own."""
    found: dict[str, dict[str, int]] = {}
    for one in launched:
        numbers = {"launches": 1, "blocks": one.blocks, "threads": one.blocks * one.threads}
        kernel = found.setdefault(table.kernel_name(one), {})
        for name, number in {**numbers, **one.work}.items():
            kernel[name] = kernel.get(name, 0) + number
    return found
