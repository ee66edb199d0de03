"""What all functions of stand-ins share: outputs that the caller has made, and no gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from cudeform import checks

__all__ = ["add", "compiled", "expect", "fill"]

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
