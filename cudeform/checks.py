"""The vocabulary of argument checks: one wording for every operator.

Every message names the operator, the argument, what was expected and what was given::

    deform_conv2d: expected `offset` of shape (2, 36, 7, 6) = (N, 2*offset_groups*kh*kw, Ho, Wo),
    got (2, 18, 7, 6)
"""

from __future__ import annotations

import math
import operator as _operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NoReturn

import numpy as np


def fail(
    op: str, argument: str, expected: str, got: Any, why: str = "", error: type = ValueError
) -> NoReturn:
    """Raise `error` in the house's wording."""
    raise error(f"{op}: expected `{argument}` {expected}, got {got}" + (f" ({why})" if why else ""))


def type_name(value: Any) -> str:
    """The type of a value as a user would write it: list, numpy.float32; None itself."""
    if value is None:
        return "None"
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def shown(value: Any) -> str:
    """A value for a message: on one line and short, whatever it is; of arrays the type."""
    if _is_array(value):
        return type_name(value)
    try:
        text = " ".join(_SHORT.repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        text = type_name(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and not isinstance(value, np.generic)


def _is_scalar(value: Any) -> bool:
    """Whether a value may stand for a number: no flag, no text, no span of time, no array."""
    if type(value) is int or type(value) is float:
        return True
    no_number = (bool, np.bool_, np.timedelta64, np.complexfloating)
    return not (isinstance(value, no_number) or hasattr(value, "__len__") or _is_array(value))


def choice(op: str, argument: str, value: Any, options: Sequence[str]) -> str:
    """One of a few strings."""
    if not isinstance(value, str) or value not in options:
        fail(op, argument, "to be one of " + ", ".join(map(repr, options)), shown(value))
    return value


def flag(op: str, argument: str, value: Any) -> bool:
    """A truth value; what only counts as true or false is another argument in the wrong place."""
    if not isinstance(value, (bool, np.bool_)):
        fail(op, argument, "to be True or False", shown(value), error=TypeError)
    return bool(value)


_MOST = 2**31 - 1  # what kernels count with has 32 bits


def integer(
    op: str,
    argument: str,
    value: Any,
    minimum: int,
    expected: str = "to be an integer",
    why: str = "",
    maximum: int = _MOST,
) -> int:
    """An integer from `minimum` to `maximum`; `expected` is the wording for another type."""
    try:
        result = _operator.index(value) if _is_scalar(value) else None
    except (TypeError, ValueError, OverflowError):
        result = None
    if result is None:
        fail(op, argument, expected, shown(value), why, TypeError)
    if result < minimum:
        fail(op, argument, f"to be at least {minimum}", shown(value), why)
    if result > maximum:
        fail(op, argument, f"to be at most {maximum}", shown(value), why)
    return result


_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


def is_symbol(value: Any) -> bool:
    """Whether a value stands for an integer that a tracer does not know: to look at it fixes it."""
    return hasattr(value, "__sym_max__")


def number(op: str, argument: str, value: Any) -> float:
    """A finite real number, also in float32."""
    try:
        result = float(value) if _is_scalar(value) else None
    except OverflowError:
        result = _LARGEST * 2
    except (TypeError, ValueError):
        result = None
    if result is None:
        fail(op, argument, "to be a number", shown(value), error=TypeError)
    if not abs(result) <= _LARGEST:
        finite = "to be finite in float32" if abs(result) < math.inf else "to be finite"
        fail(op, argument, finite, shown(value))
    return result


def positive(op: str, argument: str, value: Any) -> float:
    """A finite number above 0, also in float32."""
    result = number(op, argument, value)
    if result < _SMALLEST:
        above = "to be above 0" if result <= 0 else "to be above 0 in float32"
        fail(op, argument, above, shown(value))
    return result


def pair(op: str, argument: str, value: Any, minimum: int) -> tuple[int, int]:
    """An integer, or a (y, x) pair of integers, each at least `minimum`."""
    expected = "to be an integer or a pair of integers"
    why = "one integer for both axes or a pair (y, x)"
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    if len(value) != 2:
        fail(op, argument, expected, shown(value), why)
    y, x = (integer(op, argument, v, minimum, expected, why) for v in value)
    return y, x


def pad_pairs(op: str, argument: str, value: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding as an integer, (y, x), or ((top, bottom), (left, right))."""
    if isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value):
        if len(value) != 2 or not all(isinstance(v, (tuple, list)) for v in value):
            fail(op, argument, "to be ((top, bottom), (left, right))", shown(value))
        return pair(op, argument, value[0], 0), pair(op, argument, value[1], 0)
    y, x = pair(op, argument, value, 0)
    return (y, y), (x, x)


def listed_pairs(op: str, argument: str, value: Any, count: int) -> None:
    """So many (H, W) in a tuple or list; what is in them is not looked at."""
    symbols = "(L, (H, W))"
    for size in value:
        if not isinstance(size, (tuple, list)):
            fail(op, argument, f"of pairs {symbols}", shown(size), error=TypeError)
    if len(value) != count:
        fail(op, argument, f"of shape ({count}, 2) = {symbols}", f"length {len(value)}")


def image_axes(layout: str, channels: str = "C", height: str = "H", width: str = "W") -> str:
    """The axes of a batch of images by name, in a layout: "(N, C, H, W)"."""
    names = (height, width, channels) if layout == "NHWC" else (channels, height, width)
    return "(N, " + ", ".join(names) + ")"


def rank(op: str, argument: str, array: Any, symbols: str) -> None:
    """The number of axes, given as their names: "(N, C, H, W)"."""
    if not _is_array(array):
        fail(op, argument, f"to be an array {symbols}", shown(array), error=TypeError)
    want = symbols.count(",") + 1 if symbols.strip("(,) ") else 0
    if array.ndim != want:
        fail(op, argument, f"to have {want} axes {symbols}", f"shape {tuple(array.shape)}")


def shape(op: str, argument: str, array: Any, want: tuple[int, ...], symbols: str) -> None:
    """An exact shape, with the meaning of each axis."""
    got = tuple(array.shape)
    if got != tuple(want):
        fail(op, argument, f"of shape {tuple(want)} = {symbols}", got)


def non_empty(op: str, argument: str, array: Any, symbols: str, may_be_empty: int = 0) -> None:
    """No axis of size zero, except the first `may_be_empty` axes."""
    if 0 in tuple(array.shape)[may_be_empty:]:
        fail(op, argument, f"to be non-empty {symbols}", f"shape {tuple(array.shape)}")


def same_dtype(op: str, **arrays: Any) -> None:
    """All arrays of the dtype of the first; None is skipped."""
    given = [(name, array) for name, array in arrays.items() if array is not None]
    first, reference = given[0]
    for name, array in given[1:]:
        if array.dtype != reference.dtype:
            fail(
                op, name, f"of dtype {reference.dtype} like `{first}`", array.dtype, error=TypeError
            )


def needs(op: str, value: Any, given: dict[str, Any], names: tuple[str, ...]) -> frozenset[str]:
    """The gradients to compute, by name; by default those of all arguments that were given."""
    absent = {name for name, array in given.items() if array is None}
    if value is None:
        return frozenset(names) - absent
    if isinstance(value, _NO_NAMES) or not isinstance(value, Iterable) or _is_array(value):
        fail(op, "needs", _some_of(names), shown(value), error=TypeError)
    value = tuple(islice(value, MOST_NEEDED))
    for name in value:
        if not isinstance(name, str) or name not in names:
            fail(op, "needs", _some_of(names), shown(value))
        if name in absent:
            fail(op, "needs", f"without {name!r}", shown(value), f"no `{name}` was given")
    if len(value) == MOST_NEEDED:  # or more: an iterator may have no end
        fail(op, "needs", _some_of(names), shown(value))
    return frozenset(value)


def _some_of(names: tuple[str, ...]) -> str:
    return "to be None or some of " + ", ".join(map(repr, names))


_NO_NAMES = (str, bytes, bytearray, Mapping)
MOST_NEEDED = 64  # names, and a few twice
