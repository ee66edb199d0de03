"""Points in the order of their keys, by the kernels of ``sort.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.compile import Unit, pack
from cudeform.cuda.device import Device

__all__ = ["Buckets", "sort_points", "units"]

PARAMS = np.dtype([("count", "i4"), ("shift", "i4"), ("blocks", "i4"), ("keys", "i4")], align=True)
THREADS, DIGIT_BITS, TILE = 256, 8, 2048
_SIZES = (("THREADS", THREADS), ("DIGITS", 1 << DIGIT_BITS), ("TILE", TILE))
UNIT = Unit("sort.cu", (), PARAMS, _SIZES)


class Buckets(NamedTuple):
    """Points by key: those of key k are ``order[starts[k]:starts[k + 1]]``, in ascending order."""

    order: Any  # (points,) int32
    starts: Any  # (keys + 1,) int32


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield UNIT


def _params(count: int, blocks: int, shift: int, keys: int) -> np.ndarray:
    return pack(PARAMS, dict(count=count, blocks=blocks, shift=shift, keys=keys))


def sort_points(device: Device, keys: Any, number_of_keys: int) -> Buckets:
    """Sort points stably by `keys` (int32); the key `number_of_keys` marks points nobody wants.

    The contents of `keys` are lost.
    """
    count = keys.shape[0]
    digits = 1 << DIGIT_BITS
    blocks = -(-count // TILE)
    spare_keys = device.empty((count,), np.int32)
    orders = [device.empty((count,), np.int32) for _ in range(2)]
    counts = device.empty((digits * blocks,), np.int32)
    totals = device.empty((digits,), np.int32)
    order = None
    for shift in range(0, max(1, number_of_keys.bit_length()), DIGIT_BITS):
        params = _params(count, blocks, shift, number_of_keys)
        device.launch(UNIT, "count_digits", blocks, THREADS, (keys, counts), params)
        device.launch(UNIT, "add_counts", digits, THREADS, (counts, totals), params)
        moved = (keys, order, counts, totals, spare_keys, orders[0])
        device.launch(UNIT, "move_elements", blocks, THREADS, moved, params)
        keys, spare_keys = spare_keys, keys
        order, orders = orders[0], [orders[1], orders[0]]
    starts = device.empty((number_of_keys + 1,), np.int32)
    grid = -(-(number_of_keys + 1) // THREADS)
    params = _params(count, blocks, 0, number_of_keys)
    device.launch(UNIT, "find_starts", grid, THREADS, (keys, starts), params)
    return Buckets(order, starts)
