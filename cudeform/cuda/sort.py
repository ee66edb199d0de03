"""Points in buckets by their keys, by the kernels of ``sort.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.compile import Unit, pack
from cudeform.cuda.device import Device

__all__ = ["Buckets", "sort_points", "units"]

PARAMS = np.dtype([(name, "i4") for name in ("count", "keys", "counters", "ranges")], align=True)
THREADS, TILE = 256, 2048
# The points of a bucket are counted against each other up to SHORT, sorted in a block's memory up
# to WHOLE, and beyond that each has its bit there, 32 WHOLE at a time.
SHORT, WHOLE = 128, 4096
_SIZES = (("THREADS", THREADS), ("TILE", TILE), ("SHORT", SHORT), ("WHOLE", WHOLE))
UNIT = Unit("sort.cu", (), PARAMS, _SIZES)


class Buckets(NamedTuple):
    """Points by key: those of key k are ``order[starts[k]:starts[k + 1]]``, in ascending order."""

    order: Any  # (points,) int32; undefined from starts[-1] on
    starts: Any  # (keys + 1,) int32


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield UNIT


def sort_points(device: Device, keys: Any, number_of_keys: int) -> Buckets:
    """Put points in order by `keys` (int32); the key `number_of_keys` marks points nobody wants."""
    count = keys.shape[0]
    tiles = number_of_keys // TILE + 1
    counters = device.empty((tiles * TILE + -(-(tiles + 1) // 4) * 4,), np.int32)
    counts, tile_counts = counters[: tiles * TILE], counters[tiles * TILE :][:tiles]
    long_count, long_keys = counters[-1:], device.empty((count // SHORT + 1,), np.int32)
    order, found = (device.empty((count,), np.int32) for _ in range(2))
    ranks = order  # until the points are found
    params = pack(
        PARAMS,
        {
            "count": count,
            "keys": number_of_keys,
            "counters": counters.shape[0] // 4,
            "ranges": -(-count // (32 * WHOLE)),
        },
    )

    def launch(kernel: str, tasks: int, *arrays: Any) -> None:
        device.launch(UNIT, kernel, -(-tasks // THREADS), THREADS, arrays, params)

    launch("clear", counters.shape[0] // 4, counters)
    launch("count_points", count, keys, counts, tile_counts, ranks)
    launch("find_starts", tiles * THREADS, counts, tile_counts, long_count, long_keys)
    launch("place_points", count, keys, ranks, counts, found)
    launch("order_points", count, keys, counts, found, long_count, long_keys, order)
    return Buckets(order, counts[: number_of_keys + 1])
