"""The vocabulary of argument checks: one wording for every operator.

Every message names the operator, the argument, what was expected and what was given::

    deform_conv2d: expected `offset` of shape (2, 36, 7, 6) = (N, 2*offset_groups*kh*kw, Ho, Wo),
    got (2, 18, 7, 6)
"""

from __future__ import annotations

import math
import operator as _operator
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

__all__ = [
    "choice",
    "fail",
    "image_axes",
    "integer",
    "needs",
    "non_empty",
    "number",
    "pad_pairs",
    "pair",
    "rank",
    "same_dtype",
    "shape",
]


def fail(
    op: str, argument: str, expected: str, got: Any, why: str = "", error: type = ValueError
) -> NoReturn:
    """Raise `error` in the house's wording."""
    raise error(f"{op}: expected `{argument}` {expected}, got {got}" + (f" ({why})" if why else ""))


def choice(op: str, argument: str, value: Any, options: Sequence[str]) -> str:
    """One of a few strings."""
    if not isinstance(value, str) or value not in options:
        fail(op, argument, "to be one of " + ", ".join(map(repr, options)), repr(value))
    return value


def integer(
    op: str,
    argument: str,
    value: Any,
    minimum: int,
    expected: str = "to be an integer",
    why: str = "",
) -> int:
    """An integer of at least `minimum`; `expected` is the wording for another type."""
    try:
        result = _operator.index(value)
    except TypeError:
        fail(op, argument, expected, repr(value), why, TypeError)
    if result < minimum:
        fail(op, argument, f"to be at least {minimum}", repr(value), why)
    return result


def number(op: str, argument: str, value: Any) -> float:
    """A finite real number."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        fail(op, argument, "to be a number", repr(value), error=TypeError)
    if not math.isfinite(result):
        fail(op, argument, "to be finite", repr(value))
    return result


def pair(op: str, argument: str, value: Any, minimum: int) -> tuple[int, int]:
    """An integer, or a (y, x) pair of integers, each at least `minimum`."""
    expected = "to be an integer or a pair of integers"
    why = "one integer for both axes or a pair (y, x)"
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    if len(value) != 2:
        fail(op, argument, expected, repr(value), why)
    y, x = (integer(op, argument, v, minimum, expected, why) for v in value)
    return y, x


def pad_pairs(op: str, argument: str, value: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding as an integer, (y, x), or ((top, bottom), (left, right))."""
    if isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value):
        if len(value) != 2:
            fail(op, argument, "to be ((top, bottom), (left, right))", repr(value))
        return pair(op, argument, value[0], 0), pair(op, argument, value[1], 0)
    y, x = pair(op, argument, value, 0)
    return (y, y), (x, x)


def image_axes(layout: str, channels: str = "C", height: str = "H", width: str = "W") -> str:
    """The axes of a batch of images by name, in a layout: "(N, C, H, W)"."""
    names = (height, width, channels) if layout == "NHWC" else (channels, height, width)
    return "(N, " + ", ".join(names) + ")"


def rank(op: str, argument: str, array: Any, symbols: str) -> None:
    """The number of axes, given as their names: "(N, C, H, W)"."""
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
    wanted = "to be None or some of " + ", ".join(map(repr, names))
    if isinstance(value, str) or not isinstance(value, Iterable):
        fail(op, "needs", wanted, repr(value), error=TypeError)
    value = tuple(value)
    for name in value:
        if name not in names:
            fail(op, "needs", wanted, repr(value))
        if name in absent:
            fail(op, "needs", f"without {name!r}", repr(value), f"no `{name}` was given")
    return frozenset(value)
