"""The work of calls as the emulator counts it: launches, and what they move. Nothing is timed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from emulator.device import EmulatorDevice, install, to_device

from cudeform.bench.workload import Convolution, Pooling, Workload
from cudeform.registry import OPERATORS

__all__ = ["DIRECTIONS", "PATH", "SCALED", "Scaled", "counts", "difference", "launches", "record"]

DIRECTIONS = ("forward", "backward")
PATH = Path(__file__).parents[2] / "benchmarks" / "work.json"


class Scaled(NamedTuple):
    """A workload, and the larger one that it is a part of.

    Both have the same channels, taps and regions' bins, and points are independent of each other:
    what a kernel of points does is proportional to `times`, the ratio of output pixels or of
    regions, except that a small image has more points outside. The kernels of `layout.cu` also
    pack the weight, which both have once.
    """

    name: str
    work: Workload
    of: Workload
    times: float


def _scaled() -> Iterator[Scaled]:
    large = Convolution(8, 256, 64, 64, 256)
    yield Scaled("a", Convolution(1, 256, 16, 12, 256), large, 8 * 64 * 64 / (16 * 12))
    large = Convolution(2, 256, 100, 152, 256)
    yield Scaled("b", Convolution(1, 256, 10, 19, 256), large, 2 * 100 * 152 / (10 * 19))
    pooled = {"sampling_ratio": 2}
    large = Pooling("roi_align", 2, 256, 50, 76, 1000, pooled)
    yield Scaled("e", Pooling("roi_align", 1, 256, 25, 19, 8, pooled), large, 1000 / 8)


SCALED = tuple(_scaled())


class _Dry(EmulatorDevice):
    """Counts launches, and runs only those whose results the host looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0

    def launch(self, unit: Any, *given: Any, **options: Any) -> None:
        self.counted += 1
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


def counts(work: Workload, backward: bool) -> dict[str, Any]:
    """Of a call in float32: kernels, matrix products, bytes of arrays, and what kernels move."""
    device = EmulatorDevice(count=True)
    with install(device):
        arrays = {name: to_device(array) for name, array in work.arrays().items()}
        call = work.call(arrays, backward)
        del device.launches[:]
        device.products = 0
        call()
    return {
        "launches": len(device.launches),
        "products": device.products,
        "kernels": totals(device.launches),
    }


def _array_bytes(work: Workload) -> list[int]:
    """Of arguments and results: of the forward, whose output is like grad_output, and backward."""
    sizes = {name: array.nbytes for name, array in work.arrays().items()}
    gradients = [name for name in work.gradients if name in sizes]
    return [sum(sizes.values()), sum(sizes.values()) + sum(sizes[name] for name in gradients)]


def record() -> dict[str, Any]:
    """All that is recorded."""
    return {
        "what": "counts and a model of them; no time was measured, see benchmarks/work.py",
        "workloads": {
            scaled.name: {
                "counted": f"{scaled.work.operator}, {scaled.work}",
                "of": f"{scaled.of.operator}, {scaled.of}",
                "times": scaled.times,
                "array_bytes": dict(zip(DIRECTIONS, _array_bytes(scaled.of), strict=True)),
                "forward": counts(scaled.work, False),
                "backward": counts(scaled.work, True),
            }
            for scaled in SCALED
        },
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
    """What the launches of each kernel did together."""
    found: dict[str, dict[str, int]] = {}
    for one in launched:
        numbers = {"launches": 1, "blocks": one.blocks, "threads": one.blocks * one.threads}
        kernel = found.setdefault(f"{one.file} {one.kernel}", {})
        for name, number in {**numbers, **one.work}.items():
            kernel[name] = kernel.get(name, 0) + number
    return found
