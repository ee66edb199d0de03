"""Arrays between layouts and storage types, by the kernels of ``layout.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cudeform.arrays import DTYPES, dtype_name
from cudeform.cuda.compile import DIVISOR, SCALARS, Unit, packed
from cudeform.cuda.device import Device
from cudeform.cuda.lanes import VECTOR_BYTES
from cudeform.cuda.program import address

JOB = np.dtype(
    [(name, "i4") for name in ("first_block", "blocks", "rows", "columns")]
    + [(name, DIVISOR) for name in ("tiles_down", "tiles_across", "groups")]
    + [(name, "i4") for name in (
        "source_pitch", "target_pitch", "wide_source", "wide_target",
    )]
    + [(name, DIVISOR) for name in ("channels", "inner")]
    + [(name, "i8") for name in (
        "source_step", "target_step", "source_group", "target_group", "count",
    )],
    align=True,
)  # fmt: skip
JOBS = 5  # of a launch
PARAMS = np.dtype([("jobs", JOB, (JOBS,))], align=True)
_UNUSED = {name: int(JOB[name] == DIVISOR) for name in JOB.names}
_NONE = packed(JOB, {**_UNUSED, "first_block": 2**31 - 1})
TILE, THREADS = 64, 256
VECTOR = 4  # elements of a row that a thread moves at once, at most: a tile is as many for each
_SIZES = (("THREADS", THREADS), ("TILE", TILE), ("JOBS", JOBS), ("VECTOR", VECTOR))
FILL_BLOCKS = 1024


def index_type(elements: int) -> str:
    """The integer that counts so many elements: 32 bits while they suffice."""
    return "int" if elements < 2**31 else "long long"


@lru_cache(maxsize=512)
def _unit(source: str, target: str, index: str) -> Unit:
    defines = (("SOURCE", SCALARS[source]), ("TARGET", SCALARS[target]), ("INDEX", index))
    return Unit("layout.cu", defines, PARAMS, _SIZES)


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    for dtype, index in product(DTYPES, ("int", "long long")):
        wide = "float64" if dtype == "float64" else "float32"
        for pair in dict.fromkeys([(dtype, dtype), (dtype, wide), (wide, dtype)]):
            yield _unit(*pair, index)


def _is_wide(array: Any, vector: int, *numbers: int) -> bool:
    """Whether so many elements are a divisor of these numbers, and of where the array starts."""
    whole = address(array) % (vector * array.dtype.itemsize) == 0
    return whole and not any(number % vector for number in numbers)


class _Job(NamedTuple):
    """What is done to one pair of arrays."""

    source: Any  # None: a fill with ones
    target: Any
    largest: int  # elements that an index counts
    blocks: int
    params: dict[str, int]

    @property
    def unit(self) -> Unit:
        target = dtype_name(self.target.dtype)
        source = target if self.source is None else dtype_name(self.source.dtype)
        return _unit(source, target, index_type(self.largest))


class Strides(NamedTuple):
    """Elements from a row, a matrix of a step, and a step to the next; 0: as in a dense array."""

    pitch: int = 0
    group: int = 0
    step: int = 0


DENSE = Strides()


class Batch:
    """Arrays to be moved, in as few launches as their dtypes allow; none needs another's result."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._jobs: list[_Job] = []

    def transpose(
        self,
        source: Any,
        target: Any,
        shape: tuple[int, int, int],
        *,
        groups: int = 1,
        of_source: Strides = DENSE,
        of_target: Strides = DENSE,
    ) -> None:
        """target (B, S, R) = source (B, R, S) for shape = (B, R, S), converted to target's dtype.

        A step has `groups` matrices.
        """
        matrices, rows, columns = shape
        down, across = -(-rows // TILE), -(-columns // TILE)
        params = {"rows": rows, "columns": columns, "groups": groups}
        params.update(tiles_down=down, tiles_across=across)
        dense = {"source": (of_source, columns), "target": (of_target, rows)}
        for name, (strides, pitch) in dense.items():
            params[f"{name}_pitch"] = strides.pitch or pitch
            params[f"{name}_group"] = strides.group or rows * columns
            params[f"{name}_step"] = strides.step or groups * rows * columns
        for name, array, extent in (("source", source, columns), ("target", target, rows)):
            strides = [params[f"{name}_{way}"] for way in ("pitch", "group", "step")]
            most = min(VECTOR, VECTOR_BYTES // array.dtype.itemsize)
            params[f"wide_{name}"] = _is_wide(array, most, extent, *strides)
        largest = max(rows * params["source_pitch"], columns * params["target_pitch"])
        self._jobs.append(_Job(source, target, largest, matrices * down * across, params))

    def fill(self, source: Any, target: Any, inner: int = 1) -> None:
        """target[i] = source[i // inner % len(source)], converted.

        A source as long as the target is copied, and None is a source of ones.
        """
        count = prod(target.shape)
        channels = 1 if source is None else prod(source.shape)
        params = {"count": count, "inner": inner, "channels": channels}
        pack = VECTOR_BYTES // min(a.dtype.itemsize for a in (source, target) if a is not None)
        params["wide_target"] = _is_wide(target, pack)
        if source is not None and inner == 1:
            params["wide_source"] = _is_wide(source, pack, *(channels,) * (channels < count))
        blocks = min(-(-count // (pack * THREADS)), FILL_BLOCKS)
        # A thread counts up to its next element
        largest = count + FILL_BLOCKS * THREADS * pack
        self._jobs.append(_Job(source, target, largest, blocks, params))

    def run(self) -> None:
        """Move what there is, and forget it."""
        by_unit: dict[Unit, list[_Job]] = {}
        for job in self._jobs:
            by_unit.setdefault(job.unit, []).append(job)
        self._jobs = []
        for unit, jobs in by_unit.items():
            for first in range(0, len(jobs), JOBS):
                self._launch(unit, jobs[first : first + JOBS])

    def _launch(self, unit: Unit, jobs: list[_Job]) -> None:
        content, arrays, grid = [], [], 0
        for job in jobs:
            place = {"first_block": grid, "blocks": job.blocks}
            content.append(packed(JOB, {**_UNUSED, **job.params, **place}))
            arrays += [job.source, job.target]
            grid += job.blocks
        rest = JOBS - len(jobs)
        params = np.frombuffer(b"".join([*content, *[_NONE] * rest]), PARAMS)
        self.device.launch(unit, "arrange", grid, THREADS, (*arrays, *[None] * (2 * rest)), params)


def transpose(device: Device, source: Any, target: Any, *shape: Any, **strides: Any) -> None:
    """`Batch.transpose` of one pair of arrays."""
    batch = Batch(device)
    batch.transpose(source, target, *shape, **strides)
    batch.run()


def fill(device: Device, source: Any, target: Any, inner: int = 1) -> None:
    """`Batch.fill` of one array."""
    batch = Batch(device)
    batch.fill(source, target, inner)
    batch.run()
