"""Calls of the public functions with tensors: what is checked, and which way they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cudeform import checks
from cudeform.ops.call import outlined
from cudeform.torch import (
    autocast,
    channels_last,
    library,  # noqa: F401  defines torch.ops.cudeform
    sharding,
)
from cudeform.torch.asked import Asked, asked
from cudeform.torch.autograd import (
    Backward,
    BackwardDual,
    Bound,
    Eager,
    apply,
    dispatched,
    dispatched_backward,
)
from cudeform.torch.autograd import call as transformed_call
from cudeform.torch.boxes import rows_of
from cudeform.torch.exchange import check_dense, compute, direct
from cudeform.torch.signatures import BRIDGES, Bridge
from cudeform.torch.state import (
    is_forward_mode,
    is_noticed,
    is_plain,
    is_under_autocast,
    transformed,
    untraced,
)

_SIZES = {name for bridge in BRIDGES.values() for name in bridge.static}


def call(name: str, function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Answer a call of a public function of cudeform that has a tensor among its arguments.

    `given` holds the arguments as they came, by name. Results are differentiable tensors.
    """
    moved = channels_last.last(name, given)
    if moved is None:
        return _call(name, function, given)
    if torch.compiler.is_compiling():
        return channels_last.first(name, _call(name, function, moved))
    try:
        return channels_last.first(name, _call(name, function, moved))
    except (TypeError, ValueError):
        return _call(name, function, given)  # says what is wrong with the axes that were given


def _call(name: str, function: Callable[..., Any], given: dict[str, Any]) -> Any:
    bridge = BRIDGES.get(name)
    if bridge is not None:
        return _forward(bridge, given)
    if name.endswith("_backward"):
        return _backward(BRIDGES[name.removesuffix("_backward")], given)
    tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
    _check(name, tensors)
    check_dense(name, {k: v for k, v in tensors.items() if k not in _SIZES})
    return function(**given)  # of torch's own functions: see `cudeform.torch.kind`


def _forward(bridge: Bridge, given: dict[str, Any]) -> Any:
    call = _direct(bridge.forward, given, bridge.required)
    if call is not None:
        if not (call.differentiated and torch.is_grad_enabled()):
            return direct(call)
        listed = bridge.boxes and isinstance(given[bridge.boxes], (list, tuple))
        if not listed and given.get("return_argmax", False) is False:
            tensors, options = _apart(bridge, bridge.names, given)
            options.pop("return_argmax", None)
            return apply(Bound(bridge, options), call, *tensors)
    if "return_argmax" in given:
        given = dict(given)
        if checks.flag(bridge.name, "return_argmax", given.pop("return_argmax")):
            return _forward(bridge, given), _argmax(bridge, given)
    tensors, options = _arguments(bridge, bridge.names, given)
    if torch.compiler.is_compiling() and not transformed():
        return _traced(bridge, tensors, options)
    if autocast.is_on(tensors[0]):
        with autocast.outside():
            result = _answer(bridge, [autocast.wide(t) for t in tensors], options)
            return autocast.narrowed(result, tensors[0])
    return _answer(bridge, tensors, options)


def _answer(bridge: Bridge, tensors: Sequence[Any], options: dict[str, Any]) -> Any:
    bound = Bound(bridge, options)
    if transformed():
        return _untraced_call(bound, tensors)
    if not is_plain(tensors):
        return _traced(bridge, tensors, options)
    if _is_differentiated(tensors):
        return Eager.apply(bound, None, *tensors)
    return compute(bridge.forward, dict(zip(bridge.names, tensors, strict=True)), options)


def _argmax(bridge: Bridge, given: dict[str, Any]) -> Any:
    """Which pixels or samples were the largest. They have no derivative."""
    tensors, options = _arguments(bridge, bridge.names, given)
    tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
    options["return_argmax"] = True
    if torch.compiler.is_compiling() and not transformed():
        return dispatched(bridge, tensors, options)[1]
    bound = Bound(bridge, options)
    if autocast.is_on(tensors[0]):  # the others may differ from it in dtype
        tensors = [autocast.wide(tensor) for tensor in tensors]
    return (_untraced_call(bound, tensors) if transformed() else bound.forward(tensors))[1]


def _direct(
    function: Callable[..., Any], given: dict[str, Any], required: Sequence[str]
) -> Asked | None:
    """A call that computes on memory of one device, while nobody asks how; None for others.

    For most calls of a network there is one, and the longer way is left for the others.
    """
    if torch.compiler.is_compiling() or is_under_autocast() or is_noticed():
        return None
    return asked(function, given, required)


# An operator of torch.library has no tangent, and says nothing of it: not to be compiled.
_untraced_call = untraced(transformed_call)


@untraced
def _untraced_gradients(bound: Bound, needs: tuple[str, ...], tensors: Sequence[Any]) -> Any:
    return (BackwardDual if is_forward_mode() else Backward).apply(bound, needs, *tensors)


def _traced(bridge: Bridge, tensors: Sequence[Any], options: dict[str, Any]) -> Any:
    if not torch.compiler.is_compiling():
        sharding.register()
    return dispatched(bridge, tensors, options)


