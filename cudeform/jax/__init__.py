"""JAX arrays: every operator as a differentiable JAX function.

There is nothing here to call: an operator of `cudeform` that is given JAX arrays, or tracers of
any of JAX's transformations, is answered here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cudeform import checks
from cudeform.arrays import DTYPES, Kind, register
from cudeform.boxes import box_outline
from cudeform.jax.calls import ROWS, Call
from cudeform.jax.rules import backward, forward

__all__ = ["call"]

# What converters, which are no operators, know of JAX's arrays. No backend computes on them.
_KIND = Kind(
    name="jax.numpy",
    backend=None,
    device=lambda array: None,  # which JAX checks itself
    dtype_name=functools.lru_cache(maxsize=64)(lambda dtype: dtype.name),
    constant=lambda values, like: jnp.asarray(values, like.dtype),
    contiguous=lambda array: array,
)
register(jax.Array, _KIND)
register(jax.core.ShapedArray, _KIND)  # what is known of an array in a program
register(jax.core.Tracer, _KIND)  # an Array to isinstance, but not to issubclass


def call(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Answer a call of an operator, or of its backward, with JAX arrays among its arguments."""
    op = name.removesuffix("_backward")
    given = {k: _array(name, k, v) for k, v in given.items()}
    if op not in ROWS:
        return function(**given)  # of JAX's own functions: see _KIND
    row = ROWS[op]
    if row.boxes in given:
        given[row.boxes] = _rows(name, given[row.boxes], given[row.images])
    needs = given.pop("needs", None)
    grad_output = [given.pop("grad_output")] if name != op else []
    names = (*row.names, "argmax")
    pairs = {k for k in row.static if isinstance(given.get(k), (list, tuple))}
    named = {k: given.pop(k) for k in names if k in given and k not in pairs}
    arrays = {k: v for k, v in named.items() if v is not None or k in row.required}
    static, operands = Call(op, tuple(arrays), tuple(given.items())), list(arrays.values())
    static.check(operands, *grad_output)
    static = static.frozen()
    if not grad_output:
        results = forward(static, operands)
        return tuple(results) if len(results) > 1 else results[0]
    absent = {k: arrays.get(k) for k in row.optional if k in row.kept}
    needed = checks.needs(name, needs, absent, row.gradients._fields)
    needed = tuple(k for k in row.gradients._fields if k in needed)
    found = backward(static, *grad_output, operands, needed)
    return row.gradients(**dict(zip(needed, found, strict=True)))


def _array(op: str, name: str, value: Any) -> Any:
    """A NumPy array as JAX takes a constant, also in a list; anything else as it is."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        if value.dtype.name not in (*DTYPES, "int32", "int64"):
            wanted = "of dtype " + ", ".join(DTYPES)
            checks.fail(op, name, wanted, repr(value.dtype), error=TypeError)
        return jnp.asarray(value)
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        items = [_array(op, f"{name}[{i}]", item) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _rows(op: str, boxes: Any, images: Any) -> Any:
    """Boxes of one array per image as one array."""
    if not isinstance(boxes, (list, tuple)):
        return boxes
    box_outline(op, boxes, images, _KIND)
    rows = [
        jnp.concatenate([jnp.full((len(array), 1), image, array.dtype), array], axis=1)
        for image, array in enumerate(boxes)
    ]
    return jnp.concatenate(rows) if rows else jnp.zeros((0, 5), images.dtype)
