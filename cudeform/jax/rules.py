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

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from cudeform import derivatives
from cudeform.jax.buffers import compute
from cudeform.jax.calls import Call
from cudeform.jax.primitives import (
    avals,
    bind,
    is_zero,
    primitive,
    rules,
    transpose,
    unknown,
)

_XP = derivatives.Namespace.of(
    jnp,
    still=jax.lax.stop_gradient,
    values=lambda array: None if isinstance(array, jax.core.Tracer) else np.asarray(array),
)

_forward_p, _tangent_p, _backward_p = map(primitive, ("forward", "tangent", "backward"))


def forward(call: Call, arrays: Sequence[Any]) -> list[Any]:
    """The results of an operator, differentiable."""
    return bind(_forward_p, arrays, call=call)


def backward(
    call: Call, grad_output: Any, arrays: Sequence[Any], needs: tuple[str, ...]
) -> list[Any]:
    """The gradients in the order of `needs`, differentiable."""
    if not needs:
        return []
    inner = call.of_backward()
    arrays = [a for name, a in zip(call.arrays, arrays, strict=True) if name in inner.arrays]
    return bind(_backward_p, [grad_output, *arrays], call=inner, needs=needs)


def _tangent(
    call: Call, arrays: Sequence[Any], along: tuple[str, ...], tangents: Sequence[Any]
) -> Any:
    """How the first result changes when the arrays named in `along` do."""
    (change,) = bind(_tangent_p, [*arrays, *tangents], call=call, along=along)
    return change


def _expanded(call: Call, along: tuple[str, ...], *operands: Any) -> Any:
    """The same in terms of `forward`."""
    count = len(call.arrays)
    tangents = dict(zip(along, operands[count:], strict=True))

    def operator(op: str, **given: Any) -> Any:
        row = Call(op, (), ()).row
        static = {n for n in row.static if isinstance(given.get(n), tuple)}
        names = tuple(a.name for a in row.arguments if a.name in given.keys() - static)
        arrays = [given.pop(name) for name in names]
        results = forward(Call(op, names, tuple(given.items())), arrays)
        return results[0] if len(results) == 1 else results

    primals = call.named(operands[:count])
    names = {call.op, call.row.apart or call.op}
    functions = {name: partial(operator, name) for name in names}
    return derivatives.jvp(call.op, functions, _XP, primals, tangents, dict(call.options))


# forward


def _forward_avals(*operands: Any, call: Call) -> list[Any]:
    return avals(operands[0], call.results(operands))


def _forward_program(*arrays: Any, call: Call) -> list[Any]:
    return compute(call.forward(), call.results(arrays), arrays)


def _forward_jvp(primals: Any, tangents: Any, *, call: Call) -> Any:
    outputs = forward(call, primals)
    changes = [ad.Zero(jax.typeof(output).to_tangent_aval()) for output in outputs]
    moving = {
        name: tangent
        for name, tangent in zip(call.arrays, tangents, strict=True)
        if not is_zero(tangent) and name in call.row.gradients._fields
    }
    if moving:
        changes[0] = _tangent(call, primals, tuple(moving), list(moving.values()))
    return outputs, changes


def _forward_transpose(cotangents: Any, *arrays: Any, call: Call) -> list[Any]:
    """With respect to arguments in which the operator is linear: their gradients."""
    missing = unknown(arrays)
    found: dict[int, Any] = {i: ad.Zero(arrays[i].aval) for i in missing}
    if not is_zero(cotangents[0]):
        # The gradients do not depend on the unknown, but the backward asks for an array.
        known = [
            jnp.zeros(a.aval.shape, a.aval.dtype) if i in found else a for i, a in enumerate(arrays)
        ]
        needs = tuple(call.arrays[i] for i in missing)
        found.update(zip(missing, backward(call, cotangents[0], known, needs), strict=True))
    return [found.get(i) for i in range(len(arrays))]


rules(
    _forward_p,
    _forward_avals,
    _forward_program,
    _forward_jvp,
    _forward_transpose,
    lambda call: (call.arrays, ["output"]),
)


# tangent


def _tangent_avals(*operands: Any, call: Call, along: tuple[str, ...]) -> list[Any]:
    results = call.results(operands[: len(call.arrays)])
    return avals(operands[0], results[:1])


def _tangent_program(*operands: Any, call: Call, along: tuple[str, ...]) -> list[Any]:
    return [_expanded(call, along, *operands)]


def _tangent_impl(*operands: Any, call: Call, along: tuple[str, ...]) -> list[Any]:
    """Outside of a program: where values matter that a program does not see, call by call."""
    if derivatives.reads_boxes(call.op, along, dict(call.options)):
        return _tangent_program(*operands, call=call, along=along)
    return _compiled_tangent(*operands, call=call, along=along)


