"""What is an array: its kind, by type alone, and the few questions the rest asks of one.

A kind says which backend computes on it. Frameworks that the caller has not imported are
never imported: CuPy is looked up in ``sys.modules``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cudeform import checks

__all__ = [
    "DTYPES",
    "Kind",
    "contiguous",
    "dtype_name",
    "kind_of",
    "namespace",
    "register",
    "sum_dtype",
    "type_name",
]

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Kind:
    """A family of arrays: its name for messages, the backend that computes on it, its device."""

    name: str
    backend: Any  # "cpu" or "cuda", the subpackage with the implementation, or what stands for it
    device: Callable[[Any], Any]  # array -> a comparable, printable device
    to_host: Callable[[Any], np.ndarray] = np.asarray


_HOST = Kind("numpy", "cpu", lambda array: "cpu")
_CUPY = Kind("cupy", "cuda", lambda array: f"cuda:{array.device.id}", lambda array: array.get())
_kinds: dict[type, Kind | None] = {np.ndarray: _HOST}


def register(array_type: type, kind: Kind | None) -> None:
    """Say that arrays of exactly this type are of this kind; None forgets the type."""
    if kind is None:
        _kinds.pop(array_type, None)
    else:
        _kinds[array_type] = kind


def _find_kind(array_type: type) -> Kind | None:
    cupy = sys.modules.get("cupy")
    if cupy is not None and issubclass(array_type, cupy.ndarray):
        return _CUPY
    if issubclass(array_type, np.ma.MaskedArray):
        return None  # its mask would be lost
    if issubclass(array_type, np.ndarray):
        return _HOST
    return None


def type_name(value: Any) -> str:
    """The type of a value as a user would write it: list, numpy.float32; None itself."""
    if value is None:
        return "None"
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def kind_of(op: str, arrays: Mapping[str, Any], optional: Container[str] = ()) -> Kind:
    """The one kind of all the arrays given, after checking kind, device and dtype of each.

    Raises
    ------
    TypeError
        An argument that is not `optional` is None, an argument is no array of a known kind or
        not of a supported dtype, or two arguments are of different kinds, devices or dtypes;
        the message names both.
    """
    first = None
    for name, array in arrays.items():
        if array is None and name in optional:
            continue
        array_type = type(array)
        if array_type not in _kinds:
            found = _find_kind(array_type)
            if found is None:
                checks.fail(
                    op, name, "to be a NumPy or CuPy array", type_name(array), error=TypeError
                )
            _kinds[array_type] = found
        kind = _kinds[array_type]
        if dtype_name(array.dtype) not in DTYPES:
            checks.fail(
                op, name, "of dtype " + ", ".join(DTYPES), repr(array.dtype), error=TypeError
            )
        if first is None:
            first, first_name, first_device = kind, name, kind.device(array)
        elif kind is not first:
            why = "all arrays of one call belong to one framework"
            checks.fail(
                op,
                name,
                f"to be a {first.name} array like `{first_name}`",
                kind.name,
                why,
                TypeError,
            )
        elif kind.device(array) != first_device:
            checks.fail(
                op,
                name,
                f"on {first_device} like `{first_name}`",
                kind.device(array),
                error=TypeError,
            )
    checks.same_dtype(op, **arrays)
    return first


def namespace(kind: Kind) -> Any:
    """The module with the functions for arrays of this kind; it is imported, for they exist."""
    return sys.modules[kind.name]


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype) -> str:
    """The name of a dtype in native byte order; NumPy's own attribute takes microseconds."""
    return dtype.name if dtype.isnative else str(dtype)


def contiguous(array: Any) -> Any:
    """The array itself if it is C-contiguous, else a C-contiguous copy; None stays None."""
    if array is None or array.flags.c_contiguous:
        return array
    return array.copy()


def sum_dtype(dtype: Any) -> np.dtype:
    """The dtype that coordinates and sums have: float32, and float64 for float64 arrays."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
