"""Arrays between layouts and storage types, by the kernels of ``layout.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from cudeform.arrays import DTYPES, dtype_name
from cudeform.cuda.compile import DIVISOR, SCALARS, Unit, pack
from cudeform.cuda.device import Device

__all__ = ["fill", "index_type", "rounded", "transpose", "units"]

PARAMS = np.dtype(
    [
        ("rows", "i4"),
        ("columns", "i4"),
        ("tiles_down", DIVISOR),
        ("tiles_across", DIVISOR),
        ("groups", DIVISOR),
        ("source_step", "i8"),
        ("target_step", "i8"),
        ("source_group", "i8"),
        ("target_group", "i8"),
        ("source_pitch", "i4"),
        ("target_pitch", "i4"),
        ("count", "i8"),
        ("channels", DIVISOR),
        ("inner", DIVISOR),
    ],
    align=True,
)
_UNUSED = {name: int(PARAMS[name] == DIVISOR) for name in PARAMS.names}
TILE, THREADS = 32, 256
FILL_BLOCKS = 1024
_TYPES = {**SCALARS, "int32": "int"}  # whole numbers are moved, not converted


def index_type(elements: int) -> str:
    """The integer that counts so many elements: 32 bits while they suffice."""
    return "int" if elements < 2**31 else "long long"


@lru_cache(maxsize=512)
def _unit(source: str, target: str, index: str) -> Unit:
    defines = (("SOURCE", _TYPES[source]), ("TARGET", _TYPES[target]), ("INDEX", index))
    return Unit("layout.cu", defines, PARAMS, (("THREADS", THREADS), ("TILE", TILE)))


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    for dtype, index in product(DTYPES, ("int", "long long")):
        wide = "float64" if dtype == "float64" else "float32"
        for pair in dict.fromkeys([(dtype, dtype), (dtype, wide), (wide, dtype)]):
            yield _unit(*pair, index)
    for index in ("int", "long long"):
        yield _unit("int32", "int32", index)


def _launch(
    device: Device,
    kernel: str,
    index: str,
    grid: int,
    source: Any,
    target: Any,
    params: dict[str, int],
) -> None:
    unit = _unit(dtype_name(source.dtype), dtype_name(target.dtype), index)
    packed = pack(PARAMS, {**_UNUSED, **params})
    device.launch(unit, kernel, grid, THREADS, (source, target), packed)


def transpose(
    device: Device,
    source: Any,
    target: Any,
    shape: tuple[int, int, int],
    *,
    groups: int = 1,
    source_step: int = 0,
    target_step: int = 0,
    source_group: int = 0,
    target_group: int = 0,
    source_pitch: int = 0,
    target_pitch: int = 0,
) -> None:
    """target (B, S, R) = source (B, R, S) for shape = (B, R, S), converted to target's dtype.

    A pitch is the distance of two rows, a group that of the `groups` matrices of a step, and a
    step that of two such, where they are not those of a dense array.
    """
    matrices, rows, columns = shape
    source_pitch, target_pitch = source_pitch or columns, target_pitch or rows
    down, across = -(-rows // TILE), -(-columns // TILE)
    params = {
        "rows": rows,
        "columns": columns,
        "tiles_down": down,
        "tiles_across": across,
        "groups": groups,
        "source_step": source_step or groups * rows * columns,
        "target_step": target_step or groups * rows * columns,
        "source_group": source_group or rows * columns,
        "target_group": target_group or rows * columns,
        "source_pitch": source_pitch,
        "target_pitch": target_pitch,
    }
    grid = matrices * down * across
    index = index_type(max(rows * source_pitch, columns * target_pitch))
    _launch(device, "transpose", index, grid, source, target, params)


def fill(device: Device, source: Any, target: Any, inner: int = 1) -> None:
    """target[i] = source[i // inner % len(source)], converted; one as long as target is copied."""
    count = prod(target.shape)
    params = {"count": count, "inner": inner, "channels": prod(source.shape)}
    grid = min(-(-count // THREADS), FILL_BLOCKS)
    index = index_type(count + FILL_BLOCKS * THREADS)  # a thread counts up to its next element
    _launch(device, "fill", index, grid, source, target, params)


def rounded(device: Device, sums: Any, dtype: Any) -> Any:
    """Sums in their final dtype: the array itself where that is the dtype of sums."""
    if sums.dtype == dtype:
        return sums
    result = device.empty(sums.shape, dtype)
    fill(device, sums, result)
    return result
