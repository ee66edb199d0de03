"""The three primitives through which JAX sees every operator, and their rules.

``forward``   arrays -> results
``tangent``   arrays, tangents -> how the first result changes; linear in the tangents
``backward``  grad_output, arrays -> gradients; linear in grad_output

`tangent` is the derivative of `forward`, and `tangent` and `backward` are each other's transpose:
reverse mode runs the operator's own backward, once. All that goes beyond, such as a derivative of
a derivative, follows from `_expanded`: the tangent in terms of `forward` alone, which is linear
in an image, a weight or a mask, and transposed with respect to one of them is `backward` again.
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

__all__ = ["Call", "backward", "forward"]

_ROWS = {row.name: row for row in OPERATORS}


@dataclass(frozen=True)
class Call:
    """What is static in a call: the operator, the names of its arrays in order, its options."""

    op: str
    arrays: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def row(self) -> Operator:
        return _ROWS[self.op]

    def differentiable(self, name: str) -> bool:
        return any(a.name == name and a.differentiable for a in self.row.arguments)

    def per_image(self, name: str) -> bool:
        """Whether an array, or a gradient of that name, has one entry for each image."""
        axes = {a.name: a.axes for a in self.row.arguments}
        if any(text.startswith("(R") for text in axes.values()):
            return False  # the images of regions are in their boxes
        return axes.get(name, "(N").startswith("(N")

    def run(self, function: Callable[..., Any], *arrays: Any, **more: Any) -> tuple[Any, ...]:
        """The results of `function`; of gradients those that are there."""
        result = function(**dict(zip(self.arrays, arrays, strict=True)), **dict(self.options), **more)
        return tuple(r for r in result if r is not None) if isinstance(result, tuple) else (result,)

    def of_backward(self) -> Call:
        """The same without what the backward does not take."""
        accepted = inspect.signature(self.row.backward).parameters
        return replace(
            self,
            arrays=tuple(name for name in self.arrays if name in accepted),
            options=tuple(item for item in self.options if item[0] in accepted),
        )


def forward(call: Call, arrays: Sequence[Any]) -> list[Any]:
    """The results of an operator, differentiable."""
    return _bind(_forward_p, arrays, call=call)


def backward(
    call: Call, grad_output: Any, arrays: Sequence[Any], needs: tuple[str, ...]
) -> list[Any]:
    """The gradients named in `needs`, in that order, differentiable."""
    return _bind(_backward_p, [grad_output, *arrays], call=call, needs=needs) if needs else []


def _tangent(
    call: Call, arrays: Sequence[Any], along: tuple[str, ...], tangents: Sequence[Any]
) -> Any:
    """How the first result changes when the arrays named in `along` do."""
    (changed,) = _bind(_tangent_p, [*arrays, *tangents], call=call, along=along)
    return changed


def _expanded(call: Call, along: tuple[str, ...], *operands: Any) -> Any:
    """The same through `forward`."""
    count = len(call.arrays)
    primals = dict(zip(call.arrays, operands[:count], strict=True))
    tangents = dict(zip(along, operands[count:], strict=True))

    def operator(**given: Any) -> Any:
        names = tuple(a.name for a in call.row.arguments if given.get(a.name) is not None)
        arrays = [given.pop(name) for name in names]
        options = tuple((k, v) for k, v in given.items() if k in call.row.options)
        return forward(Call(call.op, names, options), arrays)[0]

    return derivatives.jvp(call.op, operator, primals, tangents, dict(call.options))


# Binding: every operand varies along the same axes of a mesh, as `jax.shard_map` wants it. The
# transpose of that cast is the sum over the devices that a gradient of something shared needs.


def _varying(array: Any) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying


def _bind(primitive: Primitive, operands: Sequence[Any], **params: Any) -> list[Any]:
    axes = frozenset().union(*map(_varying, operands))
    cast = [
        jax.lax.pcast(operand, tuple(sorted(missing)), to="varying") if missing else operand
        for operand in operands
        for missing in [axes - _varying(operand)]
    ]
    return primitive.bind(*cast, **params)


def _avals(like: Any, shapes: Sequence[Any]) -> list[Any]:
    """Types of results that vary as `like` does."""
    sharding = like.sharding.update(spec=jax.P())
    return [
        like.update(shape=s.shape, dtype=s.dtype, weak_type=False, sharding=sharding)
        for s in shapes
    ]


def _shapes(avals: Sequence[Any]) -> list[Shape]:
    return [Shape(aval.shape, aval.dtype) for aval in avals]


def _zero(value: Any) -> ad.Zero:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero)


def _transposed(function: Callable[..., Any], operands: Sequence[Any], cotangent: Any) -> list[Any]:
    """For each operand that a transposition is to find, its cotangent; None for the others."""
    unknown = [i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand)]

    def of_unknown(*values: Any) -> Any:
        filled = dict(zip(unknown, values, strict=True))
        return function(*(filled.get(i, operand) for i, operand in enumerate(operands)))

    transpose = jax.linear_transpose(of_unknown, *(operands[i].aval for i in unknown))
    found = dict(zip(unknown, transpose(cotangent), strict=True))
    return [found.get(i) for i in range(len(operands))]


def _batched(primitive, names, results, operands, dims, **params):
    """`jax.vmap`: into the batch where every array concerned has one, else one after the other."""
    call = params["call"]
    mapped = [i for i, dim in enumerate(dims) if dim is not None]
    operands = list(operands)
    for i in mapped:
        operands[i] = jnp.moveaxis(operands[i], dims[i], 0)
    if all(map(call.per_image, [*(names[i] for i in mapped), *results])):
        size = operands[mapped[0]].shape[0]
        for i, name in enumerate(names):
            if call.per_image(name):
                operand = operands[i]
                if i not in mapped:
                    operand = jnp.broadcast_to(operand, (size, *operand.shape))
                operands[i] = operand.reshape(-1 if operand.size else 0, *operand.shape[2:])
        outputs = primitive.bind(*operands, **params)
        outputs = [x.reshape(size, x.shape[0] // max(size, 1), *x.shape[1:]) for x in outputs]
    else:

        def one(entries: list[Any]) -> list[Any]:
            filled = dict(zip(mapped, entries, strict=True))
            full = [filled.get(i, operand) for i, operand in enumerate(operands)]
            return _bind(primitive, full, **params)

        outputs = jax.lax.map(one, [operands[i] for i in mapped])
    return outputs, [0] * len(outputs)


def _primitive(name: str) -> Primitive:
    primitive = Primitive(f"cudeform_{name}")
    primitive.multiple_results = True

    @lru_cache(maxsize=1024)
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(partial(primitive.bind, **dict(params)))

    primitive.def_impl(lambda *operands, **params: compiled(tuple(params.items()))(*operands))
    return primitive


# forward


def _forward_results(avals: Sequence[Any], call: Call) -> tuple[Any, ...]:
    return call.run(call.row.forward, *_shapes(avals))


def _forward_compute(*arrays: Any, call: Call) -> list[Any]:
    function = partial(call.run, call.row.forward)
    return compute(function, _forward_results(arrays, call), arrays)


def _forward_jvp(primals: Any, tangents: Any, *, call: Call) -> Any:
    outputs = forward(call, primals)
    changes = list(map(_zero, outputs))
    given = zip(call.arrays, tangents, strict=True)
    moved = {k: t for k, t in given if not _is_zero(t) and call.differentiable(k)}
    if moved:
        changes[0] = _tangent(call, primals, tuple(moved), list(moved.values()))
    return outputs, changes


def _forward_transpose(cotangents: Any, *arrays: Any, call: Call) -> list[Any]:
    """With respect to an argument that the operator is linear in: its gradient."""
    unknown = [ad.is_undefined_primal(array) for array in arrays]
    if _is_zero(cotangents[0]):
        return [ad.Zero(a.aval) if u else None for a, u in zip(arrays, unknown, strict=True)]
    # The gradient does not depend on the unknown itself, but the backward asks for an array.
    arrays = [
        jnp.zeros(a.aval.shape, a.aval.dtype) if u else a
        for a, u in zip(arrays, unknown, strict=True)
    ]
    needs = tuple(name for name, u in zip(call.arrays, unknown, strict=True) if u)
    inner = call.of_backward()
    given = [a for name, a in zip(call.arrays, arrays, strict=True) if name in inner.arrays]
    found = dict(zip(needs, backward(inner, cotangents[0], given, needs), strict=True))
    return [found.get(name) for name in call.arrays]


_forward_p = _primitive("forward")
_forward_p.def_abstract_eval(
    lambda *avals, call: _avals(avals[0], _forward_results(avals, call))
)
mlir.register_lowering(_forward_p, mlir.lower_fun(_forward_compute, multiple_results=True))
ad.primitive_jvps[_forward_p] = _forward_jvp
ad.primitive_transposes[_forward_p] = _forward_transpose
batching.primitive_batchers[_forward_p] = lambda operands, dims, *, call: _batched(
    _forward_p, call.arrays, ["output"], operands, dims, call=call
)


# tangent


def _tangent_jvp(primals: Any, tangents: Any, *, call: Call, along: tuple[str, ...]) -> Any:
    output = _bind(_tangent_p, primals, call=call, along=along)
    count = len(call.arrays)
    moved = [i for i, t in enumerate(tangents) if not _is_zero(t)]
    if all(i >= count for i in moved):  # linear
        names = tuple(along[i - count] for i in moved)
        return output, [_tangent(call, primals[:count], names, [tangents[i] for i in moved])]

    def of_moved(*values: Any) -> Any:
        filled = dict(zip(moved, values, strict=True))
        return _expanded(call, along, *(filled.get(i, p) for i, p in enumerate(primals)))

    moving = [tangents[i] for i in moved]
    return output, [jax.jvp(of_moved, [primals[i] for i in moved], moving)[1]]


def _tangent_transpose(
    cotangents: Any, *operands: Any, call: Call, along: tuple[str, ...]
) -> list[Any]:
    count = len(call.arrays)
    if _is_zero(cotangents[0]):
        return [ad.Zero(o.aval) if ad.is_undefined_primal(o) else None for o in operands]
    if any(map(ad.is_undefined_primal, operands[:count])):
        return _transposed(partial(_expanded, call, along), operands, cotangents[0])
    unknown = [ad.is_undefined_primal(operand) for operand in operands[count:]]
    needs = tuple(name for name, u in zip(along, unknown, strict=True) if u)
    inner = call.of_backward()
    given = [a for k, a in zip(call.arrays, operands[:count], strict=True) if k in inner.arrays]
    found = dict(zip(needs, backward(inner, cotangents[0], given, needs), strict=True))
    return [None] * count + [found.get(name) for name in along]


_tangent_p = _primitive("tangent")
_tangent_p.def_abstract_eval(
    lambda *avals, call, along: _avals(
        avals[0], _forward_results(avals[: len(call.arrays)], call)[:1]
    )
)
mlir.register_lowering(
    _tangent_p,
    mlir.lower_fun(
        lambda *operands, call, along: [_expanded(call, along, *operands)], multiple_results=True
    ),
)
ad.primitive_jvps[_tangent_p] = _tangent_jvp
ad.primitive_transposes[_tangent_p] = _tangent_transpose
batching.primitive_batchers[_tangent_p] = lambda operands, dims, *, call, along: _batched(
    _tangent_p, call.arrays + along, ["output"], operands, dims, call=call, along=along
)
