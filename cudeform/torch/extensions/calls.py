"""What all functions of stand-ins share: outputs that the caller has made, and no gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from cudeform import checks

Y_FIRST = "kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w"

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Not differentiable, as a compiled one, and of the dtypes it is given, also under autocast."""

    @functools.wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        first = given[0] if given else next(iter(options.values()))
        device = first.device.type
        with torch.no_grad():
            if not torch.is_autocast_enabled(device):
                return function(*given, **options)
            with torch.autocast(device, enabled=False):
                return function(*given, **options)

    return call  # type: ignore[return-value]


def named(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function that takes what it needs by name have the arguments of the original.

    `names` are those of the original in its order, separated by spaces; ``name=0`` has a default.
    """
    signature = inspect.Signature([_parameter(name) for name in " ".join(names).split()])

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            given.apply_defaults()
            return function(**given.arguments)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    name, _, default = name.partition("=")
    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    return inspect.Parameter(name, kind, default=int(default) if default else none)


def fill(output: torch.Tensor, result: torch.Tensor) -> None:
    """Write a result where the caller wants it, whatever shape he gave that."""
    output.view_as(result).copy_(result)


def add(gradient: torch.Tensor, more: torch.Tensor, scale: float = 1) -> None:
    """Accumulate where the original does."""
    gradient.view_as(more).add_(more, alpha=scale)


def expect(op: str, **pairs: tuple[Any, Any]) -> None:
    """Numbers that the caller tells beside tensors: each as given, and as these have it."""
    for name, (given, found) in pairs.items():
        if given != found:
            checks.fail(op, name, f"to be {found}, as the tensors have it", given)
