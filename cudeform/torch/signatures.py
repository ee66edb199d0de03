"""What the bridge knows of each operator: its functions on arrays, and its signature for torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cudeform import checks
from cudeform.registry import OPERATORS, Operator

__all__ = ["BRIDGES", "Bridge", "flat", "nested"]

_MANY = "SymInt[]"
_TYPES = {  # of options in a schema, by their kind
    "flag": "bool",
    "integer": "SymInt",
    "number": "float",
    "choice": "str",
    "pair": _MANY,
    "padding": _MANY,
}


@dataclass(frozen=True)
class Bridge:
    """An operator, with everything that its calls need worked out once."""

    name: str
    forward: Callable[..., Any]  # on arrays
    backward: Callable[..., Any]
    gradients: type  # the named tuple that `backward` returns
    names: tuple[str, ...]  # of the arrays
    required: tuple[str, ...]
    optional: tuple[str, ...]
    differentiable: tuple[str, ...]
    kept: tuple[str, ...]  # the arrays that the backward takes
    batched: tuple[str, ...]  # the arrays with an image, like the result, for each index of axis 0
    options: tuple[str, ...]
    types: tuple[str, ...]  # of the options
    defaults: dict[str, Any]
    argmax: bool  # there is a <name>_argmax

    @property
    def schemas(self) -> tuple[str, str]:
        """What torch.library is told of the forward and of the backward."""
        options = [f"{t} {n}" for t, n in zip(self.types, self.options, strict=True)]

        def tensors(names: Sequence[str]) -> list[str]:
            return [f"Tensor{'' if n in self.required else '?'} {n}" for n in names]

        many = len(self.differentiable)
        results = "Tensor" if many == 1 else f"({', '.join(['Tensor'] * many)})"
        forward = ", ".join(tensors(self.names) + options)
        backward = ", ".join(
            ["Tensor grad_output", *tensors(self.kept), *options, "bool[] needs"],
        )
        return f"({forward}) -> Tensor", f"({backward}) -> {results}"


def _bridge(row: Operator) -> Bridge:
    return Bridge(
        name=row.name,
        forward=inspect.unwrap(row.forward),
        backward=inspect.unwrap(row.backward),
        gradients=row.gradients,
        names=tuple(argument.name for argument in row.arguments),
        required=row.required,
        optional=row.optional,
        differentiable=row.gradients._fields,
        kept=row.kept,
        batched=row.batched,
        options=tuple(option.name for option in row.options),
        types=tuple(_TYPES[option.kind] for option in row.options),
        defaults=row.defaults,
        argmax=row.argmax,
    )


BRIDGES = {row.name: _bridge(row) for row in OPERATORS}


def flat(bridge: Bridge, options: dict[str, Any]) -> list[Any]:
    """The options in the order and the types of the schema: a pair of pairs is four integers."""
    values = []
    for name, schema_type in zip(bridge.options, bridge.types, strict=True):
        value = options[name] if name in options else bridge.defaults[name]
        if value is inspect.Parameter.empty:
            raise TypeError(f"{bridge.name}() missing a required argument: {name!r}")
        if schema_type == _MANY:
            value = _integers(bridge.name, name, value)
        values.append(value)
    return values


def _integers(op: str, name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, (tuple, list)):
        return [value]
    if any(isinstance(part, (tuple, list)) for part in value):
        (top, bottom), (left, right) = checks.pad_pairs(op, name, value)
        return [top, bottom, left, right]
    return list(value)


def nested(bridge: Bridge, values: Sequence[Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    options = {}
    for name, schema_type, value in zip(bridge.options, bridge.types, values, strict=True):
        if schema_type == _MANY:
            if len(value) == 4:
                value = ((value[0], value[1]), (value[2], value[3]))
            else:
                value = tuple(value) if len(value) > 1 else value[0] if value else None
        options[name] = value
    return options
