"""What kernels are lent: memory for copies, and their integers in an array."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SCRATCH_BYTES = 16 << 20  # of images laid out channels last at a time
_ALIGNMENT = 64  # bytes: a line of the cache
_FEW = 1 << 12  # elements: where they begin takes longer to find out than it saves


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """`numpy.empty` of one axis; vectors of a large one do not lie across lines of the cache."""
    if size < _FEW:
        return np.empty(size, dtype)
    room = np.empty(size + _ALIGNMENT // dtype.itemsize, dtype)
    first = -room.ctypes.data % _ALIGNMENT // dtype.itemsize
    return room[first : first + size]


@lru_cache(maxsize=256)
def numbers_of(*tuples: tuple[int, ...]) -> np.ndarray:
    """Tuples of integers one after the other, for kernels to read."""
    numbers = np.array(sum(tuples, ()), np.int64)
    numbers.setflags(write=False)
    return numbers