def _tangent_jvp(primals: Any, tangents: Any, *, call: Call, along: tuple[str, ...]) -> Any:
    outputs = bind(_tangent_p, primals, call=call, along=along)
    count = len(call.arrays)
    moving = [i for i, tangent in enumerate(tangents) if not is_zero(tangent)]
    directions = [tangents[i] for i in moving]
    if moving[0] >= count:  # only the tangents, and in these it is linear
        names = tuple(along[i - count] for i in moving)
        return outputs, [_tangent(call, primals[:count], names, directions)]

    def of_moving(*values: Any) -> Any:
        filled = dict(zip(moving, values, strict=True))
        return _expanded(call, along, *(filled.get(i, p) for i, p in enumerate(primals)))

    return outputs, [jax.jvp(of_moving, [primals[i] for i in moving], directions)[1]]


def _tangent_transpose(
    cotangents: Any, *operands: Any, call: Call, along: tuple[str, ...]
) -> list[Any]:
    count, missing = len(call.arrays), unknown(operands)
    found: dict[int, Any] = {i: ad.Zero(operands[i].aval) for i in missing}
    if is_zero(cotangents[0]):
        pass
    elif missing[0] < count:
        return transpose(partial(_expanded, call, along), operands, cotangents[0])
    else:
        needs = tuple(along[i - count] for i in missing)
        gradients = backward(call, cotangents[0], operands[:count], needs)
        found.update(zip(missing, gradients, strict=True))
    return [found.get(i) for i in range(len(operands))]


_compiled_tangent = _tangent_p.impl
_tangent_p.def_impl(_tangent_impl)
rules(
    _tangent_p,
    _tangent_avals,
    _tangent_program,
    _tangent_jvp,
    _tangent_transpose,
    lambda call, along: (call.arrays + along, ["output"]),
)


# backward


def _backward_avals(*operands: Any, call: Call, needs: tuple[str, ...]) -> list[Any]:
    return avals(operands[0], call.gradients(needs, operands))


def _backward_program(*operands: Any, call: Call, needs: tuple[str, ...]) -> list[Any]:
    results = call.gradients(needs, operands)
    return compute(call.backward(needs), results, operands)


def _backward_jvp(primals: Any, tangents: Any, *, call: Call, needs: tuple[str, ...]) -> Any:
    outputs = bind(_backward_p, primals, call=call, needs=needs)
    (grad_output, *arrays), (grad_tangent, *array_tangents) = primals, tangents
    changes: list[Any] = [None] * len(needs)
    if not is_zero(grad_tangent):  # linear
        changes = bind(_backward_p, [grad_tangent, *arrays], call=call, needs=needs)
    moving = {
        i: tangent
        for i, tangent in enumerate(array_tangents)
        if not is_zero(tangent) and call.arrays[i] in call.row.gradients._fields
    }
    if moving:
        # <directions, backward(grad_output)> is <tangent(directions), grad_output>, and so are the
        # derivatives of both sides.
        def tangent(*directions: Any) -> Any:
            def of_moving(*values: Any) -> Any:
                filled = dict(zip(moving, values, strict=True))
                full = [filled.get(i, array) for i, array in enumerate(arrays)]
                return _expanded(call, needs, *full, *directions)

            return jax.jvp(of_moving, [arrays[i] for i in moving], list(moving.values()))[1]

        added = jax.linear_transpose(tangent, *outputs)(grad_output)
        changes = list(map(ad.add_tangents, changes, added)) if changes[0] is not None else added
    if changes[0] is None:
        changes = [ad.Zero(jax.typeof(output).to_tangent_aval()) for output in outputs]
    return outputs, list(changes)


def _backward_transpose(
    cotangents: Any, *operands: Any, call: Call, needs: tuple[str, ...]
) -> list[Any]:
    given = {k: c for k, c in zip(needs, cotangents, strict=True) if not is_zero(c)}
    along, directions = tuple(given), list(given.values())
    grad_output, *arrays = operands
    if not given:
        return [ad.Zero(o.aval) if ad.is_undefined_primal(o) else None for o in operands]
    if ad.is_undefined_primal(grad_output):
        return [_tangent(call, arrays, along, directions), *[None] * len(arrays)]
    found = transpose(
        lambda *filled: _expanded(call, along, *filled, *directions), arrays, grad_output
    )
    return [None, *found]


rules(
    _backward_p,
    _backward_avals,
    _backward_program,
    _backward_jvp,
    _backward_transpose,
    lambda call, needs: (("grad_output", *call.arrays), needs),
)
