"""Deformable convolutions with the arguments of mmcv, detectron2, BasicSR and DCNv2.

Those of version 1 count x before y, those of version 2 height before width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import Y_FIRST, add, compiled, expect, fill, named

_X_FIRST = "kW kH dW dH padW padH dilationW dilationH group deformable_group"
_TENSORS = "input weight bias offset"


def _options(
    op: str, input: Tensor, offset: Tensor, weight: Tensor, numbers: dict[str, Any]
) -> dict[str, Any]:
    """What the numbers say, by the names of either version, that the shapes do not say as well.

    DCNv2's have no groups of channels.
    """
    x_first = "kW" in numbers
    names = (_X_FIRST if x_first else Y_FIRST).split()[:8]
    pairs = [(numbers[n], numbers[m]) for n, m in zip(names[::2], names[1::2], strict=True)]
    kernel, stride, padding, dilation = (pair[::-1] for pair in pairs) if x_first else pairs
    taps = weight.shape[2] * weight.shape[3]
    expect(
        op,
        kernel_size=(kernel, tuple(weight.shape[2:])),
        group=(numbers.get("group", 1), input.shape[1] // weight.shape[1]),
        deformable_group=(numbers["deformable_group"], offset.shape[1] // (2 * taps)),
    )
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
    options = _options("deform_conv_forward", input, offset, weight, numbers)
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
    options = _options("deform_conv_backward_input", input, offset, weight, numbers)
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
    options = _options("deform_conv_backward_parameters", input, offset, gradWeight, numbers)
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
    options = _options("modulated_deform_conv_forward", input, offset, weight, numbers)
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
    options = _options("modulated_deform_conv_backward", input, offset, weight, others)
    needs = ("input", "offset", "weight", "mask") + (("bias",) if with_bias else ())
    found = cudeform.deform_conv2d_backward(
        grad_output, input, offset, weight, mask=mask, needs=needs, **options
    )
    for name in needs:
        write = fill if name in ("offset", "mask") else add
        write(others[f"grad_{name}"], getattr(found, name))


def _forward(op: str, *names: str) -> Callable[..., Tensor]:
    """A function that returns its output, with such arguments; version 1 has no mask."""

    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        offset: Tensor,
        mask: Tensor | None = None,
        **numbers: Any,
    ) -> Tensor:
        options = _options(op, input, offset, weight, numbers)
        return cudeform.deform_conv2d(input, offset, weight, bias, mask=mask, **options)

    forward.__name__ = op
    return compiled(named(*names)(forward))


def _backward(op: str, *names: str) -> Callable[..., list[Tensor]]:
    """The gradients of input, offset, mask, weight and bias."""

    def backward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        offset: Tensor,
        grad_output: Tensor,
        mask: Tensor | None = None,
        **numbers: Any,
    ) -> list[Tensor]:
        options = _options(op, input, offset, weight, numbers)
        found = cudeform.deform_conv2d_backward(
            grad_output, input, offset, weight, mask=mask, **options
        )
        ordered = found.input, found.offset, found.mask, found.weight, found.bias
        return [gradient for gradient in ordered if gradient is not None]

    backward.__name__ = op
    return compiled(named(*names)(backward))


_OF_DCN = f"{Y_FIRST} group deformable_group im2col_step"

dcn_v2_forward = _forward("dcn_v2_forward", _TENSORS, "mask", Y_FIRST, "deformable_group")
dcn_v2_backward = _backward(
    "dcn_v2_backward", _TENSORS, "mask grad_output", Y_FIRST, "deformable_group"
)
dcn_forward = _forward("deform_conv_forward", _TENSORS, _OF_DCN)
dcn_backward = _backward("deform_conv_backward", _TENSORS, "grad_output", _OF_DCN)
modulated_dcn_forward = _forward("modulated_deform_conv_forward", _TENSORS, "mask", _OF_DCN)
modulated_dcn_backward = _backward(
    "modulated_deform_conv_backward", _TENSORS, "mask grad_output", _OF_DCN
)
