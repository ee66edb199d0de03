"""What is static in a call of an operator: JAX compiles a program for each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from cudeform.registry import OPERATORS, Operator
from cudeform.shapes import Shape

__all__ = ["Call"]

_ROWS = {row.name: row for row in OPERATORS}


@dataclass(frozen=True)
class Call:
    """An operator, the names of the arrays that it is given in their order, and its options."""

    op: str
    arrays: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def row(self) -> Operator:
        return _ROWS[self.op]

    def named(self, arrays: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.arrays, arrays, strict=True))

    def differentiable(self, name: str) -> bool:
        return any(a.name == name and a.differentiable for a in self.row.arguments)

    def per_image(self, name: str) -> bool:
        """Whether an array has one entry per image; a name of no argument is one of a result."""
        axes = {a.name: a.axes for a in self.row.arguments}
        if any(text.startswith("(R") for text in axes.values()):
            return False  # a box says by number which image it belongs to
        return axes.get(name, "(N").startswith("(N")

    def forward(self, *arrays: Any) -> tuple[Any, ...]:
        """All results; a `Shape` of each for `Shape`s."""
        given = {**self._absent(), **self.named(arrays), **dict(self.options)}
        return _present(self.row.forward(**given))

    def backward(self, grad_output: Any, *arrays: Any, needs: tuple[str, ...]) -> tuple[Any, ...]:
        """The gradients in the order of `needs`."""
        given = self.named(arrays)
        absent = {k: v for k, v in self._absent().items() if k in _of_backward(self.op)}
        options = dict(self.options)
        found = self.row.backward(grad_output, **{**absent, **given, **options}, needs=needs)
        if isinstance(grad_output, Shape):
            return tuple(self._gradient_shape(name, given, grad_output.dtype) for name in needs)
        return tuple(getattr(found, name) for name in needs)

    def _gradient_shape(self, name: str, given: Mapping[str, Shape], dtype: Any) -> Shape:
        if name in given:
            return given[name]
        sizes: dict[str, int] = {}  # of a bias (O,): by the weight (O, C/groups, kh, kw)
        axes = {a.name: a.axes.strip("(,)").split(", ") for a in self.row.arguments}
        for argument, shape in given.items():
            sizes |= zip(axes.get(argument, ()), shape.shape)  # noqa: B905 -- "..." has any length
        return Shape(tuple(sizes[symbol] for symbol in axes[name]), dtype)

    def of_backward(self) -> Call:
        """The same without what the backward does not take."""
        return replace(
            self,
            arrays=tuple(name for name in self.arrays if name in _of_backward(self.op)),
            options=tuple(item for item in self.options if item[0] in _of_backward(self.op)),
        )

    def _absent(self) -> dict[str, None]:
        """Optional arrays, some of which have to be given even where they are None."""
        return {a.name: None for a in self.row.arguments if a.optional}


@lru_cache(maxsize=64)
def _of_backward(op: str) -> Mapping[str, Any]:
    """The parameters of an operator's backward."""
    return inspect.signature(_ROWS[op].backward).parameters


def _present(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
