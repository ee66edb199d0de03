"""Points in buckets by their keys, by the kernels of ``sort.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.compile import Unit, pack
from cudeform.cuda.device import Device

__all__ = ["Buckets", "sort_points", "units"]

PARAMS = np.dtype([(name, "i4") for name in ("count", "keys", "counters", "words")], align=True)
THREADS, KEYS, WORD_BYTES = 256, 4, 16
TILE = THREADS * KEYS
# The points of a bucket are counted against each other up to SHORT, sorted in a block's memory up
# to WHOLE, and beyond that each has its bit there, 32 WHOLE at a time.
SHORT, WHOLE = 128, 4096
_SIZES = (("THREADS", THREADS), ("KEYS", KEYS), ("SHORT", SHORT), ("WHOLE", WHOLE))
UNIT = Unit("sort.cu", (), PARAMS, _SIZES)


class Buckets(NamedTuple):
    """Points by key: those of key k are from ``starts[k]`` to ``starts[k + 1]``, by number.

    What there is of them from ``starts[-1]`` on is undefined.
    """

    order: Any  # (points,) int32: their numbers; None where they come as records
    starts: Any  # (keys + 1,) int32
    records: Any = None  # (points, items): what was given of each


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield UNIT


def sort_points(device: Device, keys: Any, number_of_keys: int, records: Any = None) -> Buckets:
    """Put points in order by `keys` (int32); the key `number_of_keys` marks points nobody wants.

    With `records` (points, items), 16 or 32 bytes for each point, these come in this order instead
    of the points' numbers.
    """
    count = keys.shape[0]
    tiles = number_of_keys // TILE + 1
    counters = device.empty((tiles * TILE + -(-(tiles + 1) // 4) * 4,), np.int32)
    counts, tile_counts = counters[: tiles * TILE], counters[tiles * TILE :][:tiles]
    long_count, long_keys = counters[-1:], device.empty((count // SHORT + 1,), np.int32)
    found, ranks = device.empty((count, 2), np.int32), device.empty((count,), np.int32)
    order, ordered, words = ranks, None, 0  # ranks are not needed any more where the order begins
    if records is not None:
        order, ordered = None, device.empty(records.shape, records.dtype)
        words = records.shape[1] * records.dtype.itemsize // WORD_BYTES
    params = pack(
        PARAMS,
        {
            "count": count,
            "keys": number_of_keys,
            "counters": counters.shape[0] // 4,
            "words": words,
        },
    )

    def launch(kernel: str, tasks: int, *arrays: Any) -> None:
        device.launch(UNIT, kernel, -(-tasks // THREADS), THREADS, arrays, params)

    launch("clear", counters.shape[0] // 4, counters)
    launch("count_points", count, keys, counts, tile_counts, ranks)
    launch("find_starts", tiles * THREADS, counts, tile_counts, long_count, long_keys)
    launch("place_points", count, keys, ranks, counts, found)
    out = (order, records, ordered)
    launch("order_points", count, counts, found, long_count, long_keys, *out)
    return Buckets(order, counts[: number_of_keys + 1], ordered)
