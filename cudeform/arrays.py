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
    "offset_dtypes",
    "register",
    "sum_dtype",
    "sum_dtype_name",
    "type_name",
    "widened",
]

DTYPES = ("float16", "bfloat16", "float32", "float64")


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype) -> str:
    """The name of a dtype in native byte order; NumPy's own attribute takes microseconds."""
    return dtype.name if dtype.isnative else str(dtype)


def contiguous(array: Any) -> Any:
    """The array itself if it is C-contiguous, else a C-contiguous copy; None stays None."""
    if array is None or array.flags.c_contiguous:
        return array
    return array.copy()


@dataclass(frozen=True)
class Kind:
    """A family of arrays: its name for messages, the backend that computes on it, its device.

    The last four are what functions that only rearrange arrays need besides those that go by one
    name in all frameworks.
    """

    name: str  # also of the module with the functions for its arrays
    backend: str | None  # "cpu" or "cuda", the subpackage that computes; None: a bridge does
    device: Callable[[Any], Any]  # array -> a comparable, printable device
    to_host: Callable[[Any], np.ndarray] = np.asarray
    dtype_name: Callable[[Any], str] = dtype_name
    cast: Callable[[Any, Any], Any] = lambda array, dtype: array.astype(dtype)
    # numbers in the dtype and place of an array
    constant: Callable[[Any, Any], Any] = lambda values, like: np.asarray(values, like.dtype)
    contiguous: Callable[[Any], Any] = contiguous


_HOST = Kind("numpy", "cpu", lambda array: "cpu")
_CUPY = Kind(
    "cupy",
    "cuda",
    device=lambda array: f"cuda:{array.device.id}",
    to_host=lambda array: array.get(),
    constant=lambda values, like: namespace(_CUPY).asarray(values, like.dtype),
)
_kinds: dict[type, Kind | None] = {np.ndarray: _HOST}


def register(array_type: type, kind: Kind | None) -> None:
    """Say that arrays of this type, or of one derived from it, are of this kind; None forgets."""
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
    return next((k for base, k in tuple(_kinds.items()) if issubclass(array_type, base)), None)


def type_name(value: Any) -> str:
    """The type of a value as a user would write it: list, numpy.float32; None itself."""
    if value is None:
        return "None"
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def kind_of(
    op: str,
    arrays: Mapping[str, Any],
    optional: Container[str] = (),
    coordinates: Container[str] = (),
) -> Kind:
    """The one kind of all the arrays given, after checking kind, device and dtype of each.

    Those named in `coordinates` may be of float32 beside 16-bit ones.

    Raises
    ------
    TypeError
        An argument that is not `optional` is None, an argument is no array of a known kind or
        not of a supported dtype, or two arguments are of different kinds, devices or dtypes;
        the message names both.
    """
    first = first_dtype = None
    mixed = False
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
        kind, dtype = _kinds[array_type], array.dtype
        if dtype is not first_dtype:
            mixed = True
            if kind.dtype_name(dtype) not in DTYPES:
                wanted = "of dtype " + ", ".join(DTYPES)
                checks.fail(op, name, wanted, repr(dtype), error=TypeError)
        if first is None:
            first, first_name, first_dtype, mixed = kind, name, dtype, False
            first_device = kind.device(array)
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
    if mixed:  # or equal, but not the same object
        allowed = offset_dtypes(first.dtype_name(first_dtype))
        alike = {
            name: a
            for name, a in arrays.items()
            if name not in coordinates or a is None or first.dtype_name(a.dtype) not in allowed
        }
        checks.same_dtype(op, **alike)
    return first


def namespace(kind: Kind) -> Any:
    """The module with the functions for arrays of this kind; it is imported, for they exist."""
    return sys.modules[kind.name]


_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def sum_dtype(dtype: Any) -> np.dtype:
    """The dtype that coordinates and sums have: float32, and float64 for float64 arrays."""
    return _DOUBLE if dtype == _DOUBLE else _SINGLE


def sum_dtype_name(dtype: str) -> str:
    """The same by name."""
    return "float64" if dtype == "float64" else "float32"


def offset_dtypes(dtype: str) -> tuple[str, ...]:
    """The dtypes, by name, that offsets and points beside images of a dtype may have."""
    return (dtype, "float32") if dtype in ("float16", "bfloat16") else (dtype,)


def widened(kind: Kind, array: Any) -> Any:
    """An array of any framework in the dtype that coordinates and sums have."""
    wide = sum_dtype_name(kind.dtype_name(array.dtype))
    return kind.cast(array, getattr(namespace(kind), wide))
