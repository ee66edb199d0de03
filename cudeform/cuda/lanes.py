"""How threads divide channels among them: sizes that host and kernels have in common."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Any

import numpy as np

from cudeform.cuda.device import address

__all__ = [
    "GATHER_THREADS",
    "THREADS",
    "WARP",
    "aligned",
    "is_aligned",
    "lane_bits",
    "vector_of",
    "vectors",
]

THREADS, GATHER_THREADS, WARP = 256, 64, 32  # of a block, of one that gathers, of a warp
VECTOR_BYTES = 16  # that a thread moves at once, at most


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


def is_aligned(array: Any) -> bool:
    """Whether an array starts on the grid of vectors."""
    return address(array) % VECTOR_BYTES == 0


def aligned(array: Any) -> Any:
    """The array, or a copy where it starts off the grid of vectors.

    Narrower vectors would add in another order, and equal arguments give equal bytes wherever
    they are.
    """
    return array if is_aligned(array) else array.copy()
