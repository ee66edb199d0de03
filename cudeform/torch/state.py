"""What torch is doing meanwhile: who listens, which transforms are at work, what they wrap.

Torch says most of this in private names only. They stand in this file and no other, so that a new
version of torch is read against it alone.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch._C._functorch import TransformType, _unwrap_for_grad, _wrap_for_grad
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.utils import unwrap_dead_wrappers

PLAIN = (torch.Tensor, torch.nn.Parameter)

_disabled: dict[Callable[..., Any], Callable[..., Any]] = {}


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.compiler.disable, which imports the compiler: that takes a second."""

    @functools.wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # then nothing is traced
            return function(*given, **options)
        if function not in _disabled:
            _disabled[function] = torch.compiler.disable(function)
        return _disabled[function](*given, **options)

    return call


def _keys(*names: str) -> Any:
    """The set of these keys of torch's dispatcher."""
    keys = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names)
    return functools.reduce(operator.or_, keys)


def _raw_keys(device: str) -> frozenset[int]:
    """Those of a tensor made in inference mode, and of another, as numbers."""
    keys = device, "Autocast" + device
    both = _keys(*keys), _keys(*keys, "Autograd" + device, "ADInplaceOrView")
    return frozenset(of_tensor.raw_repr() for of_tensor in both)


_keys_of = torch._C._dispatch_keys
_HOST, _GPU = _raw_keys("CPU"), _raw_keys("CUDA")


def place_of(tensor: Any) -> int | None:
    """Where a tensor of the types `PLAIN` is numbers as memory holds them: the number of a GPU, or
    -1 on the host.

    The dispatcher would have another key for whatever else it is, which is None: sparse, quantised,
    nested, negative, zeros without memory, wrapped by a transform, on another device.
    """
    keys = _keys_of(tensor).raw_repr()
    if keys in _HOST:
        return -1
    return tensor.get_device() if keys in _GPU else None


def is_plain(tensors: Sequence[Any]) -> bool:
    """Whether all tensors are memory that can be computed on, and nobody listens.

    `torch.autograd.grad` with `is_grads_batched`, and what is made of it, has a vmap of its own,
    whose tensors say that they are of the CPU, and have no memory.
    """
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in PLAIN or place_of(tensor) is None and not _has_memory(tensor)
        ):
            return False
    return not _is_watched()


def _has_memory(tensor: Any) -> bool:
    on_device = tensor.is_cpu or tensor.is_cuda
    return on_device and not torch._C._functorch.is_legacy_batchedtensor(tensor)


def _is_watched() -> bool:
    """Whether a mode, a trace or a transform wants to see what is called."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or bool(torch._C._functorch.maybe_current_level())
    )


def is_noticed() -> bool:
    """Whether a call is more than numbers from numbers: `_is_watched` or `transformed`, at once."""
    c = torch._C
    return (
        c._len_torch_dispatch_stack() > 0
        or c._get_tracing_state() is not None
        or c._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def _current_stream(device: int) -> int:
    return torch.cuda.current_stream(device).cuda_stream


# The current stream on a GPU of a number, as CUDA knows it
raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)


def settled(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose memory holds its numbers.

    Of the imaginary part of a conjugate it holds the negative ones, and of a zero that torch has
    not written anywhere it is null. DLPack says nothing of either.
    """
    return tensor.clone() if tensor.is_neg() or tensor._is_zerotensor() else tensor


def is_forward_mode() -> bool:
    """Whether tangents are carried along."""
    return torch.autograd.forward_ad._current_level >= 0


def transformed() -> bool:
    """Whether torch.func is at work, or tangents are carried along."""
    return torch._C._are_functorch_transforms_active() or is_forward_mode()


def below(rule: Callable[..., Any], *tensors: Any) -> Any:
    """What a rule for tangents makes of tensors, with tangents of its own.

    torch.func calls a rule at the level of its transform, where forward mode is switched off: to
    a transform around it what comes out would be constant, in silence. A level further down it is
    not.
    """
    top = torch._C._functorch.peek_interpreter_stack()
    if top is None or top.key() != TransformType.Jvp:
        return rule(*tensors)
    level = top.level()
    lower = [None if t is None else _unwrap_for_grad(t, level) for t in tensors]
    with (
        torch.autograd.forward_ad._set_fwd_grad_enabled(True),
        retrieve_current_functorch_interpreter().lower(),
    ):
        found = rule(*lower)
    if isinstance(found, tuple):
        return tuple(_wrap_for_grad(tensor, level) for tensor in found)
    return _wrap_for_grad(found, level)


# Whether autocast is on, on whichever device
is_under_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled


def without(keys: Iterable[str]) -> Callable[[], Any]:
    """Contexts in which the dispatcher does not look for these of its keys."""
    excluded = _keys(*keys)
    return lambda: torch._C._ExcludeDispatchKeyGuard(excluded)


def unwrapped(tensors: Sequence[Any]) -> tuple[Any, ...]:
    """Without the wrappers of transforms that have ended since the tensors were saved."""
    return unwrap_dead_wrappers(tuple(tensors))


def values(tensor: Any) -> Any:
    """As a NumPy array; None for tensors without memory, or that differ along an axis of vmap."""
    with torch._C._DisableFuncTorch():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            if torch._C._functorch.is_batchedtensor(tensor):
                return None
            tensor = torch._C._functorch.get_unwrapped(tensor)
        known = type(tensor) in PLAIN and (tensor.is_cpu or tensor.is_cuda)
        listened = torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state()
        return tensor.detach().cpu().numpy() if known and not listened else None
