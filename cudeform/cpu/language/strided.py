"""Arrays of any strides, as kernels take them."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cudeform.cpu.language.halves import words
from cudeform.cpu.language.transpose import frozen


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy if an element is not at a multiple of its size, as kernels count."""
    flags, size = array.flags, array.itemsize
    if flags.c_contiguous or (flags.aligned and not any(s % size for s in array.strides)):
        return array
    return np.ascontiguousarray(array)


def lying(array: np.ndarray) -> tuple[np.ndarray, int, list[int]]:
    """How an aligned array without empty axes lies in its memory: that as a flat read-only array,
    of 16 bits as `words`; where the first element is; the strides, in elements.
    """
    array = words(array)
    strides = [stride // array.itemsize for stride in array.strides]
    if array.flags.c_contiguous:  # it takes long to make views of any strides
        return frozen(array, array), 0, strides
    spans = [stride * (count - 1) for stride, count in zip(strides, array.shape, strict=True)]
    lowest = tuple(slice(-1, None) if span < 0 else slice(0, 1) for span in spans)
    size = sum(map(abs, spans)) + 1
    flat = as_strided(array[lowest], (size,), (array.itemsize,), writeable=False)
    return flat, -sum(span for span in spans if span < 0), strides
