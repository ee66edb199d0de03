"""The operators in torch's dispatcher: for compile, export, fake tensors and tensor subclasses.

``torch.ops.cudeform.<name>`` and ``<name>_backward``, made from the rows of the registry. Eager
calls have a shorter way, see `cudeform.torch.autograd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from cudeform.ops.call import outlined
from cudeform.plans import Outline
from cudeform.torch import autocast
from cudeform.torch.autograd import Bound, curvature, dispatched_backward, gradient_order
from cudeform.torch.exchange import compute
from cudeform.torch.kind import KIND
from cudeform.torch.signatures import BRIDGES, Bridge, nested
from cudeform.torch.vmap import mapped


def _empty(outline: Outline, tensors: dict[str, Any]) -> Any:
    """A fake tensor as an outline says."""
    dtypes = {n: KIND.dtype_name(t.dtype) for n, t in tensors.items() if t is not None}
    like = next(iter(tensors.values()))
    return like.new_empty(outline.shape, dtype=getattr(torch, outline.dtype_name(dtypes)))


def _split(bridge: Bridge, values: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the options of a call of the forward."""
    count = len(bridge.names)
    return dict(zip(bridge.names, values, strict=False)), nested(bridge, values[count:])


def _split_backward(bridge: Bridge, values: Sequence[Any]) -> tuple[Any, Any, tuple[str, ...]]:
    """The tensors, grad_output first, the options and the needs of a call of the backward."""
    names, (*values, wanted) = ("grad_output", *bridge.kept), values
    needs = tuple(n for n, need in zip(bridge.differentiable, wanted, strict=True) if need)
    return dict(zip(names, values, strict=False)), nested(bridge, values[len(names) :]), needs


def _mapped(name: str, size: int, in_dims: Any, values: Any, batched: list[bool]) -> Any:
    """An operator under vmap; `batched` says which tensors, the first of the values, may grow."""
    count, operator = len(batched), getattr(torch.ops.cudeform, name)

    def apply(*tensors: Any) -> Any:
        return operator(*tensors, *values[count:])

    return mapped(apply, size, in_dims[:count], values[:count], batched)


def _define_forward(bridge: Bridge, argmax: bool = False) -> None:
    """With `argmax` as an operator <name>_argmax, whose results are not differentiable."""
    name = bridge.name + ("_argmax" if argmax else "")
    more = {"return_argmax": True} if argmax else {}

    def run(*values: Any) -> Any:
        given, options = _split(bridge, values)
        return compute(bridge.forward, given, {**options, **more})

    def fake(*values: Any) -> Any:
        given, options = _split(bridge, values)
        _, plan = outlined(bridge.name, given, {**options, **more})
        found = [_empty(outline, given) for outline in plan.results]
        return tuple(found) if argmax else found[0]

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        given, ctx.options = _split(bridge, inputs)
        ctx.save_for_backward(*[given[name] for name in bridge.kept])

    def backward(ctx: Any, grad_output: Any) -> tuple[Any, ...]:
        needs, order = gradient_order(bridge.name, ctx.needs_input_grad[: len(bridge.names)])
        tensors = grad_output, *ctx.saved_tensors
        found = dispatched_backward(bridge, needs, tensors, ctx.options)
        result = [None if place is None else found[place] for place in order]
        return *result, *[None] * len(bridge.kinds)

    def vmap(info: Any, in_dims: Any, *values: Any) -> Any:
        batched = [n in bridge.batched for n in bridge.names]
        return _mapped(name, info.batch_size, in_dims, values, batched)

    def flops(*values: Any, out_val: Any) -> int:
        return outlined(bridge.name, *_split(bridge, values))[1].flops()

    schema = bridge.schemas[0]
    if argmax:
        schema = schema.replace("-> Tensor", "-> (Tensor, Tensor)")

    def narrow(results: Any, values: Sequence[Any]) -> Any:
        return autocast.narrowed(results, values[0])

    operator = _custom(name, run, schema, fake, vmap, narrow, flops)
    if not argmax:
        operator.register_autograd(backward, setup_context=setup_context)


def _define_backward(bridge: Bridge) -> None:
    name = bridge.name + "_backward"

    def run(*values: Any) -> Any:
        given, options, needs = _split_backward(bridge, values)
        found = compute(bridge.backward, given, {**options, "needs": needs})
        result = tuple(values[0].new_empty(0) if g is None else g for g in found)
        return result if len(result) > 1 else result[0]

    def fake(*values: Any) -> Any:
        given, options, needs = _split_backward(bridge, values)
        _, plan = outlined(name, given, options)
        result, absent = [], Outline((0,), like="grad_output")
        for argument in bridge.differentiable:
            outline = plan.gradients[argument] if argument in needs else absent
            result.append(_empty(outline, given))
        return tuple(result) if len(result) > 1 else result[0]

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        given, options, ctx.needs = _split_backward(bridge, inputs)
        ctx.bound = Bound(bridge, options)
        ctx.save_for_backward(*given.values())
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *directions: Any) -> tuple[Any, ...]:
        grad_output, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[: 1 + len(bridge.kept)]
        found = curvature(ctx.bound, ctx.needs, grad_output, tensors, directions, needed)
        return *found, *[None] * (len(bridge.kinds) + 1)

    def vmap(info: Any, in_dims: Any, *values: Any) -> Any:
        *_, needs = _split_backward(bridge, values)
        shared = not set(needs) <= set(bridge.batched)  # what images share is summed over a batch
        batched = [not shared and n in bridge.batched for n in bridge.kept]
        batched = [bool(bridge.batched) and not shared, *batched]
        return _mapped(name, info.batch_size, in_dims, values, batched)

    def narrow(results: Any, values: Sequence[Any]) -> Any:
        many = results if isinstance(results, tuple) else (results,)
        found = autocast.narrowed_gradients(bridge, many, values[1 : 1 + len(bridge.kept)])
        return tuple(found) if isinstance(results, tuple) else found[0]

    def flops(*values: Any, out_val: Any) -> int:
        given, options, needs = _split_backward(bridge, values)
        return outlined(name, given, options)[1].flops(needs)

    operator = _custom(name, run, bridge.schemas[1], fake, vmap, narrow, flops)
    operator.register_autograd(backward, setup_context=setup_context)


_LIBRARY = torch.library.Library("cudeform", "FRAGMENT")  # for as long as it lives


def _custom(name: str, run: Any, schema: str, fake: Any, vmap: Any, narrow: Any, flops: Any) -> Any:
    operator = torch.library.custom_op(f"cudeform::{name}", run, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    operator.register_vmap(vmap)
    register_flop_formula(getattr(torch.ops.cudeform, name), get_raw=True)(flops)

    # Not `register_autocast`, which would leave results in float32.
    def under_autocast(*values: Any) -> Any:
        with autocast.outside():
            results = getattr(torch.ops.cudeform, name)(*map(autocast.wide, values))
            return narrow(results, values)

    for key in autocast.KEYS.values():
        _LIBRARY.impl(name, under_autocast, key)
    return operator


def define() -> None:
    """Make ``torch.ops.cudeform``, once."""
    for bridge in BRIDGES.values():
        _define_forward(bridge)
        _define_backward(bridge)
        if bridge.argmax:
            _define_forward(bridge, argmax=True)


define()
