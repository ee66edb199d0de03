"""How the tasks of a launch are shared among threads.

`choose` and its like look at sizes alone, so that the same call adds in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from cudeform.cuda.program import address

THREADS, GATHER_THREADS, WARP = 256, 64, 32  # of a block, of one that gathers, of a warp
VECTOR_BYTES = 16  # that a thread moves at once, at most
LANES = 8  # whose vectors are a line of the cache
# Warps that are enough for a gather: two for each scheduler of a large GPU. With more a small one
# would wait for what each does before its first point. One number for all, so that all GPUs add in
# the same order.
ENOUGH_WARPS = 1024
LEAST_TILE = 64  # points of a block where there are few, so that there are some blocks
BLOCKS = 512  # enough for every GPU: with more, a block gets as many points as it has threads
PART_POINTS = 4  # points of a pixel, on average, that make a part: read together


def vector_of(dtype: Any, *channels: int) -> int:
    """Channels that move at once: up to 16 bytes of them, and a divisor of each number."""
    return gcd(VECTOR_BYTES // np.dtype(dtype).itemsize, *channels)


def vectors(dtype: str) -> Iterator[int]:
    """Every number of channels that `vector_of` may give."""
    widest = VECTOR_BYTES // (2 if "16" in dtype else int(dtype[-2:]) // 8)
    return (1 << power for power in range(widest.bit_length()))


def lane_bits(threads: int, most: int = WARP) -> int:
    """The logarithm of the threads that share a task, for so many threads or up to `most`."""
    return min(most.bit_length() - 1, (threads - 1).bit_length())


class Shares(NamedTuple):
    """How tasks are shared among threads: the logarithms of how many there are of each."""

    lanes: int = 0  # threads that share the channels of a slice, or the points of a task
    parts: int = 0  # of the points of a pixel; a warp has all of them
    slices: int = 0  # of the channels of a pixel

    @property
    def are_split(self) -> bool:
        """Whether it takes a kernel for that."""
        return self.parts + self.slices > 0

    @property
    def bits(self) -> int:
        """As `Gatherer` of ``gather.cuh`` reads them."""
        return self.lanes | self.parts << 8 | self.slices << 16


class Choice(NamedTuple):
    """A kernel, and how its tasks are shared among the threads of its blocks."""

    kernel: str
    tasks: int  # where they are sliced, slices of such
    per_block: int  # tasks
    threads: int = THREADS  # of a block
    vector: int = 1  # channels that a thread moves at once
    shares: Shares = Shares()

    @property
    def grid(self) -> int:
        return -(-self.tasks // self.per_block)


def choose(kernel: str, tasks: int, packs: int = 1, vector: int = 1) -> Choice:
    """For tasks of so many packs of a vector of channels each, which are alike: lanes alone."""
    lanes = lane_bits(packs)
    return Choice(kernel, tasks, THREADS >> lanes, vector=vector, shares=Shares(lanes))


def choose_tiles(kernel: str, points: int, packs: int, vector: int) -> Choice:
    """For a kernel whose blocks find the corners of a tile of points for all their channels."""
    lanes, tile = lane_bits(packs, LANES), THREADS
    while tile > max(LEAST_TILE, THREADS >> lanes) and points < BLOCKS * tile:
        tile //= 2
    return Choice(kernel, points, tile, vector=vector, shares=Shares(lanes))


def choose_gather(kernel: str, tasks: int, packs: int, vector: int, points: int | None) -> Choice:
    """For a kernel that gathers so many points together, or None: what later launches add to.

    Lanes share the channels. Where that makes too few warps, slices of the channels become tasks of
    their own, and the points of a pixel are halved and halved again, whose sums are added up at
    the end. Lanes make room for that in their warp as long as their vectors fill a line.
    """
    shares = Shares(lane_bits(packs))
    if points is None:
        kernel += "_sums"
    else:
        shares = _gather_shares(tasks, packs, points)
        kernel += "_split" if shares.are_split else ""
    per_block = GATHER_THREADS >> shares.lanes + shares.parts
    return Choice(kernel, tasks << shares.slices, per_block, GATHER_THREADS, vector, shares)


def _gather_shares(tasks: int, packs: int, points: int) -> Shares:
    lanes, channels = lane_bits(packs), (packs - 1).bit_length()
    enough = ENOUGH_WARPS * WARP
    if tasks << lanes >= enough:
        return Shares(lanes)
    most = lane_bits(WARP) - min(lanes, lane_bits(LANES))
    parts = 0
    while (
        parts < most
        and tasks << channels + parts < enough
        and points >= tasks * PART_POINTS << parts + 1
    ):
        parts += 1
    lanes = min(lanes, lane_bits(WARP) - parts)
    return Shares(lanes, parts, channels - lanes)


def is_aligned(array: Any) -> bool:
    """Whether an array starts on the grid of vectors."""
    return address(array) % VECTOR_BYTES == 0


def aligned(array: Any) -> Any:
    """The array, or a copy where it starts off the grid of vectors.

    Narrower vectors would add in another order, and equal arguments give equal bytes wherever
    they are.
    """
    return array if is_aligned(array) else array.copy()
