"""Instructions that kernels execute, counted where `tests/ptx` runs what NVRTC makes of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from emulator.device import to_device
from ptx.device import PtxDevice

from cudeform.cuda.sort import sort_points

from . import model, table

__all__ = ["SORTS", "Counter", "of_kernels", "of_sort"]


class Counter(PtxDevice):
    """Counts the kernels that have no hot loop; the emulator runs the others."""

    def __init__(self) -> None:
        super().__init__(arch=model.A100.arch.replace("sm", "compute"))
        self.check = False

    def launch(self, unit: Any, kernel: str, *given: Any, **options: Any) -> None:
        hot = (unit.file, kernel) in table.HOT
        (super(PtxDevice, self) if hot else super()).launch(unit, kernel, *given, **options)


def of_kernels(device: Counter) -> dict[str, int]:
    """Instructions of threads, by the name of the kernel's unit and its own."""
    found: dict[str, int] = {}
    for one in device.launches:
        if "instructions" in one.work:
            name = table.kernel_name(one)
            found[name] = found.get(name, 0) + one.work["instructions"]
    return found


class Points(NamedTuple):
    """Points to be sorted: the key of each, and how many keys there are."""

    keys: np.ndarray
    number_of_keys: int


def _of_a_convolution(images: int, size: int) -> Points:
    """Taps of 3x3 that are a pixel away from where they would be, more or less."""
    rng = np.random.default_rng(0)
    cells = images * (size + 1) ** 2
    image, row, column, a, b = np.indices((images, size, size, 3, 3))
    y, x = (at + rng.standard_normal(image.shape) for at in (row - 1 + a, column - 1 + b))
    keys = (image * (size + 1) + np.floor(y) + 1) * (size + 1) + np.floor(x) + 1
    inside = (y > -1) & (y < size) & (x > -1) & (x < size)
    return Points(np.where(inside, keys, cells).astype(np.int32).ravel(), cells)


def _of_an_attention(queries: int) -> Points:
    """As many points in a small level as in a large one: some buckets are 60 times as long."""
    rng = np.random.default_rng(0)
    sizes = (15200, 3800, 950, 247)
    starts = np.cumsum((0, *sizes))
    keys = [start + rng.integers(0, n, queries) for start, n in zip(starts, sizes, strict=False)]
    return Points(np.stack(keys, axis=1).astype(np.int32).ravel(), int(starts[-1]))


SORTS: dict[str, Callable[[], Points]] = {
    "2,304 points of a convolution": lambda: _of_a_convolution(1, 16),
    "294,912 points of a convolution": lambda: _of_a_convolution(8, 64),
    "160,000 points of an attention": lambda: _of_an_attention(40_000),
    "200,000 points with one key": lambda: Points(np.zeros(200_000, np.int32), 1000),
}


def of_sort(name: str) -> dict[str, dict[str, int]]:
    """Of each kernel: instructions of threads, and those that warps issue."""
    points = SORTS[name]()
    device = Counter()
    records = device.empty((points.keys.size, 4), np.float32)
    sort_points(device, to_device(points.keys), points.number_of_keys, records)
    return {launched.kernel: launched.work for launched in device.launches}
