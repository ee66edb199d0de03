"""Deformable convolutions with the arguments of mmcv, detectron2, BasicSR and DCNv2.

Those of version 1 count x before y, those of version 2 height before width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import Y_FIRST, add, by_name, compiled, expect, fill, named

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


_X_FIRST = "kW kH dW dH padW padH dilationW dilationH group deformable_group"
_TENSORS = "input weight bias offset mask"


def _x_first(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, numbers: dict[str, Any]
) -> dict[str, Any]:
    """The options of version 1."""
    kernel, stride, padding, dilation = (
        (numbers[f"{name}H"], numbers[f"{name}W"]) for name in ("k", "d", "pad", "dilation")
    )
    _expect(op, input, offset, weight, kernel, numbers["group"], numbers["deformable_group"])
    return dict(stride=stride, padding=padding, dilation=dilation)


def _y_first(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, numbers: dict[str, Any]
) -> dict[str, Any]:
    """The options of version 2; DCNv2's has no groups of channels."""
    kernel, stride, padding, dilation = (
        (numbers[f"{name}_h"], numbers[f"{name}_w"])
        for name in ("kernel", "stride", "pad", "dilation")
    )
    group = numbers.get("group", 1)
    _expect(op, input, offset, weight, kernel, group, numbers["deformable_group"])
    return dict(stride=stride, padding=padding, dilation=dilation)


@compiled
@named("input weight offset output columns ones", _X_FIRST, "im2col_step")
def deform_conv_forward(
    input: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (O, C/group, kH, kW)
    offset: Tensor,  # (N, 2*deformable_group*kH*kW, Ho, Wo)
    output: Tensor,  # (N, O, Ho, Wo), filled
    **numbers: Any,
) -> None:
    options = _x_first("deform_conv_forward", input, offset, weight, numbers)
    fill(output, cudeform.deform_conv2d(input, offset, weight, **options))


@compiled
@named("input offset gradOutput gradInput gradOffset weight columns", _X_FIRST, "im2col_step")
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,  # added to
    gradOffset: Tensor,  # filled
    weight: Tensor,
    **numbers: Any,
) -> None:
    options = _x_first("deform_conv_backward_input", input, offset, weight, numbers)
    found = cudeform.deform_conv2d_backward(
        gradOutput, input, offset, weight, needs=("input", "offset"), **options
    )
    add(gradInput, found.input)
    fill(gradOffset, found.offset)


@compiled
@named("input offset gradOutput gradWeight columns ones", _X_FIRST, "scale im2col_step")
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,  # added to
    scale: float,
    **numbers: Any,
) -> None:
    options = _x_first("deform_conv_backward_parameters", input, offset, gradWeight, numbers)
    # The weight has no part in its own gradient: that gradient has its shape.
    found = cudeform.deform_conv2d_backward(
        gradOutput, input, offset, gradWeight, needs=("weight",), **options
    )
    add(gradWeight, found.weight, scale)


@compiled
@named(
    "input weight bias ones offset mask output columns",
    Y_FIRST,
    "group deformable_group with_bias",
)
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,  # (O), or of any size without
    offset: Tensor,
    mask: Tensor,  # (N, deformable_group*kh*kw, Ho, Wo)
    output: Tensor,  # filled
    with_bias: bool,
    **numbers: Any,
) -> None:
    options = _y_first("modulated_deform_conv_forward", input, offset, weight, numbers)
    bias = bias if with_bias else None
    fill(output, cudeform.deform_conv2d(input, offset, weight, bias, mask=mask, **options))


@compiled
@named(
    "input weight bias ones offset mask columns",
    "grad_input grad_weight grad_bias grad_offset grad_mask grad_output",
    Y_FIRST,
    "group deformable_group with_bias",
)
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **others: Any,  # with gradients: those of offset and mask are filled, the others added to
) -> None:
    options = _y_first("modulated_deform_conv_backward", input, offset, weight, others)
    needs = ("input", "offset", "weight", "mask") + (("bias",) if with_bias else ())
    found = cudeform.deform_conv2d_backward(
        grad_output, input, offset, weight, mask=mask, needs=needs, **options
    )
    for name in needs:
        write = fill if name in ("offset", "mask") else add
        write(others[f"grad_{name}"], getattr(found, name))


@compiled
@named(_TENSORS, Y_FIRST, "deformable_group")
def dcn_v2_forward(
    input: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, mask: Tensor, **numbers: Any
) -> Tensor:
    options = _y_first("dcn_v2_forward", input, offset, weight, numbers)
    return cudeform.deform_conv2d(input, offset, weight, bias, mask=mask, **options)


@compiled
@named(_TENSORS, "grad_output", Y_FIRST, "deformable_group")
def dcn_v2_backward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, grad_output: Tensor, **others: Any
) -> list[Tensor]:
    """The gradients of input, offset, mask, weight and bias."""
    options = _y_first("dcn_v2_backward", input, offset, weight, others)
    return _gradients(grad_output, input, offset, weight, mask, options)


def _gradients(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    options: dict[str, Any],
) -> list[Tensor]:
    """Those of version 2, in the order of DCNv2."""
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
    return _gradients(grad_output, input, offset, weight, mask, options)


def _dcn_options(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, numbers: tuple[int, ...]
) -> dict[str, Any]:
    names = f"{Y_FIRST} group deformable_group im2col_step"
    return _y_first(op, input, offset, weight, by_name(op, names, numbers))
