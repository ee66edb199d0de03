"""What is static in a call of an operator: JAX compiles a program for each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp

from cudeform.ops.call import outlined
from cudeform.plans import Outline, Plan
from cudeform.registry import OPERATORS, Operator

__all__ = ["Call", "Shaped"]

_ROWS = {row.name: row for row in OPERATORS}


class Shaped(NamedTuple):
    """The shape and dtype of a result."""

    shape: tuple[int, ...]
    dtype: Any


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
        if not self.row.batched:
            return False
        return name in self.row.batched or all(a.name != name for a in self.row.arguments)

    def check(self, arrays: Sequence[Any], grad_output: Any = None) -> Plan:
        """Check arrays, or what is known of them while JAX traces, and say what they give."""
        given, op = self.named(arrays), self.op
        if grad_output is not None:
            given, op = {"grad_output": grad_output, **given}, op + "_backward"
        return outlined(op, given, dict(self.options))[1]

    def frozen(self) -> Call:
        """With options, which have passed all checks, as values to hash."""
        options = tuple((name, _frozen(value)) for name, value in self.options)
        return replace(self, options=options)

    def results(self, operands: Sequence[Any]) -> list[Shaped]:
        found = self.check(operands).results
        return self._shaped(
            found if dict(self.options).get("return_argmax") else found[:1], operands
        )

    def gradients(self, needs: tuple[str, ...], operands: Sequence[Any]) -> list[Shaped]:
        """`operands` are grad_output and the arrays."""
        grad_output, *arrays = operands
        found = self.check(arrays, grad_output).gradients
        return self._shaped([found[name] for name in needs], arrays)

    def _shaped(self, outlines: Sequence[Outline], arrays: Sequence[Any]) -> list[Shaped]:
        dtypes = {name: array.dtype.name for name, array in self.named(arrays).items()}
        return [Shaped(o.shape, jnp.dtype(o.dtype_name(dtypes))) for o in outlines]

    def forward(self, *arrays: Any) -> tuple[Any, ...]:
        """All results."""
        given = {**self._absent(), **self.named(arrays), **dict(self.options)}
        result = self.row.forward(**given)
        return result if isinstance(result, tuple) else (result,)

    def backward(self, grad_output: Any, *arrays: Any, needs: tuple[str, ...]) -> tuple[Any, ...]:
        """The gradients in the order of `needs`."""
        absent = {k: v for k, v in self._absent().items() if k in _of_backward(self.op)}
        given = {**absent, **self.named(arrays), **dict(self.options)}
        found = self.row.backward(grad_output, **given, needs=needs)
        return tuple(getattr(found, name) for name in needs)

    def of_backward(self) -> Call:
        """The same without what the backward does not take."""
        return replace(
            self,
            arrays=tuple(name for name in self.arrays if name in _of_backward(self.op)),
            options=tuple(item for item in self.options if item[0] in _of_backward(self.op)),
        )

    def _absent(self) -> dict[str, None]:
        """Optional arrays, some of which have to be given even where they are None."""
        return dict.fromkeys(self.row.optional)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=64)
def _of_backward(op: str) -> Mapping[str, Any]:
    """The parameters of an operator's backward."""
    return inspect.signature(_ROWS[op].backward).parameters
