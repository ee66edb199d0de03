"""The operators as autograd functions: what is saved, and derivatives of every order and mode."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import Function

from cudeform import derivatives
from cudeform.ops.call import outlined
from cudeform.plans import plan
from cudeform.torch.asked import Asked, asked
from cudeform.torch.exchange import compute, direct
from cudeform.torch.signatures import BRIDGES, Bridge, flat
from cudeform.torch.state import (
    below,
    is_forward_mode,
    is_noticed,
    is_plain,
    transformed,
    untraced,
    unwrapped,
    values,
)
from cudeform.torch.vmap import mapped


class Bound(NamedTuple):
    """An operator with its options: what a tensor goes through."""

    bridge: Bridge
    options: dict[str, Any]

    def forward(self, tensors: Sequence[Any]) -> Any:
        """No derivatives. Tensors that only a dispatcher can compute on go to torch's operator."""
        bridge = self.bridge
        if is_plain(tensors):
            given = dict(zip(bridge.names, tensors, strict=True))
            return compute(bridge.forward, given, self.options)
        return dispatched(bridge, tensors, self.options)

    def backward(self, needs: tuple[str, ...], grad_output: Any, tensors: Sequence[Any]) -> tuple:
        """The gradients by differentiable argument; what is not needed is None, or empty."""
        bridge = self.bridge
        if is_plain((grad_output, *tensors)):
            given = dict(zip(bridge.kept, tensors, strict=True), grad_output=grad_output)
            return compute(bridge.backward, given, {**self.options, "needs": needs})
        return dispatched_backward(bridge, needs, (grad_output, *tensors), self.options)


def dispatched(bridge: Bridge, tensors: Sequence[Any], options: dict[str, Any]) -> Any:
    """The forward by the operator in torch's dispatcher."""
    name = bridge.name + ("_argmax" if options.get("return_argmax") else "")
    _check(bridge.name, bridge.names, tensors, options)
    return getattr(torch.ops.cudeform, name)(*tensors, *flat(bridge, options))


def dispatched_backward(
    bridge: Bridge, needs: Sequence[str], tensors: Sequence[Any], options: dict[str, Any]
) -> tuple[Any, ...]:
    """The same of the backward, of grad_output and the arrays."""
    wanted = [name in needs for name in bridge.differentiable]
    name = bridge.name + "_backward"
    _check(name, ("grad_output", *bridge.kept), tensors, options)
    found = getattr(torch.ops.cudeform, name)(*tensors, *flat(bridge, options), wanted)
    return found if isinstance(found, tuple) else (found,)


def _check(op: str, names: Sequence[str], tensors: Sequence[Any], options: dict[str, Any]) -> None:
    """Check a call before the dispatcher does: it has words of its own for options of a wrong type,
    and takes 1 for True, and four integers for two pairs. A compiler sees the checks of the fake.
    """
    if not torch.compiler.is_compiling():
        outlined(op, dict(zip(names, tensors, strict=True)), options)


class Eager(Function):
    """The short way to a gradient; its backward takes the long one when that is differentiated."""

    @staticmethod
    def forward(ctx: Any, bound: Bound, asked: Asked | None, *tensors: Any) -> Any:
        """Of a call that is direct, `asked` is that."""
        ctx.bound, bridge = bound, bound.bridge
        ctx.save_for_backward(*[tensors[position] for position in bridge.kept_positions])
        if asked is not None:
            return direct(asked)
        return compute(bridge.forward, dict(zip(bridge.names, tensors, strict=True)), bound.options)

    @staticmethod
    @untraced  # a graph that broke around it would be traced on in here
    def backward(ctx: Any, grad_output: Any) -> tuple[Any, ...]:
        bound, tensors, needed = ctx.bound, ctx.saved_tensors, ctx.needs_input_grad[2:]
        call = None
        if not (torch.is_grad_enabled() or is_noticed()):
            bridge = bound.bridge
            needs, order = gradient_order(bridge.name, needed)
            given = dict(zip(bridge.kept, tensors, strict=True))
            given = {"grad_output": grad_output, **given, **bound.options, "needs": needs}
            call = asked(bridge.backward, given)
        if call is None:
            return None, None, *_gradients(bound, grad_output, tensors, needed)
        found = direct(call)
        return None, None, *[None if p is None else found[p] for p in order]


@functools.lru_cache(maxsize=256)
def gradient_order(op: str, needed: tuple[bool, ...]) -> tuple[tuple[str, ...], list[int | None]]:
    """Which gradients are needed, and of each tensor of a forward its place among the gradients."""
    bridge = BRIDGES[op]
    needs = _with_gradient(bridge, bridge.names, needed)
    order = [bridge.differentiable.index(n) if n in needs else None for n in bridge.names]
    return needs, order


