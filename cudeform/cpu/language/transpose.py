"""Channels last and back: the kernels compute on channels that lie side by side."""

from __future__ import annotations

import functools

import numpy as np

from cudeform.cpu.language.bare import bare
from cudeform.cpu.language.compiler import inlined, unrolled
from cudeform.cpu.language.simd import fma, lanes, load, splat, store, transpose_square


def frozen(array: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """The elements in a flat read-only view, so that a kernel is compiled once; empty for None."""
    if array is None:
        return _nothing(like.dtype)
    flat = array.ravel()  # a view of its own, also of a flat array
    flat.setflags(write=False)
    return flat


@functools.lru_cache(maxsize=16)
def _nothing(dtype: np.dtype) -> np.ndarray:
    return frozen(np.empty(0, dtype), np.empty(0, dtype))


@unrolled
def transpose(source, at, step, rows, columns, target, to, pitch):
    """target[to + j*pitch + i] = source[at + i*step + j] for i < rows, j < columns."""
    width = lanes(source)
    if rows < width or columns < width:
        for i in range(rows):
            for j in range(columns):
                target[to + j * pitch + i] = source[at + i * step + j]
        return
    across = (columns + width - 1) // width
    down = (rows + width - 1) // width
    for block in range(down * across):
        # along the rows of the array whose rows are further apart: a page of memory each
        if step > pitch:
            i, j = block // across, block % across
        else:
            i, j = block % down, block // down
        # the last squares write again what is in the ones before
        i, j = min(i * width, rows - width), min(j * width, columns - width)
        start, end = at + i * step + j, to + j * pitch + i
        transpose_square(source, start, step, target, end, pitch)


@inlined
def copy_plain(source, at, target, to, count):
    """Copy any number of elements."""
    given, copied = bare(source, at), bare(target, to)
    for i in range(count):
        copied[i] = given[i]


@inlined
def copy_row(source, at, target, to, count):
    """Copy `count` elements, a multiple of the lanes of a vector."""
    for i in range(0, count, lanes(source)):
        store(target, to + i, load(source, at + i))


@inlined
def add_row(source, at, target, to, count):
    """Add `count` elements, a multiple of the lanes of a vector, to others."""
    one = splat(source, source.dtype.type(1))
    for i in range(0, count, lanes(source)):
        store(target, to + i, fma(one, load(source, at + i), load(target, to + i)))