def _is_differentiated(tensors: Sequence[Any]) -> bool:
    """Whether one of them has a gradient, and it is asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _backward(bridge: Bridge, given: dict[str, Any]) -> Any:
    names = ("grad_output", *bridge.kept)
    call = _direct(bridge.backward, given, ("grad_output", *bridge.required))
    if call is not None and not (call.differentiated and torch.is_grad_enabled()):
        return direct(call)
    op = bridge.name + "_backward"
    tensors, options = _arguments(bridge, names, given, "_backward")
    kept = dict(zip(bridge.kept, tensors[1:], strict=True))
    absent = {name: None for name in bridge.kept if kept[name] is None}
    wanted = checks.needs(op, options.pop("needs", None), absent, bridge.differentiable)
    needs = tuple(sorted(wanted))
    argmax = options.pop("argmax", None)
    if argmax is not None:
        _check(op, {"grad_output": tensors[0], "argmax": argmax})
    if torch.compiler.is_compiling() and not transformed():
        found = dispatched_backward(bridge, needs, tensors, options)
    elif autocast.is_on(tensors[0]):
        with autocast.outside():
            wide = [autocast.wide(tensor) for tensor in tensors]
            found = _gradients(bridge, wide, options, needs, argmax)
            found = autocast.narrowed_gradients(bridge, found, tensors[1:])
    else:
        found = _gradients(bridge, tensors, options, needs, argmax)
    by_name = zip(bridge.differentiable, found, strict=True)
    return bridge.gradients(**{n: g if n in needs else None for n, g in by_name})


def _gradients(
    bridge: Bridge,
    tensors: Sequence[Any],
    options: dict[str, Any],
    needs: tuple[str, ...],
    argmax: Any,
) -> tuple[Any, ...]:
    bound = Bound(bridge, options)
    given = dict(zip(("grad_output", *bridge.kept), tensors, strict=True), argmax=argmax)
    differentiated = _is_differentiated(tensors) or transformed()
    if argmax is not None and is_plain((*tensors, argmax)) and not differentiated:
        return compute(bridge.backward, given, {**options, "needs": needs})
    if argmax is not None:  # it is found once more, but a wrong one is an error all the same
        outlined(bridge.name + "_backward", given, options)
    if differentiated:
        return _untraced_gradients(bound, needs, tensors)
    return bound.backward(needs, tensors[0], tensors[1:])


def _apart(
    bridge: Bridge, names: Sequence[str], given: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The tensors in the order of `names`, and the other arguments: pairs of sizes are of those."""
    options = dict(given)
    tensors = [options.pop(name, None) for name in names]
    for name in bridge.static:
        if isinstance(given.get(name), (list, tuple)):
            options[name], tensors[names.index(name)] = given[name], None
    return tensors, options


def _arguments(
    bridge: Bridge, names: Sequence[str], given: dict[str, Any], suffix: str = ""
) -> tuple[list[Any], dict[str, Any]]:
    """The same, once the tensors are checked."""
    tensors, options = _apart(bridge, names, given)
    device, required = None, ("grad_output", *bridge.required)
    for position, tensor in enumerate(tensors):
        if tensor is None and names[position] not in required:
            continue
        if names[position] in bridge.static and _is_on_host(tensor):
            continue
        if isinstance(tensor, (list, tuple)) and names[position] == bridge.boxes:
            tensor = tensors[position] = _rows(bridge, suffix, tensor, given[bridge.images])
        if not isinstance(tensor, torch.Tensor) or (device or tensor.device) != tensor.device:
            _check(bridge.name + suffix, dict(zip(names, tensors, strict=True)), required)
        if not _is_memory(tensor):
            check_dense(bridge.name + suffix, {names[position]: tensor})
        device = tensor.device
    return tensors, options


def _is_on_host(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.is_cpu and _is_memory(tensor)


def _is_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an array: not sparse, quantised or nested."""
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def _check(op: str, tensors: dict[str, Any], required: Sequence[str] = ()) -> None:
    """All of torch, and of one device."""
    first = next(n for n, t in tensors.items() if isinstance(t, torch.Tensor))
    why = "all arrays of one call belong to one framework"
    for name, tensor in tensors.items():
        if tensor is None and name not in required:
            continue
        if not isinstance(tensor, torch.Tensor):
            expected = f"to be a torch.Tensor like `{first}`"
            checks.fail(op, name, expected, checks.type_name(tensor), why, TypeError)
        if tensor.device != tensors[first].device:
            expected = f"on {tensors[first].device} like `{first}`"
            checks.fail(op, name, expected, tensor.device, error=TypeError)


def _rows(bridge: Bridge, suffix: str, boxes: Sequence[Any], images: Any) -> Any:
    """Boxes by image, each (L, 4), as rows (image, x1, y1, x2, y2)."""
    op, argument = bridge.name + suffix, bridge.boxes
    if len(boxes) != images.shape[0]:
        expected = f"of length {images.shape[0]}, one array per image"
        checks.fail(op, argument, expected, len(boxes))
    for image, of_image in enumerate(boxes):
        if not isinstance(of_image, torch.Tensor):
            name, got = f"{argument}[{image}]", checks.type_name(of_image)
            expected = f"to be a torch.Tensor like `{bridge.images}`"
            checks.fail(op, name, expected, got, error=TypeError)
        if of_image.ndim != 2 or of_image.shape[1] != 4:
            checks.fail(op, f"{argument}[{image}]", "of shape (L, 4)", tuple(of_image.shape))
    return rows_of(boxes, images)
