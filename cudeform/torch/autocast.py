"""Autocast: operators compute in float32, since 16 bits are too few for coordinates.

Results come back in the dtype of the images, gradients in that of the argument they belong to.
`library` has these rules for the dispatcher, which compiled and exported programs go through, and
`route` for the shorter ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cudeform.torch.signatures import Bridge
from cudeform.torch.state import is_under_autocast, without

# By device that operators compute on, the key that torch's dispatcher looks for under autocast.
KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_HALF = (torch.float16, torch.bfloat16)


def is_on(tensor: torch.Tensor) -> bool:
    """Whether autocast is on where a tensor is."""
    if not is_under_autocast():
        return False
    device = tensor.device.type
    return device in KEYS and torch.is_autocast_enabled(device)


# A context in which the dispatcher does not look for autocast.
outside = without(KEYS.values())


def wide(value: Any) -> Any:
    """A tensor of 16 bits in float32; all else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in _HALF else value


def narrowed(result: Any, images: torch.Tensor) -> Any:
    """The result, or the first of several, in the dtype of the images."""
    if isinstance(result, tuple):
        return result[0].to(images.dtype), *result[1:]
    return result.to(images.dtype)


def narrowed_gradients(bridge: Bridge, gradients: Sequence[Any], kept: Sequence[Any]) -> list[Any]:
    """Each gradient in the dtype of its argument; an addend, which is not kept, has a factor's."""
    given = dict(zip(bridge.kept, kept, strict=True))
    dtypes = {name: tensor.dtype for name, tensor in given.items() if tensor is not None}
    dtypes |= {name: dtypes[like] for name, like in bridge.addends.items() if like in dtypes}
    return [
        gradient if gradient is None or name not in dtypes else gradient.to(dtypes[name])
        for name, gradient in zip(bridge.differentiable, gradients, strict=True)
    ]
