"""What is static in a call of an operator: JAX compiles a program for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
from jax import ShapeDtypeStruct

from cudeform.ops.call import outlined
from cudeform.plans import Outline, Plan
from cudeform.registry import OPERATORS, Operator

ROWS = {row.name: row for row in OPERATORS}


@dataclass(frozen=True)
class Call:
    """An operator, the names of the arrays that it is given in their order, and its options."""

    op: str
    arrays: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def row(self) -> Operator:
        return ROWS[self.op]

    def named(self, arrays: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.arrays, arrays, strict=True))

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
        if not any(isinstance(value, (list, tuple)) for _, value in self.options):
            return self
        options = tuple((name, _frozen(value)) for name, value in self.options)
        return replace(self, options=options)

    def results(self, operands: Sequence[Any]) -> list[ShapeDtypeStruct]:
        found = self.check(operands).results
        asked = found if dict(self.options).get("return_argmax") else found[:1]
        return self._shaped(asked, operands)

    def gradients(self, needs: tuple[str, ...], operands: Sequence[Any]) -> list[ShapeDtypeStruct]:
        """`operands` are grad_output and the arrays."""
        grad_output, *arrays = operands
        found = self.check(arrays, grad_output).gradients
        return self._shaped([found[name] for name in needs], arrays)

    def _shaped(self, outlines: Sequence[Outline], arrays: Sequence[Any]) -> list[ShapeDtypeStruct]:
        dtypes = {name: array.dtype.name for name, array in self.named(arrays).items()}
        return [ShapeDtypeStruct(o.shape, jnp.dtype(o.dtype_name(dtypes))) for o in outlines]

    def forward(self) -> Callable[..., tuple[Any, ...]]:
        """What makes all results of the backends' arrays."""
        operator, names = inspect.unwrap(self.row.forward), self.arrays
        others = {n: v for n, v in self._others().items() if n not in names}

        def forward(*arrays: Any) -> tuple[Any, ...]:
            result = operator(**dict(zip(names, arrays, strict=True)), **others)
            return result if isinstance(result, tuple) else (result,)

        return forward

    def backward(self, needs: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
        """What makes the gradients, in the order of `needs`, of grad_output and the arrays."""
        operator, names = inspect.unwrap(self.row.backward), ("grad_output", *self.arrays)
        taken = _of_backward(self.op)
        others = {n: v for n, v in self._others().items() if n in taken and n not in names}
        in_order = [self.row.gradients._fields.index(name) for name in needs]

        def backward(*arrays: Any) -> tuple[Any, ...]:
            found = operator(**dict(zip(names, arrays, strict=True)), **others, needs=needs)
            return tuple(found[i] for i in in_order)

        return backward

    def of_backward(self) -> Call:
        """The same without what the backward does not take."""
        return replace(
            self,
            arrays=tuple(name for name in self.arrays if name in _of_backward(self.op)),
            options=tuple(item for item in self.options if item[0] in _of_backward(self.op)),
        )

    def _others(self) -> dict[str, Any]:
        """The options, and optional arrays, some of which have to be given even if not there."""
        return {**dict.fromkeys(self.row.optional), **dict(self.options)}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=64)
def _of_backward(op: str) -> Mapping[str, Any]:
    """The parameters of an operator's backward."""
    return inspect.signature(ROWS[op].backward).parameters
