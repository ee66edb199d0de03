"""What is an array: its kind, by type alone, and the few questions the rest asks of one.

A kind says which backend computes on it. Frameworks that the caller has not imported are
never imported: CuPy is looked up in ``sys.modules``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from cudeform import checks
from cudeform.checks import type_name

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

    `dtype_name`, `cast`, `constant` and `contiguous` are what functions that only rearrange arrays
    need besides those that go by one name in all frameworks.
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
    # an array of a derived type as one of the type that the backend computes on
    plain: Callable[[Any], Any] = lambda array: array


_HOST = Kind("numpy", "cpu", lambda array: "cpu", plain=np.asarray)
_CUPY = Kind(
    "cupy",
    "cuda",
    device=lambda array: f"cuda:{array.data.device_id}",
    to_host=lambda array: array.get(),
    constant=lambda values, like: namespace(_CUPY).asarray(values, like.dtype),
    plain=lambda array: array.view(namespace(_CUPY).ndarray),
)
_MOST_KINDS = 64  # a program may make ever more types, and what is in a dictionary stays
_registered: dict[type, Kind] = {np.ndarray: _HOST}
_kinds: dict[type, Kind] = dict(_registered)  # and types derived from these


def register(array_type: type, kind: Kind | None) -> None:
    """Say that arrays of this type, or of one derived from it, are of this kind; None forgets."""
    for kinds in (_registered, _kinds):
        if kind is None:
            kinds.pop(array_type, None)
        else:
            kinds[array_type] = kind


def _find_kind(array_type: type) -> Kind | None:
    """The kind of a type that is not in `_kinds`."""
    cupy = sys.modules.get("cupy")
    bases = {} if cupy is None else {cupy.ndarray: _CUPY}
    bases.update(_registered)
    if issubclass(array_type, (np.ma.MaskedArray, np.matrix)):
        return None  # a mask would be lost; what is done to a matrix means something else
    kind = next((of_base for base, of_base in bases.items() if issubclass(array_type, base)), None)
    if kind is not None and len(_kinds) < _MOST_KINDS:
        _kinds[array_type] = kind
    return kind


def kind_of_type(array_type: type) -> Kind | None:
    """The kind of a type of arrays that there were some of before."""
    return _kinds.get(array_type)


def call(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Answer a call with arrays of derived types: what they add is nothing that results have."""
    return function(**{argument: _plain(value) for argument, value in given.items()})


def _plain(value: Any) -> Any:
    array_type = type(value)
    kind = _kinds.get(array_type) or _find_kind(array_type)
    return value if kind is None or array_type in _registered else kind.plain(value)


def known(op: str, name: str, array: Any) -> Kind:
    """The kind of an array of whatever dtype, or a TypeError for what is none."""
    return _kinds.get(type(array)) or _find_kind(type(array)) or _refuse(op, name, array, {})


# What else to do with values of a type, by the module that it comes from.
_ELSEWHERE = {
    "PIL": "numpy.asarray makes one of it, (H, W, C) of uint8",
    "dask": "cudeform.dask.deform_conv2d takes it",
    "keras": "cudeform.keras has layers for it",
    "tensorflow": "cudeform.keras has layers for it",
}


def _refuse(op: str, name: str, array: Any, others: Mapping[str, Any]) -> NoReturn:
    """Say what was expected in place of an array that is none."""
    expected = "to be a NumPy or CuPy array"
    for other, given in others.items():
        kind = _kinds.get(type(given)) or _find_kind(type(given))
        if kind is not None and kind.backend is None:
            expected = f"to be a {kind.name.partition('.')[0]} array like `{other}`"
            break
    why = _ELSEWHERE.get(type(array).__module__.partition(".")[0], "")
    checks.fail(op, name, expected, type_name(array), why, TypeError)


def same_place(op: str, name: str, array: Any, first_name: str, first: Any) -> None:
    """Check that an array is one of the kind and on the device of the first, of whatever dtype."""
    kind, first_kind = known(op, name, array), known(op, first_name, first)
    if kind is not first_kind:
        why = "all arrays of one call belong to one framework"
        expected = f"to be a {first_kind.name} array like `{first_name}`"
        checks.fail(op, name, expected, kind.name, why, TypeError)
    if kind.device(array) != first_kind.device(first):
        expected = f"on {first_kind.device(first)} like `{first_name}`"
        checks.fail(op, name, expected, kind.device(array), error=TypeError)


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
        kind = _kinds.get(type(array)) or _find_kind(type(array))
        if kind is None:
            _refuse(op, name, array, arrays)
        dtype = array.dtype
        if dtype is not first_dtype:
            mixed = True
            if kind.dtype_name(dtype) not in DTYPES:
                expected = "of dtype " + ", ".join(DTYPES)
                checks.fail(op, name, expected, repr(dtype), error=TypeError)
        if first is None:
            first, first_name, first_dtype, mixed = kind, name, dtype, False
            first_device = kind.device(array)
        elif kind is not first or kind is not _HOST and kind.device(array) != first_device:
            same_place(op, name, array, first_name, arrays[first_name])
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
