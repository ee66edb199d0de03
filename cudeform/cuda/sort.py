"""Points in buckets by their keys, by the kernels of ``sort.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.compile import Unit, pack
from cudeform.cuda.device import Device
from cudeform.cuda.lanes import THREADS, lane_bits

PARAMS = np.dtype([(name, "i4") for name in ("count", "keys", "counters", "lane_bits")], align=True)
POINTS, KEYS = 4, 4  # of a thread, in the kernels that go through them
TILE = THREADS * KEYS
# The points of a bucket are put in order by some threads that have HELD in registers each, those
# of a longer one in a block's memory up to WHOLE, and beyond that each has its bit there, 16 WHOLE
# at a time.
HELD, WHOLE = 16, 4096
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
    counters: Any = None  # (2,) int32, of 0, for who goes through them


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from (UNIT, WIDE_UNIT)


class Sorting:
    """Points on their way into buckets.

    Whoever has their keys counts them, by ``buckets.cuh``, into `counts`, and keeps what that says
    as their `ranks`.

    Attributes
    ----------
    counts : (keys + 1 or more,) int32
        0 at first; in the end where the bucket of each key starts.
    ranks : (count or more,) int32
    """

    def __init__(self, device: Device, count: int, number_of_keys: int) -> None:
        self._device, self._keys = device, number_of_keys
        self._tiles = tiles = number_of_keys // TILE + 1
        self._counters = device.empty((tiles * TILE + 4,), np.int32)
        self.counts = self._counters[: tiles * TILE]
        self.ranks = device.empty((_multiple(count, THREADS * POINTS),), np.int32)
        # Threads of a bucket, with room for a third of what buckets have on average in each
        self._bits = bits = lane_bits(-(-3 * count // (HELD // 2 * number_of_keys)))
        numbers = count, number_of_keys, self._counters.shape[0] // 4, bits
        self._params = pack(PARAMS, dict(zip(PARAMS.names, numbers, strict=True)))
        self._launch("clear", self._counters.shape[0] // 4, self._counters)

    def count(self, keys: Any) -> None:
        """Count points by their keys; the key of those that nobody wants is behind all others."""
        self._launch("count_points", -(-keys.shape[0] // POINTS), keys, self.counts, self.ranks)

    def order(self, keys: Any, records: Any) -> Buckets:
        """Put what is kept of each counted point into buckets."""
        count, device = keys.shape[0], self._device
        numbers, ordered = (
            device.empty((_multiple(count, 4),), np.int32),
            device.empty(records.shape, records.dtype),
        )
        tile_counts = device.empty((self._tiles,), np.int32)
        longer = self._counters[-2:], device.empty((count // (HELD << self._bits) + 1,), np.int32)
        threads = self._tiles * THREADS
        self._launch("count_tiles", threads, self.counts, tile_counts)
        self._launch("find_starts", threads, self.counts, tile_counts, *longer)
        self._launch("place_points", -(-count // POINTS), keys, self.ranks, self.counts, numbers)
        arrays = (self.counts, numbers, records, *longer, ordered)
        unit = UNIT if records.dtype.itemsize == 4 else WIDE_UNIT
        self._launch("order_points", self._keys << self._bits, *arrays, unit=unit)
        return Buckets(self.counts[: self._keys + 1], ordered, self._counters[-4:-2])

    def _launch(self, kernel: str, threads: int, *arrays: Any, unit: Unit = UNIT) -> None:
        blocks = -(-threads // THREADS), THREADS
        self._device.launch(unit, kernel, *blocks, arrays, self._params)


def sort_points(device: Device, keys: Any, number_of_keys: int, records: Any) -> Buckets:
    """Put `records` (points, 4), of 16 or 32 bytes each, in the order of the `keys` (int32).

    The key `number_of_keys` marks points nobody wants.
    """
    sorting = Sorting(device, keys.shape[0], number_of_keys)
    sorting.count(keys)
    return sorting.order(keys, records)


def _multiple(count: int, of: int) -> int:
    """The least multiple that is not smaller."""
    return -(-count // of) * of
