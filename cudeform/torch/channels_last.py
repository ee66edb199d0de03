"""Convolutions of tensors in ``torch.channels_last``, which are read as they lie.

As of torch's own convolutions the result is in that format, too, and so are the gradients. The call
becomes one with layout "NHWC" of views, whose axes are in the order of memory: all that autograd,
compilers and transforms see.
"""

from __future__ import annotations

from typing import Any

import torch

from cudeform.registry import OPERATORS

# By function: the arrays whose channels move, and those that may tell that they do.
_MOVED = {
    name: ("grad_output", *(a.name for a in row.arguments if a.axes[0] == "N"))
    for row in OPERATORS
    if row.family == "conv"
    for name in (row.name, row.name + "_backward")
}
_TELLING = ("input", "weight")


def last(name: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of the same call in layout "NHWC"; None where that is not to be made."""
    moved = _MOVED.get(name)
    if moved is None or not any(_is_last(given.get(n)) for n in _TELLING):
        return None
    layout = given.get("layout", "NCHW")
    if not isinstance(layout, str) or layout != "NCHW":
        return None
    views: dict[str, Any] = {"layout": "NHWC"}
    for n in moved:
        tensor = given.get(n)
        if tensor is not None:
            if not _is_image(tensor):
                return None
            views[n] = tensor.permute(0, 2, 3, 1)
    return {**given, **views}


def first(name: str, found: Any) -> Any:
    """The result of a call that `last` made, or its gradients, with the axes of layout "NCHW"."""
    if not isinstance(found, tuple):
        return found.permute(0, 3, 1, 2)
    moved = _MOVED[name]
    return type(found)(
        *(
            gradient if gradient is None or n not in moved else gradient.permute(0, 3, 1, 2)
            for n, gradient in zip(found._fields, found, strict=True)
        )
    )


def _is_image(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 4
        and value.layout is torch.strided
        and not value.is_nested
    )


def _is_last(value: Any) -> bool:
    """Whether torch takes a tensor for one in ``torch.channels_last``: its strides tell.

    Where an axis has one entry they may be those of several formats, and channels are first.
    """
    if not _is_image(value):
        return False
    steps = value.stride()
    if steps[1] == 0 or steps[1] > steps[3]:  # of most tensors
        return False
    if torch.jit.is_tracing():  # which warns of all that is asked of sizes
        return value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
    least = 0
    for axis in (1, 3, 2):  # nothing is asked of how many images there are: nobody may know yet
        if steps[axis] < least:
            return False
        least = steps[axis] * max(value.shape[axis], 1)
    return least != steps[1] and steps[0] >= least
