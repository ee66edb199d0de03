"""Arrays of any strides, as kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cudeform.cpu.language.halves import words

__all__ = ["Lying", "aligned", "lying"]


class Lying(NamedTuple):
    """How an array lies in its memory."""

    flat: np.ndarray  # read-only; of 16 bits as `words`
    start: int  # where the first element is
    strides: tuple[int, ...]  # in elements


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy if an element is not at a multiple of its size, as kernels count."""
    flags, size = array.flags, array.itemsize
    if flags.c_contiguous or (flags.aligned and not any(s % size for s in array.strides)):
        return array
    return np.ascontiguousarray(array)


def lying(array: np.ndarray) -> Lying:
    """An aligned array without empty axes, not copied."""
    array = words(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    spans = [stride * (count - 1) for stride, count in zip(strides, array.shape, strict=True)]
    lowest = tuple(slice(-1, None) if span < 0 else slice(0, 1) for span in spans)
    size = sum(map(abs, spans)) + 1
    flat = as_strided(array[lowest], (size,), (array.itemsize,), writeable=False)
    return Lying(flat, -sum(span for span in spans if span < 0), strides)
