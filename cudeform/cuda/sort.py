"""Points in buckets by their keys, by the kernels of ``sort.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.compile import Unit, pack
from cudeform.cuda.device import Device
from cudeform.cuda.lanes import THREADS, lane_bits

__all__ = ["Buckets", "sort_points", "units"]

PARAMS = np.dtype(
    [(name, "i4") for name in ("count", "keys", "counters", "lane_bits", "sparse")], align=True
)
POINTS, KEYS = 4, 4  # of a thread, in the kernels that go through them
TILE = THREADS * KEYS
# The points of a bucket are sorted in the registers of some threads, HELD in each, those of a
# longer one in a block's memory up to WHOLE, and beyond that each has its bit there, 32 WHOLE at a
# time.
HELD, WHOLE = 16, 4096
SPARSE = 2  # points of a bucket on average, below which a point takes less than a bucket
_SIZES = (
    ("THREADS", THREADS),
    ("POINTS", POINTS),
    ("KEYS", KEYS),
    ("HELD", HELD),
    ("WHOLE", WHOLE),
)
UNIT, WIDE_UNIT = (
    Unit("sort.cu", (("RECORD", record),), PARAMS, _SIZES) for record in ("uint4", "TwoWords")
)


class Buckets(NamedTuple):
    """Points by key: those of key k are from ``starts[k]`` to ``starts[k + 1]``, by number.

    What there is of them from ``starts[-1]`` on is undefined.
    """

    starts: Any  # (keys + 1,) int32
    records: Any  # (points, 4): what was given of each


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from (UNIT, WIDE_UNIT)


def sort_points(device: Device, keys: Any, number_of_keys: int, records: Any) -> Buckets:
    """Put `records` (points, 4), of 16 or 32 bytes each, in the order of the `keys` (int32).

    The key `number_of_keys` marks points nobody wants.
    """
    count = keys.shape[0]
    tiles = number_of_keys // TILE + 1
    counters = device.empty((tiles * TILE + _multiple(tiles + 1, 4),), np.int32)
    counts, tile_counts = counters[: tiles * TILE], counters[tiles * TILE :][:tiles]
    sparse = int(count < SPARSE * number_of_keys)
    # Threads of a bucket, with room for half as many points again as buckets have on average
    bits = 0 if sparse else lane_bits(-(-3 * count // (HELD * number_of_keys)))
    long_count = counters[-1:]
    long_keys = device.empty((count // (HELD << bits) + 1,), np.int32)
    ranks = device.empty((_multiple(count, THREADS * POINTS),), np.int32)
    found, ordered = device.empty((count,), np.int32), device.empty(records.shape, records.dtype)
    numbers = count, number_of_keys, counters.shape[0] // 4, bits, sparse
    params = pack(PARAMS, dict(zip(PARAMS.names, numbers, strict=True)))
    unit = UNIT if records.dtype.itemsize == 4 else WIDE_UNIT

    def launch(kernel: str, threads: int, *arrays: Any) -> None:
        device.launch(unit, kernel, -(-threads // THREADS), THREADS, arrays, params)

    launch("clear", counters.shape[0] // 4, counters)
    threads = -(-count // POINTS)
    launch("count_points", threads, keys, counts, tile_counts, ranks)
    launch("find_starts", tiles * THREADS, counts, tile_counts, long_count, long_keys)
    launch("place_points", threads, keys, ranks, counts, found)
    threads = count if sparse else number_of_keys << bits
    arrays = keys, counts, found, long_count, long_keys, records, ordered
    launch("order_points", threads, *arrays)
    return Buckets(counts[: number_of_keys + 1], ordered)


def _multiple(count: int, of: int) -> int:
    """The least multiple that is not smaller."""
    return -(-count // of) * of
