"""What the rules of our primitives have in common: binding, types, `jax.vmap`, transposition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cudeform.jax.calls import Call


def primitive(name: str) -> Primitive:
    """A primitive with several results; outside of a program, a program of its own.

    Also under `jax.disable_jit`: what a callback computes exists in programs only.
    """
    new = Primitive(f"cudeform_{name}")
    new.multiple_results = True

    @lru_cache(maxsize=1024)
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(partial(new.bind, **dict(params)))

    def run(*operands: Any, **params: Any) -> list[Any]:
        with jax.disable_jit(False) if jax.config.jax_disable_jit else nullcontext():
            return compiled(tuple(params.items()))(*operands)

    new.def_impl(run)
    return new


def rules(
    primitive: Primitive,
    avals: Callable[..., list[Any]],
    program: Callable[..., list[Any]],
    jvp: Callable[..., Any],
    transpose: Callable[..., list[Any]],
    names: Callable[..., tuple[Sequence[str], Sequence[str]]],
) -> None:
    """Say what JAX has to know of a primitive; `names` are those of its operands and results."""
    primitive.def_abstract_eval(avals)
    _lower(primitive, program)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = partial(_batch, primitive, names)


def _lower(primitive: Primitive, program: Callable[..., list[Any]]) -> None:
    """Say what a primitive is in a program, in terms of JAX's own functions and of others."""
    rule = mlir.lower_fun(program, multiple_results=True)

    def checked(context: Any, *operands: Any, call: Call, **params: Any) -> Any:
        if context.module_context.lowering_parameters.for_export:
            raise NotImplementedError(
                f"{call.op}: `jax.export` cannot save it: it is a callback into this process, "
                "which the process that loads the program does not have"
            )
        return rule(context, *operands, call=call, **params)

    mlir.register_lowering(primitive, checked)


def _varying(array: Any) -> frozenset[str]:
    """The axes of a mesh along which an array differs, inside `jax.shard_map`."""
    return jax.typeof(array).manual_axis_type.varying


def bind(primitive: Primitive, operands: Sequence[Any], **params: Any) -> list[Any]:
    """Bind operands cast so that all vary along the same axes of a mesh.

    The transpose of the cast is the sum over devices that the gradient of a shared array needs.
    """
    if not any(isinstance(operand, jax.core.Tracer) for operand in operands):
        return primitive.bind(*operands, **params)  # values vary along no axis
    varying = [_varying(operand) for operand in operands]
    axes = frozenset().union(*varying)
    cast = [
        x if own == axes else jax.lax.pcast(x, tuple(sorted(axes - own)), to="varying")
        for x, own in zip(operands, varying, strict=True)
    ]
    return primitive.bind(*cast, **params)


def avals(like: Any, results: Sequence[Any]) -> list[Any]:
    """The types of results that vary as `like` does."""
    sharding = like.sharding.update(spec=jax.P())
    return [
        like.update(shape=r.shape, dtype=r.dtype, weak_type=False, sharding=sharding)
        for r in results
    ]


def is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero)


def unknown(operands: Sequence[Any]) -> list[int]:
    """Which operands a transposition is to find the cotangents of."""
    return [i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand)]


def transpose(function: Callable[..., Any], operands: Sequence[Any], cotangent: Any) -> list[Any]:
    """The cotangent of each unknown operand of a function that is linear in these; else None."""
    missing = unknown(operands)

    def linear(*values: Any) -> Any:
        filled = dict(zip(missing, values, strict=True))
        return function(*(filled.get(i, operand) for i, operand in enumerate(operands)))

    transposed = jax.linear_transpose(linear, *(operands[i].aval for i in missing))
    found = dict(zip(missing, transposed(cotangent), strict=True))
    return [found.get(i) for i in range(len(operands))]


def _batch(
    primitive: Primitive,
    named: Callable[..., tuple[Sequence[str], Sequence[str]]],
    operands: Sequence[Any],
    dims: Sequence[int | None],
    *,
    call: Call,
    **params: Any,
) -> tuple[list[Any], list[int]]:
    """`jax.vmap`: into the batch where all that is mapped has one, else one after the other."""
    names, results = named(call, **params)
    mapped = {i: jnp.moveaxis(operands[i], dim, 0) for i, dim in enumerate(dims) if dim is not None}
    size = next(iter(mapped.values())).shape[0]
    if size and all(map(call.per_image, [*(names[i] for i in mapped), *results])):
        operands = list(operands)
        for i, name in enumerate(names):
            if call.per_image(name):
                alike = (size, *operands[i].shape)
                each = mapped[i] if i in mapped else jnp.broadcast_to(operands[i], alike)
                operands[i] = each.reshape(size * each.shape[1], *each.shape[2:])
        outputs = bind(primitive, operands, call=call, **params)
        outputs = [x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in outputs]
    else:

        def one(entries: dict[int, Any]) -> list[Any]:
            full = [entries.get(i, operand) for i, operand in enumerate(operands)]
            return bind(primitive, full, call=call, **params)

        outputs = jax.lax.map(one, mapped)
    return outputs, [0] * len(outputs)
