"""What the bridge knows of each operator: its functions on arrays, and its signature for torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cudeform import checks
from cudeform.plans.arguments import REQUIRED
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
    "integers": _MANY,
    "pairs": _MANY,  # of integers: an array that is on the host
}
_PYTHON = {"flag": bool, "integer": int, "number": float, "choice": str}  # of one value


@dataclass(frozen=True)
class Bridge:
    """An operator, with everything that its calls need worked out once."""

    name: str
    forward: Callable[..., Any]  # on arrays
    backward: Callable[..., Any]
    gradients: type  # the named tuple that `backward` returns
    names: tuple[str, ...]  # of the arrays
    images: str  # the array whose dtype the result has
    boxes: str | None  # the array that may be a list of one for each image
    addends: dict[str, str]  # what no gradient depends on, and the array of its dtype
    required: tuple[str, ...]
    optional: tuple[str, ...]
    differentiable: tuple[str, ...]
    kept: tuple[str, ...]  # the arrays that the backward takes
    batched: tuple[str, ...]  # the arrays with an image, like the result, for each index of axis 0
    static: tuple[str, ...]  # the arrays that may be options: pairs of integers
    options: tuple[str, ...]
    kinds: tuple[str, ...]  # of the options
    defaults: dict[str, Any]
    argmax: bool  # there is a <name>_argmax

    @functools.cached_property
    def kept_positions(self) -> tuple[int, ...]:
        """Of the arrays that the backward takes, among all."""
        return tuple(self.names.index(name) for name in self.kept)

    @property
    def schemas(self) -> tuple[str, str]:
        """What torch.library is told of the forward and of the backward."""
        options = [
            f"{_TYPES[kind]}{'?' * self._may_miss(name, kind)} {self._known_as(name)}"
            for kind, name in zip(self.kinds, self.options, strict=True)
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
        for name, kind in zip(self.options, self.kinds, strict=True):
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
    return Bridge(
        name=row.name,
        forward=inspect.unwrap(row.forward),
        backward=inspect.unwrap(row.backward),
        gradients=row.gradients,
        names=row.names,
        images=row.images,
        boxes=row.boxes,
        addends=row.addends,
        required=tuple(name for name in row.required if name not in row.static),
        optional=(*row.optional, *row.static),
        differentiable=row.gradients._fields,
        kept=row.kept,
        batched=row.batched,
        static=row.static,
        options=(*row.static, *(option.name for option in row.options)),
        kinds=(*["pairs"] * len(row.static), *(option.kind for option in row.options)),
        defaults={**dict.fromkeys(row.static), **row.defaults},
        argmax=row.argmax,
    )


BRIDGES = {row.name: _bridge(row) for row in OPERATORS}


def flat(bridge: Bridge, options: dict[str, Any]) -> list[Any]:
    """The options in the order and the types of the schema: a pair of pairs is four integers."""
    values = []
    for name, kind in zip(bridge.options, bridge.kinds, strict=True):
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
    for name, kind, value in zip(bridge.options, bridge.kinds, values, strict=True):
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
