"""`dcnv3` and `dcnv4` with the arguments of their compiled modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import compiled

__all__ = ["dcnv3_backward", "dcnv3_forward", "dcnv4_backward", "dcnv4_forward"]


def _options(*numbers: float) -> dict[str, Any]:
    """From the numbers in the order in which both modules have them."""
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, *others = numbers
    dilation_h, dilation_w, group, _, offset_scale, remove_center = others
    return {
        "kernel_size": (kernel_h, kernel_w),
        "stride": (stride_h, stride_w),
        "padding": (pad_h, pad_w),
        "dilation": (dilation_h, dilation_w),
        "groups": group,
        "offset_scale": float(offset_scale),
        "remove_center": bool(remove_center),
    }


@compiled
def dcnv3_forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    remove_center: int = 0,  # since version 1.1
) -> Tensor:
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    options = _options(*sizes, group, group_channels, offset_scale, remove_center)
    return cudeform.dcnv3(input, offset, mask, **options)


@compiled
def dcnv3_backward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    grad_output: Tensor,
    im2col_step: int,
    remove_center: int = 0,
) -> list[Tensor]:
    """The gradients of input, offset and mask."""
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    options = _options(*sizes, group, group_channels, offset_scale, remove_center)
    return list(cudeform.dcnv3_backward(grad_output, input, offset, mask, **options))


@compiled
def dcnv4_forward(
    value: Tensor,  # (N, H, W, C)
    p_offset: Tensor,  # (N, Ho, Wo, channels), offsets and masks of each group
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    remove_center: int,
    d_stride: int,
    block_thread: int,
    softmax: bool,
) -> Tensor:
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    options = _options(*sizes, group, group_channels, offset_scale, remove_center)
    if not softmax:
        return cudeform.dcnv4(value, p_offset, **options)
    apart = cudeform.unpack_dcnv4(p_offset, group, kernel_h * kernel_w - remove_center)
    return cudeform.dcnv3(value, *apart, **options, softmax=True)


@compiled
def dcnv4_backward(
    value: Tensor,
    p_offset: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    grad_output: Tensor,
    remove_center: int,
    d_stride: int,
    block_thread: int,
    softmax: bool,
) -> list[Tensor]:
    """The gradients of value and p_offset."""
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    options = _options(*sizes, group, group_channels, offset_scale, remove_center)
    if not softmax:
        return list(cudeform.dcnv4_backward(grad_output, value, p_offset, **options))
    apart = cudeform.unpack_dcnv4(p_offset, group, kernel_h * kernel_w - remove_center)
    found = cudeform.dcnv3_backward(grad_output, value, *apart, **options, softmax=True)
    return [found.input, cudeform.pack_dcnv4(found.offset, found.mask, group)]
