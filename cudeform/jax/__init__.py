"""JAX arrays: every operator as a differentiable JAX function.

There is nothing here to call: an operator of `cudeform` that is given JAX arrays, or tracers of
any of JAX's transformations, is answered here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp

from cudeform import checks
from cudeform.arrays import DTYPES, Kind, register
from cudeform.jax.calls import Call
from cudeform.jax.rules import backward, forward
from cudeform.registry import OPERATORS
from cudeform.shapes import Shape

__all__ = ["call"]

_OPERATORS = frozenset(row.name for row in OPERATORS)

# What converters, which are no operators, know of JAX's arrays. No backend computes on them.
_KIND = Kind(
    name="jax.numpy",
    backend=None,
    device=lambda array: None,  # which JAX checks itself
    dtype_name=lambda dtype: dtype.name,
    constant=lambda values, like: jnp.asarray(values, like.dtype),
    contiguous=lambda array: array,
)
register(jax.Array, _KIND)
register(jax.core.Tracer, _KIND)  # an Array to isinstance, but not to issubclass


def call(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Answer a call of an operator, or of its backward, with JAX arrays among its arguments."""
    op = name.removesuffix("_backward")
    if op not in _OPERATORS:
        return function(**given)  # of JAX's own functions: see _KIND
    needs = given.get("needs")
    if isinstance(needs, Iterator):  # which lasts for one reading
        given = {**given, "needs": tuple(islice(needs, checks.MOST_NEEDED))}
    expected = function(**{k: _shape(name, k, v) for k, v in given.items()})  # or what is wrong
    given = {k: _rows(v) if k == "boxes" else _frozen(v) for k, v in given.items()}
    arrays = {k: v for k, v in given.items() if isinstance(v, jax.Array)}
    grad_output = arrays.pop("grad_output", None)
    options = {k: v for k, v in given.items() if k not in arrays and v is not None}
    if grad_output is None:
        results = forward(Call(op, tuple(arrays), tuple(options.items())), list(arrays.values()))
        return tuple(results) if isinstance(expected, tuple) else results[0]
    for name in ("grad_output", "needs"):
        options.pop(name, None)
    needed = tuple(k for k, v in expected._asdict().items() if v)
    static = Call(op, tuple(arrays), tuple(options.items()))
    gradients = backward(static, grad_output, list(arrays.values()), needed)
    return type(expected)(**dict(zip(needed, gradients, strict=True)))


def _shape(op: str, argument: str, value: Any) -> Any:
    """The shape of an array, of each in a list of arrays; anything else as it is."""
    if isinstance(value, jax.Array):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):  # a key, for one
            wanted = "of dtype " + ", ".join(DTYPES)
            checks.fail(op, argument, wanted, value.dtype.name, error=TypeError)
        return Shape(value.shape, value.dtype)
    if isinstance(value, (list, tuple)) and any(isinstance(item, jax.Array) for item in value):
        items = [_shape(op, f"{argument}[{i}]", item) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _frozen(value: Any) -> Any:
    """An option, which has passed all checks, as a value to hash."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _rows(boxes: Any) -> Any:
    """Boxes of one array per image as one array."""
    if not isinstance(boxes, (list, tuple)):
        return boxes
    rows = [
        jnp.concatenate([jnp.full((len(array), 1), image, array.dtype), array], axis=1)
        for image, array in enumerate(boxes)
    ]
    return jnp.concatenate(rows) if rows else rows
