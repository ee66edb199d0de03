"""Values of 16 bits, which Numba does not know, as the integers that they are in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from cudeform.cpu.language.compiler import inlined

__all__ = ["copy_widened", "widened", "words"]


def words(array: np.ndarray) -> np.ndarray:
    """The array as kernels read it: float16 as uint16, bfloat16 as int16, others as they are."""
    if array.dtype.itemsize > 2:
        return array
    return array.view(np.uint16 if array.dtype == np.float16 else np.int16)


def widened(word: Any) -> Any:
    """For kernels: the value of an element of `words`, in the dtype of sums."""
    raise NotImplementedError


@overload(widened)
def _widened(word):
    if word == types.uint16:
        return _of_half
    if word == types.int16:
        return lambda word: np.uint32(np.uint32(np.uint16(word)) << np.uint32(16)).view(np.float32)
    return lambda word: word


def _of_half(word):
    bits = np.uint32(word)
    shifted = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
    number = shifted.view(np.float32) * np.float32(2.0**112)  # exact, of subnormals too
    other = np.uint32(shifted | np.uint32(0x7F800000)).view(np.float32)  # infinite, or NaN
    value = number if shifted < np.uint32(0x0F800000) else other
    return -value if bits & np.uint32(0x8000) else value


@inlined
def copy_widened(source, at, target, to, count):
    """Copy any number of elements of `words`; the views tell LLVM that no index is negative."""
    given, copied = source[at:], target[to:]
    for i in range(count):
        copied[i] = widened(given[i])
