"""The three primitives through which JAX sees every operator, and their rules.

``forward``   arrays -> results
``tangent``   arrays, tangents -> how the first result changes; linear in the tangents
``backward``  grad_output, arrays -> gradients; linear in grad_output

Each is the derivative or the transpose of another. `tangent` and `backward` transpose into each
other, so that reverse mode runs the operator's own backward once. Whatever else is asked for (a
derivative of a derivative, the transpose with respect to an image) follows from `expanded`: the
tangent written with `forward` alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cudeform import derivatives
from cudeform.jax.buffers import compute
from cudeform.registry import OPERATORS, Operator
from cudeform.shapes import Shape

__all__ = ["Call", "backward", "forward", "shapes_of"]

_ROWS = {row.name: row for row in OPERATORS}


@dataclass(frozen=True)
class Call:
    """What is static of a call: the operator, the names of its arrays in order, its options."""

    op: str
    arrays: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def row(self) -> Operator:
        return _ROWS[self.op]

    def named(self, arrays: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.arrays, arrays, strict=True)) | dict(self.options)

    def differentiable(self, name: str) -> bool:
        return any(a.name == name and a.differentiable for a in self.row.arguments)

    def per_image(self, name: str) -> bool:
        """Whether an array, or the gradient of one, has an entry for each image of the batch."""
        axes = {a.name: a.axes for a in self.row.arguments}
        regions = any(text.startswith("(R") for text in axes.values())
        return not regions and axes.get(name, "(N").startswith("(N")

    def only(self, function: Callable[..., Any]) -> Call:
        """The same without what `function` does not take."""
        accepted = inspect.signature(function).parameters
        return replace(
            self,
            arrays=tuple(name for name in self.arrays if name in accepted),
            options=tuple(item for item in self.options if item[0] in accepted),
        )


def _primitive(name: str) -> Primitive:
    primitive = Primitive(f"cudeform_{name}")
    primitive.multiple_results = True

    @lru_cache(maxsize=1024)
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(partial(primitive.bind, **dict(params)))

    primitive.def_impl(lambda *operands, **params: compiled(tuple(params.items()))(*operands))
    return primitive


_forward_p, _tangent_p, _backward_p = map(_primitive, ("forward", "tangent", "backward"))


# --- in and out


def _varying(array: Any) -> frozenset[str]:
    """The axes of a mesh along which an array differs, inside `jax.shard_map`."""
    return getattr(jax.typeof(array), "manual_axis_type", None).varying


def _bind(primitive: Primitive, operands: Sequence[Any], **params: Any) -> list[Any]:
    """Bind operands that vary along the same axes of a mesh; the transpose of that is a sum."""
    axes = frozenset().union(*map(_varying, operands))
    cast = [
        jax.lax.pcast(x, tuple(sorted(axes - _varying(x))), to="varying") if axes else x
        for x in operands
    ]
    return primitive.bind(*cast, **params)
