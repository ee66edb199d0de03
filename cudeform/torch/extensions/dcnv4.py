"""The package DCNv4: modules with its arguments and parameters, and its functions."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cudeform.torch import nn
from cudeform.torch.extensions.attention import (
    flash_deform_attn_backward,
    flash_deform_attn_forward,
)
from cudeform.torch.extensions.dcnv3 import dcnv4_backward, dcnv4_forward


class DCNv4Function(torch.autograd.Function):
    """``apply(input, offset_mask, *numbers)`` with the numbers of `dcnv4_forward`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, offset_mask: Tensor, *numbers: Any) -> Tensor:
        ctx.save_for_backward(input, offset_mask)
        ctx.numbers = numbers
        return dcnv4_forward(input, offset_mask, *numbers, 0, 0, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        *numbers, remove_center = ctx.numbers
        found = dcnv4_backward(
            *ctx.saved_tensors, *numbers, grad_output, remove_center, 0, 0, False
        )
        return *found, *(None for _ in ctx.numbers)


class FlashDeformAttnFunction(torch.autograd.Function):
    """``apply(value, shapes, starts, sampling_loc_attn, im2col_step, K)``."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_loc_attn: Tensor,
        im2col_step: int,
        K: int = 8,
    ) -> Tensor:
        tensors = (value, value_spatial_shapes, value_level_start_index, sampling_loc_attn)
        ctx.save_for_backward(*tensors)
        ctx.numbers = (im2col_step, K, 0, 0)
        return flash_deform_attn_forward(*tensors, *ctx.numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        found = flash_deform_attn_backward(*ctx.saved_tensors, grad_output, *ctx.numbers)
        return found[0], None, None, found[1], None, None


class DCNv4(nn.DCNv4):
    """The module of DCNv4, which passes over options that it does not have."""

    def __init__(self, *given: Any, **options: Any) -> None:
        known = inspect.signature(nn.DCNv4).parameters
        super().__init__(*given, **{k: v for k, v in options.items() if k in known})


class FlashDeformAttn(nn.MSDeformAttn):
    """Its attention, with the parameters of Deformable DETR."""

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4
    ) -> None:
        super().__init__(d_model, n_levels, n_heads, n_points)
