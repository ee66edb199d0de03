"""What follows from a plan alone, remembered for the next call as long as it is small."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

_MOST = 256  # results of a function
_LARGEST = 1 << 18  # bytes of a result, about


class _TooLarge(Exception):
    """Carries a result past a cache, which remembers no exceptions."""


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call a function only once for equal arguments, given by position, if its result is small.

    One call of a large batch is cut into so many parts that their list is megabytes; to make it
    again takes little beside the work that it describes.
    """

    @functools.lru_cache(maxsize=_MOST)
    def small(*arguments: Hashable) -> Any:
        result = function(*arguments)
        if _size(result) > _LARGEST:
            raise _TooLarge(result)
        return result

    @functools.wraps(function)
    def call(*arguments: Hashable) -> Any:
        try:
            return small(*arguments)
        except _TooLarge as large:
            return large.args[0]

    call.cache_clear, call.cache_info = small.cache_clear, small.cache_info
    return call


def _size(value: Any) -> int:
    """Bytes of arrays and of tuples and lists with all that is in them, about."""
    if isinstance(value, np.ndarray):
        return 128 + value.nbytes
    if isinstance(value, (tuple, list)):
        return 64 + sum(8 + _size(item) for item in value)
    return 32
