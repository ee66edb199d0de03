"""`dcnv3` and `dcnv4` with the arguments of their compiled modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import Y_FIRST, compiled, named

_NUMBERS = f"{Y_FIRST} group group_channels offset_scale"
_OF_DCNV4 = "remove_center d_stride block_thread softmax"


def _options(numbers: dict[str, Any]) -> dict[str, Any]:
    """From the numbers as both modules name them."""
    pairs = {"kernel_size": "kernel", "stride": "stride", "padding": "pad", "dilation": "dilation"}
    return {
        **{ours: (numbers[f"{n}_h"], numbers[f"{n}_w"]) for ours, n in pairs.items()},
        "groups": numbers["group"],
        "offset_scale": float(numbers["offset_scale"]),
        "remove_center": bool(numbers["remove_center"]),
    }


# Of these the last argument came with version 1.1.
@compiled
@named("input offset mask", _NUMBERS, "im2col_step remove_center=0")
def dcnv3_forward(input: Tensor, offset: Tensor, mask: Tensor, **numbers: Any) -> Tensor:
    return cudeform.dcnv3(input, offset, mask, **_options(numbers))


@compiled
@named("input offset mask", _NUMBERS, "grad_output im2col_step remove_center=0")
def dcnv3_backward(
    input: Tensor, offset: Tensor, mask: Tensor, grad_output: Tensor, **numbers: Any
) -> list[Tensor]:
    """The gradients of input, offset and mask."""
    options = _options(numbers)
    return list(cudeform.dcnv3_backward(grad_output, input, offset, mask, **options))


@compiled
@named("value p_offset", _NUMBERS, "im2col_step", _OF_DCNV4)
def dcnv4_forward(
    value: Tensor,  # (N, H, W, C)
    p_offset: Tensor,  # (N, Ho, Wo, channels), offsets and masks of each group
    softmax: bool,
    **numbers: Any,
) -> Tensor:
    options = _options(numbers)
    if not softmax:
        return cudeform.dcnv4(value, p_offset, **options)
    return cudeform.dcnv3(value, *_apart(p_offset, numbers), **options, softmax=True)


@compiled
@named("value p_offset", _NUMBERS, "im2col_step grad_output", _OF_DCNV4)
def dcnv4_backward(
    value: Tensor, p_offset: Tensor, grad_output: Tensor, softmax: bool, **numbers: Any
) -> list[Tensor]:
    """The gradients of value and p_offset."""
    options = _options(numbers)
    if not softmax:
        return list(cudeform.dcnv4_backward(grad_output, value, p_offset, **options))
    apart = _apart(p_offset, numbers)
    found = cudeform.dcnv3_backward(grad_output, value, *apart, **options, softmax=True)
    return [found.input, cudeform.pack_dcnv4(found.offset, found.mask, numbers["group"])]


def _apart(p_offset: Tensor, numbers: dict[str, Any]) -> tuple[Tensor, Tensor]:
    points = numbers["kernel_h"] * numbers["kernel_w"] - numbers["remove_center"]
    return cudeform.unpack_dcnv4(p_offset, numbers["group"], points)
