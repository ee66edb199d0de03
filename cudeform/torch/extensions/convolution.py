"""Deformable convolutions with the arguments of mmcv, detectron2, BasicSR and DCNv2.

Those of version 1 count x before y, those of version 2 height before width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import add, compiled, expect, fill

__all__ = [
    "dcn_backward",
    "dcn_forward",
    "dcn_v2_backward",
    "dcn_v2_forward",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_dcn_backward",
    "modulated_dcn_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]


def _expect(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, kernel: Any, group: int, groups: int
) -> None:
    """The numbers that follow from the shapes here, and are arguments there."""
    taps = weight.shape[2] * weight.shape[3]
    expect(
        op,
        kernel_size=(tuple(kernel), tuple(weight.shape[2:])),
        group=(group, input.shape[1] // weight.shape[1]),
        deformable_group=(groups, offset.shape[1] // (2 * taps)),
    )


@compiled
def deform_conv_forward(
    input: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (O, C/group, kH, kW)
    offset: Tensor,  # (N, 2*deformable_group*kH*kW, Ho, Wo)
    output: Tensor,  # (N, O, Ho, Wo), filled
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    op = "deform_conv_forward"
    _expect(op, input, offset, weight, (kH, kW), group, deformable_group)
    options = dict(stride=(dH, dW), padding=(padH, padW), dilation=(dilationH, dilationW))
    fill(output, cudeform.deform_conv2d(input, offset, weight, **options))


@compiled
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,  # added to
    gradOffset: Tensor,  # filled
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    op = "deform_conv_backward_input"
    _expect(op, input, offset, weight, (kH, kW), group, deformable_group)
    options = dict(stride=(dH, dW), padding=(padH, padW), dilation=(dilationH, dilationW))
    found = cudeform.deform_conv2d_backward(
        gradOutput, input, offset, weight, needs=("input", "offset"), **options
    )
    add(gradInput, found.input)
    fill(gradOffset, found.offset)


@compiled
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,  # added to
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    op = "deform_conv_backward_parameters"
    _expect(op, input, offset, gradWeight, (kH, kW), group, deformable_group)
    options = dict(stride=(dH, dW), padding=(padH, padW), dilation=(dilationH, dilationW))
    # The weight has no part in its own gradient: that gradient has its shape.
    found = cudeform.deform_conv2d_backward(
        gradOutput, input, offset, gradWeight, needs=("weight",), **options
    )
    add(gradWeight, found.weight, scale)


@compiled
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,  # (O), or of any size without
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,  # (N, deformable_group*kh*kw, Ho, Wo)
    output: Tensor,  # filled
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    op = "modulated_deform_conv_forward"
    _expect(op, input, offset, weight, (kernel_h, kernel_w), group, deformable_group)
    options = _options(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    bias = bias if with_bias else None
    fill(output, cudeform.deform_conv2d(input, offset, weight, bias, mask=mask, **options))


@compiled
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,  # added to, as those of weight and bias
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,  # filled, as that of mask
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    op = "modulated_deform_conv_backward"
    _expect(op, input, offset, weight, (kernel_h, kernel_w), group, deformable_group)
    options = _options(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    needs = ("input", "offset", "weight", "mask") + (("bias",) if with_bias else ())
    found = cudeform.deform_conv2d_backward(
        grad_output, input, offset, weight, mask=mask, needs=needs, **options
    )
    add(grad_input, found.input)
    add(grad_weight, found.weight)
    if with_bias:
        add(grad_bias, found.bias)
    fill(grad_offset, found.offset)
    fill(grad_mask, found.mask)


def _options(
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int
) -> dict[str, Any]:
    """As they are named here, from the order in which DCNv2 has them."""
    return dict(
        stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w)
    )


@compiled
def dcn_v2_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
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
    deformable_group: int,
) -> Tensor:
    op = "dcn_v2_forward"
    _expect(op, input, offset, weight, (kernel_h, kernel_w), 1, deformable_group)
    options = _options(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    return cudeform.deform_conv2d(input, offset, weight, bias, mask=mask, **options)


@compiled
def dcn_v2_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    deformable_group: int,
) -> list[Tensor]:
    """The gradients of input, offset, mask, weight and bias."""
    op = "dcn_v2_backward"
    _expect(op, input, offset, weight, (kernel_h, kernel_w), 1, deformable_group)
    options = _options(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    found = cudeform.deform_conv2d_backward(
        grad_output, input, offset, weight, mask=mask, **options
    )
    return [found.input, found.offset, found.mask, found.weight, found.bias]


@compiled
def dcn_forward(
    input: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, *numbers: int
) -> Tensor:
    """`numbers`: kernel, stride, padding and dilation as (h, w), both groups, im2col_step."""
    options = _dcn_options("deform_conv_forward", input, offset, weight, numbers)
    return cudeform.deform_conv2d(input, offset, weight, bias, **options)


@compiled
def dcn_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    *numbers: int,
) -> list[Tensor]:
    """The gradients of input, offset, weight and bias."""
    options = _dcn_options("deform_conv_backward", input, offset, weight, numbers)
    found = cudeform.deform_conv2d_backward(grad_output, input, offset, weight, **options)
    return [found.input, found.offset, found.weight, found.bias]


@compiled
def modulated_dcn_forward(
    input: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, mask: Tensor, *numbers: int
) -> Tensor:
    op = "modulated_deform_conv_forward"
    options = _dcn_options(op, input, offset, weight, numbers)
    return cudeform.deform_conv2d(input, offset, weight, bias, mask=mask, **options)


@compiled
def modulated_dcn_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    mask: Tensor,
    grad_output: Tensor,
    *numbers: int,
) -> list[Tensor]:
    """The gradients of input, offset, mask, weight and bias."""
    op = "modulated_deform_conv_backward"
    options = _dcn_options(op, input, offset, weight, numbers)
    found = cudeform.deform_conv2d_backward(
        grad_output, input, offset, weight, mask=mask, **options
    )
    return [found.input, found.offset, found.mask, found.weight, found.bias]


def _dcn_options(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, numbers: tuple[int, ...]
) -> dict[str, Any]:
    if len(numbers) != 11:
        raise TypeError(f"{op}: expected 11 numbers after the tensors, got {len(numbers)}")
    *others, group, deformable_group, _ = numbers
    _expect(op, input, offset, weight, others[:2], group, deformable_group)
    return _options(*others[2:])