# What `Eager.apply` comes to where torch.func is not at work and has left no wrapper to take off.
apply = super(Function, Eager).apply


def _gradients(
    bound: Bound, grad_output: Any, tensors: Sequence[Any], needed: tuple[bool, ...]
) -> list[Any]:
    """The gradients of a forward's tensors, None where not `needed`, or where there is none."""
    needs, order = gradient_order(bound.bridge.name, needed)
    if torch.is_grad_enabled() or transformed():
        kind = BackwardDual if is_forward_mode() else Backward
        found = kind.apply(bound, needs, grad_output, *tensors)
    else:
        found = bound.backward(needs, grad_output, tensors)
    return [None if position is None else found[position] for position in order]


def _with_gradient(bridge: Bridge, names: Sequence[str], needed: Sequence[bool]) -> tuple[str, ...]:
    """Those of the needed arguments that have one: boxes may be asked for theirs, and have none."""
    return tuple(
        name
        for name, need in zip(names, needed, strict=True)
        if need and name in bridge.differentiable
    )


class Forward(Function):
    """The forward for torch.func, whose functions have a rule for each of its transforms."""

    @staticmethod
    def forward(bound: Bound, *tensors: Any) -> Any:
        return bound.forward(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bound, *tensors = inputs
        names, kept = ctx.bound.bridge.names, ctx.bound.bridge.kept
        ctx.save_for_backward(*(t for n, t in zip(names, tensors, strict=True) if n in kept))

    @staticmethod
    @untraced
    def backward(ctx: Any, grad_output: Any) -> tuple[Any, ...]:
        if grad_output is None:
            return None, *[None] * len(ctx.bound.bridge.names)
        grad_output, *tensors = unwrapped((grad_output, *ctx.saved_tensors))
        return None, *_gradients(ctx.bound, grad_output, tensors, ctx.needs_input_grad[1:])

    @staticmethod
    def vmap(info: Any, in_dims: Any, bound: Bound, *tensors: Any) -> Any:
        def apply(*parts: Any) -> Any:
            return call(bound, parts)

        batched = [name in bound.bridge.batched for name in bound.bridge.names]
        return mapped(apply, info.batch_size, in_dims[1:], tensors, batched)


class _ForwardDual(Forward):
    """With a tangent: apart, since torch.compile takes no function that has one."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        Forward.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*ctx.to_save)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        bridge, saved = ctx.bound.bridge, ctx.saved_tensors

        def rule(*tensors: Any) -> Any:
            given = dict(zip(bridge.kept, tensors, strict=False))
            moving = dict(zip(bridge.names, tensors[len(saved) :], strict=True))
            return _directional(ctx.bound, given, moving)

        return below(rule, *saved, *tangents)


class Backward(Function):
    """The gradients as a function that can be differentiated: of grad_output and the arrays."""

    @staticmethod
    def forward(bound: Bound, needs: tuple[str, ...], grad_output: Any, *tensors: Any) -> Any:
        found = bound.backward(needs, grad_output, tensors)
        return tuple(grad_output.new_empty(0) if g is None else g for g in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bound, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)  # a direction of zeros is none

    @staticmethod
    @untraced
    def backward(ctx: Any, *directions: Any) -> tuple[Any, ...]:
        grad_output, *tensors = unwrapped(ctx.saved_tensors)
        found = curvature(
            ctx.bound, ctx.needs, grad_output, tensors, directions, ctx.needs_input_grad[2:]
        )
        return None, None, *found

    @staticmethod
    def vmap(info: Any, in_dims: Any, bound: Bound, needs: Any, *tensors: Any) -> Any:
        bridge = bound.bridge

        def apply(*parts: Any) -> Any:
            kind = BackwardDual if is_forward_mode() else Backward
            return kind.apply(bound, needs, *parts)

        batched = [True, *(name in bridge.batched for name in bridge.kept)]
        if not set(needs) <= set(bridge.batched):
            batched = [False] * len(batched)  # what all images share is summed over a batch
        return mapped(apply, info.batch_size, in_dims[2:], tensors, batched)


class BackwardDual(Backward):
    """With a tangent."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        Backward.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*ctx.to_save)

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, grad_tangent: Any, *tangents: Any) -> Any:
        saved = ctx.saved_tensors

        def rule(*tensors: Any) -> Any:
            count = len(saved)
            return _tangents(ctx.bound, ctx.needs, tensors[:count], tensors[count:])

        return below(rule, *saved, grad_tangent, *tangents)


