"""Values in other dtypes than they are given or computed in, and copies, by all threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from cudeform import threads
from cudeform.cpu.language.bare import bare
from cudeform.cpu.language.compiler import kernel
from cudeform.cpu.language.halves import words
from cudeform.cpu.language.rows import write_rows
from cudeform.cpu.language.transpose import frozen

_AT_ONCE = 1 << 12  # elements of arrays without gaps: of a task at least
_EFFORT = 2  # multiplications in the time of one element, from memory to memory
_PIECE = 1 << 16  # elements that are rounded between copies, which stay in the cache


def rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in a dtype of fewer bits, or themselves."""
    if values.dtype == dtype:
        return values
    result = np.empty(values.shape, dtype)
    copy(values, result)
    return result


def copied(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous copy."""
    result = np.empty(array.shape, dtype)
    copy(array, result)
    return result


def copy(values: np.ndarray, target: np.ndarray) -> None:
    """Fill an array of the same shape, of any strides and perhaps of fewer bits."""
    narrows = values.dtype == np.float32 and target.dtype == np.float16
    _share(_round if narrows else _copy, values, target)


def add(values: np.ndarray, target: np.ndarray) -> None:
    """In place, where the target is a view too."""
    _share(partial(_compute, np.add), values, target)


def multiply(values: np.ndarray, target: np.ndarray) -> None:
    """In place; the values may be of fewer axes."""
    _compute(np.multiply, values, target)


def sum_first(values: np.ndarray, target: np.ndarray | None = None) -> np.ndarray:
    """The sum along the first axis."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add.reduce(values, 0, out=target)


def _compute(function: np.ufunc, values: np.ndarray, target: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # as kernels compute
        function(target, values, out=target)


def _copy(values: np.ndarray, target: np.ndarray) -> None:
    np.copyto(target, values, casting="same_kind")


def _round(values: np.ndarray, target: np.ndarray) -> None:
    """From float32 to float16.

    NumPy raises a flag of the processor for each number that is too small or too large, which takes
    25 times as long as to round it; and the gradients of large boxes are that small.
    """
    plain = values.flags.c_contiguous and target.flags.c_contiguous
    if target.size > _PIECE and not plain:
        axis = int(np.argmax(target.shape))
        halves = (np.array_split(array, 2, axis) for array in (values, target))
        for some in zip(*halves, strict=True):
            _round(*some)
        return
    found = target if plain else np.empty(target.shape, target.dtype)
    _write(frozen(values, values), words(found).reshape(-1))
    if not plain:
        target[...] = found


@kernel
def _write(source, target):
    write_rows(bare(source, 0), bare(target, 0), (0, 0, 0, 0), (1, source.size))


def _share(
    task: Callable[[np.ndarray, np.ndarray], object], values: np.ndarray, target: np.ndarray
) -> None:
    """Call task(some of the values, the same of the target) until all are done."""
    if values.flags.c_contiguous and target.flags.c_contiguous:
        values, target = values.reshape(-1), target.reshape(-1)
        step, axis = _AT_ONCE, 0
    else:
        step, axis = 1, int(np.argmax(target.shape))
        values, target = np.moveaxis(values, axis, 0), np.moveaxis(target, axis, 0)

    def some(first: int, last: int) -> None:
        here = slice(first * step, last * step)
        task(values[here], target[here])

    threads.share(some, -(-len(target) // step), _EFFORT * target.size)
