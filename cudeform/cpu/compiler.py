"""How a kernel is compiled: without the GIL, with a copy on disk for the next process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.np.unsafe.ndarray import to_fixed_tuple

__all__ = ["inlined", "inner", "kernel", "record"]


def _fingerprint() -> str | None:
    """A digest of this package's sources; None where they are not files."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    if not sources:
        return None
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


_SOURCES = _fingerprint()


_OPTIONS = {"nogil": True, "error_model": "numpy"}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for Python to call, at the first call of each dtype; cached on disk where possible.

    Numba looks at the one file a kernel stands in to tell whether its copy on disk is stale, and
    would keep a kernel that calls into another, edited file. Here any edit makes all copies stale.
    """
    try:
        compiled = njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither the package, nor NUMBA_CACHE_DIR, nor the home can be written
        return njit(**_OPTIONS)(function)
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if _SOURCES is not None and hasattr(index, "_source_stamp"):
        index._source_stamp = _SOURCES
    return compiled


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for kernels to call: nothing for Python, which saves half of the time it takes."""
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of each caller."""
    return njit(inline="always", **_OPTIONS)(function)


def record(kind: type) -> Callable[..., Any]:
    """For kernels: the named tuple of integers that stands in an array from an index on.

    From Python a kernel takes an array in the time of one or two integers.
    """
    size = len(kind._fields)

    @inlined
    def read(numbers, at):
        return kind(*to_fixed_tuple(numbers[at : at + size], size))

    return read
