"""What signatures tell a type checker: arrays of one framework come in, and the same come out."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

__all__ = [
    "Array",
    "Border",
    "Boxes",
    "Layout",
    "NamedTuple",
    "Padding",
    "Pair",
    "Precision",
]


class _HasShapeAndDtype(Protocol):
    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...


# All arrays of a call are of one framework: what those of two have in common is of no use.
Array = TypeVar("Array", bound=_HasShapeAndDtype)
Boxes: TypeAlias = Array | Sequence[Array]
Pair: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
Layout: TypeAlias = Literal["NCHW", "NHWC"]
Border: TypeAlias = Literal["zeros", "clamp"]
Precision: TypeAlias = Literal["ieee", "tf32"]

if not TYPE_CHECKING:
    _typed = NamedTuple

    class _OfTuple(type):
        """Makes a named tuple of the body of a class, whatever else that is derived from."""

        def __new__(meta, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(meta, name, bases, body)
            return types.new_class(name, (_typed,), exec_body=lambda ns: ns.update(body))

    class NamedTuple(metaclass=_OfTuple):
        """`typing.NamedTuple`, for classes that are generic to type checkers.

        Python 3.10 refuses those, and frameworks take only what is derived from `tuple` alone for a
        named tuple whose parts they map.
        """