def _tangents(
    bound: Bound, needs: tuple[str, ...], saved: Sequence[Any], tangents: Sequence[Any]
) -> tuple[Any, ...]:
    """The tangents of a backward's gradients; both sequences begin with that of the output."""
    bridge = bound.bridge
    (grad_output, *tensors), (grad_tangent, *tangents) = saved, tangents
    result = [None] * len(bridge.differentiable)
    if grad_tangent is not None:
        result = BackwardDual.apply(bound, needs, grad_tangent, *tensors)
    moving = {
        name: tangent
        for name, tangent in zip(bridge.kept, tangents, strict=True)
        if tangent is not None and name in bridge.differentiable
    }
    if moving:
        given = dict(zip(bridge.kept, tensors, strict=True))
        wanted = [n for n in bridge.differentiable if n in needs and n in given]
        _, pulled = _pull(bound, given, moving, wanted, grad_output)
        result = [
            r if n not in pulled else pulled[n] if r is None else r + pulled[n]
            for n, r in zip(bridge.differentiable, result, strict=True)
        ]
    return tuple(
        _zeros(bound, name if name in needs else None, tensors) if r is None else r
        for name, r in zip(bridge.differentiable, result, strict=True)
    )


def _zeros(bound: Bound, name: str | None, tensors: Sequence[Any]) -> Any:
    """A gradient that does not change; one that is not needed is empty."""
    given = dict(zip(bound.bridge.kept, tensors, strict=True))
    if name is None:
        return tensors[0].new_zeros(0)
    outline = plan(bound.bridge.name, given, bound.options).gradients[name]
    return given[outline.like].new_zeros(outline.shape)


def curvature(
    bound: Bound,
    needs: Sequence[str],
    grad_output: Any,
    tensors: Sequence[Any],
    directions: Sequence[Any],
    needed: Sequence[bool],
) -> list[Any]:
    """The gradient of a backward, for grad_output and the tensors it was called with.

    A backward called for `needs` gives g with <g, v> = <jvp(v), grad_output> for all directions v
    of the tensors. So <g, v> has the gradient jvp(v) along grad_output, and along the tensors
    that of the right-hand side.
    """
    bridge = bound.bridge
    given = dict(zip(bridge.kept, tensors, strict=True))
    moving = {
        name: direction
        for name, direction in zip(bridge.differentiable, directions, strict=True)
        if name in needs and direction is not None
    }
    if not moving:
        return [None] * len(needed)
    wanted = _with_gradient(bridge, bridge.kept, needed[1:])
    output, pulled = _pull(bound, given, moving, wanted, grad_output)
    return [output if needed[0] else None, *(pulled.get(name) for name in bridge.kept)]


def _pull(
    bound: Bound,
    given: dict[str, Any],
    directions: dict[str, Any],
    wanted: Sequence[str],
    grad_output: Any,
) -> tuple[Any, dict[str, Any]]:
    """The derivative along `directions`, and the gradients of its product with grad_output."""

    def along(*moving: Any) -> Any:
        return _directional(bound, {**given, **dict(zip(wanted, moving, strict=True))}, directions)

    if not wanted:
        return along(), {}
    output, pull = torch.func.vjp(along, *(given[name] for name in wanted))
    return output, dict(zip(wanted, pull(grad_output), strict=True))


def _directional(bound: Bound, given: dict[str, Any], directions: dict[str, Any]) -> Any:
    return derivatives.jvp(bound.bridge.name, _OPERATORS, _TORCH, given, directions, bound.options)


def call(bound: Bound, tensors: Sequence[Any]) -> Any:
    """The forward under torch.func and with tangents, which boxes do not pass on."""
    moving = bound.bridge.differentiable
    tensors = [
        tensor if tensor is None or name in moving else tensor.detach()
        for name, tensor in zip(bound.bridge.names, tensors, strict=True)
    ]
    return (_ForwardDual if is_forward_mode() else Forward).apply(bound, *tensors)


def _operator(bridge: Bridge) -> Any:
    def operator(**given: Any) -> Any:
        pairs = {n for n in bridge.static if not isinstance(given.get(n), torch.Tensor)}
        tensors = [None if name in pairs else given.pop(name, None) for name in bridge.names]
        return call(Bound(bridge, given), tensors)

    return operator


_OPERATORS = {name: _operator(bridge) for name, bridge in BRIDGES.items()}
_TORCH = derivatives.Namespace.of(
    torch,
    moveaxis=torch.movedim,  # the other has no rule for vmap
    constant=lambda array, like: torch.as_tensor(array, dtype=like.dtype, device=like.device),
    arange=lambda n, like: torch.arange(n, dtype=like.dtype, device=like.device),
    dtype_name=lambda tensor: str(tensor.dtype).removeprefix("torch."),
    cast=lambda tensor, name: tensor.to(getattr(torch, name)),
    still=torch.Tensor.detach,
    values=values,
)
