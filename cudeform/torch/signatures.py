"""What the bridge knows of each operator: its functions on arrays, and its signature for torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from cudeform import checks
from cudeform.plans.arguments import REQUIRED
from cudeform.registry import OPERATORS, Operator

_MANY = "SymInt[]"
_TYPES = {  # of options in a schema, by their kind
    "flag": "bool",
    "integer": "SymInt",
    "number": "float",
    "choice": "str",
    "pair": _MANY,
    "padding": _MANY,
    "integers": _MANY,
    "pairs": _MANY,  # of integers: an array that is on the host
}
_PYTHON = {"flag": bool, "integer": int, "number": float, "choice": str}  # of one value


class Bridge(Operator):
    """An operator, with everything that its calls need worked out once."""

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """On arrays."""
        return inspect.unwrap(super().forward)

    @cached_property
    def backward(self) -> Callable[..., Any]:
        return inspect.unwrap(super().backward)

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The tensors that have to be given: what is `static` may be an option."""
        return tuple(a.name for a in self.arguments if not (a.optional or a.name in self.static))

    @cached_property
    def differentiable(self) -> tuple[str, ...]:
        return self.gradients._fields

    @cached_property
    def kept_positions(self) -> tuple[int, ...]:
        """Of the arrays that the backward takes, among all."""
        return tuple(self.names.index(name) for name in self.kept)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Of the options by name, the arrays that may be options among them."""
        options = {option.name: option.kind for option in self.options}
        return {**dict.fromkeys(self.static, "pairs"), **options}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        options = {option.name: option.default for option in self.options}
        return {**dict.fromkeys(self.static), **options}

    @property
    def schemas(self) -> tuple[str, str]:
        """What torch.library is told of the forward and of the backward."""
        options = [
            f"{_TYPES[kind]}{'?' * self._may_miss(name, kind)} {self._known_as(name)}"
            for name, kind in self.kinds.items()
        ]

        def tensors(names: Sequence[str]) -> list[str]:
            return [f"Tensor{'' if n in self.required else '?'} {n}" for n in names]

        many = len(self.differentiable)
        results = "Tensor" if many == 1 else f"({', '.join(['Tensor'] * many)})"
        forward = ", ".join(tensors(self.names) + options)
        backward = ", ".join(
            ["Tensor grad_output", *tensors(self.kept), *options, "bool[] needs"],
        )
        return f"({forward}) -> Tensor", f"({backward}) -> {results}"

    @property
    def signature(self) -> inspect.Signature:
        """The forward as the first of `schemas` has it, with the defaults of the options."""
        parameters, order = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
        for at, name in enumerate(self.names):
            default = REQUIRED if set(self.names[at:]) & set(self.required) else None
            parameters.append(inspect.Parameter(name, order, default=default, annotation=Any))
        for name, kind in self.kinds.items():
            default, annotation = self.defaults[name], _PYTHON.get(kind, Any)
            if _TYPES[kind] == _MANY and default not in (None, REQUIRED):
                default = tuple(_integers(self.name, name, kind, default))
            parameter = inspect.Parameter(self._known_as(name), order, default=default)
            parameters.append(parameter.replace(annotation=annotation))
        return inspect.Signature(parameters, return_annotation=Any)

    def _may_miss(self, option: str, kind: str) -> bool:
        """Of integers: none at all are None, of which AOTInductor makes what it should."""
        return _TYPES[kind] == _MANY and self.defaults[option] is None

    def _known_as(self, option: str) -> str:
        """An array may have the name of an option."""
        return option + "_pairs" if option in self.static else option


def _bridge(row: Operator) -> Bridge:
    """With all that is worked out once: torch.compile does not follow how."""
    bridge = Bridge(**asdict(row))
    for name, _ in inspect.getmembers(Bridge, lambda member: isinstance(member, cached_property)):
        getattr(bridge, name)
    return bridge


BRIDGES = {row.name: _bridge(row) for row in OPERATORS}


def flat(bridge: Bridge, options: dict[str, Any]) -> list[Any]:
    """The options in the order and the types of the schema: a pair of pairs is four integers."""
    values = []
    for name, kind in bridge.kinds.items():
        value = options[name] if name in options else bridge.defaults[name]
        if value is REQUIRED:
            raise TypeError(f"{bridge.name}() missing a required argument: {name!r}")
        if _TYPES[kind] == _MANY and value is not None:
            value = _integers(bridge.name, name, kind, value)
        values.append(value)
    return values


def _integers(op: str, name: str, kind: str, value: Any) -> list[Any]:
    if not isinstance(value, (tuple, list)):
        return [value]
    if kind == "pairs":
        for pair in value:  # of which the sizes may be symbols
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                checks.fail(op, name, "of pairs (H, W)", checks.shown(pair), error=TypeError)
        return [size for pair in value for size in pair]
    if any(isinstance(part, (tuple, list)) for part in value):
        (top, bottom), (left, right) = checks.pad_pairs(op, name, value)
        return [top, bottom, left, right]
    return list(value)


def nested(bridge: Bridge, values: Sequence[Any]) -> dict[str, Any]:
    """The inverse of `flat`; an array that is no option is left out."""
    options = {}
    for (name, kind), value in zip(bridge.kinds.items(), values, strict=True):
        if name in bridge.static and not value:
            continue
        many = _TYPES[kind] == _MANY and value is not None
        options[name] = _together(kind, value) if many else value
    return options


def _together(kind: str, value: Sequence[Any]) -> Any:
    """The value of an option from its integers."""
    if kind == "pairs":
        return tuple(zip(value[::2], value[1::2], strict=True))
    if kind == "integers":
        return tuple(value)
    if kind == "padding" and len(value) == 4:
        return (value[0], value[1]), (value[2], value[3])
    return value[0] if len(value) == 1 else tuple(value)
