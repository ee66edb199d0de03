"""The package DCNv4: modules with its arguments and parameters, and its functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cudeform import checks
from cudeform.torch.extensions.attention import (
    flash_deform_attn_backward,
    flash_deform_attn_forward,
)
from cudeform.torch.extensions.dcnv3 import dcnv4_backward, dcnv4_forward

__all__ = ["DCNv4", "DCNv4Function", "FlashDeformAttn", "FlashDeformAttnFunction"]


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


def _plain(layer: nn.Module) -> nn.Module:
    """Zeros, which begin with no offsets."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _projection(channels: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(channels, channels, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class DCNv4(nn.Module):
    """The module of DCNv4, whose checkpoints it loads.

    Parameters
    ----------
    channels, kernel_size, stride, pad, dilation, group : int
        Of square kernels; the groups divide the channels.
    offset_scale : float
        Factor of the offsets and of the kernel's grid.
    dw_kernel_size : int, optional
        Of a depthwise convolution before the branch.
    center_feature_scale : bool
        Whether the input has a part in the result that is learned.
    remove_center : bool
        Whether the tap in the middle is left out.
    output_bias, without_pointwise : bool
        Of the projections before and after.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        if channels % group:
            checks.fail("DCNv4", "channels", f"divisible by {group} = group", channels)
        self.channels, self.kernel_size, self.stride, self.pad = channels, kernel_size, stride, pad
        self.dilation, self.group, self.group_channels = dilation, group, channels // group
        self.offset_scale, self.dw_kernel_size = offset_scale, dw_kernel_size
        self.center_feature_scale, self.remove_center = center_feature_scale, int(remove_center)
        self.without_pointwise = without_pointwise
        self.K = group * (kernel_size**2 - self.remove_center)
        if dw_kernel_size is not None:
            padding = (dw_kernel_size - 1) // 2
            self.offset_mask_dw = nn.Conv2d(
                channels, channels, dw_kernel_size, padding=padding, groups=channels
            )
        self.offset_mask = _plain(nn.Linear(channels, math.ceil(3 * self.K / 8) * 8))
        if not without_pointwise:
            self.value_proj = _projection(channels)
            self.output_proj = _projection(channels, output_bias)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """(N, H*W, C), and (H, W) unless these are equal -> (N, Ho*Wo, C)"""
        batch, pixels, channels = input.shape
        height, width = shape if shape is not None else (math.isqrt(pixels),) * 2
        value = input if self.without_pointwise else self.value_proj(input)
        value = value.reshape(batch, height, width, -1)
        seen = input.reshape(batch, height, width, channels)
        if self.dw_kernel_size is not None:
            seen = self.offset_mask_dw(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        result = DCNv4Function.apply(value, self.offset_mask(seen), *self._numbers())
        if self.center_feature_scale:
            weight, bias = (
                self.center_feature_scale_proj_weight,
                self.center_feature_scale_proj_bias,
            )
            share = nn.functional.linear(result, weight, bias).sigmoid()
            share = share.repeat_interleave(self.group_channels, -1)
            result = result * (1 - share) + value * share
        result = result.flatten(1, 2)
        return result if self.without_pointwise else self.output_proj(result)

    def _numbers(self) -> tuple[Any, ...]:
        pairs = (self.kernel_size, self.stride, self.pad, self.dilation)
        sizes = (number for number in pairs for _ in range(2))
        groups = (self.group, self.group_channels, self.offset_scale)
        return *sizes, *groups, 0, self.remove_center


class FlashDeformAttn(nn.Module):
    """Multi-scale deformable attention of DCNv4: parameters as in Deformable DETR.

    Parameters
    ----------
    d_model, n_levels, n_heads, n_points : int
        Channels, levels, heads, and points of each level.
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            checks.fail("FlashDeformAttn", "d_model", f"divisible by {n_heads} = n_heads", d_model)
        self.d_model, self.n_levels, self.n_heads, self.n_points = (
            d_model,
            n_levels,
            n_heads,
            n_points,
        )
        points = n_heads * n_levels * n_points
        self.sampling_offsets = _plain(nn.Linear(d_model, 2 * points))
        self.attention_weights = _plain(nn.Linear(d_model, points))
        self.value_proj, self.output_proj = _projection(d_model), _projection(d_model)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(self._rays().flatten())

    def _rays(self) -> Tensor:
        """Points of each head in a direction of its own, a step further each.  # (M, L, P, 2)"""
        angles = torch.arange(self.n_heads) * (2 * math.pi / self.n_heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.n_points + 1)[:, None]
        return (rays[:, None, None] * steps).repeat(1, self.n_levels, 1, 1)

    def forward(
        self,
        query: Tensor,  # (N, Lq, C)
        reference_points: Tensor,  # (N, Lq, L, 2) points or (N, Lq, L, 4) boxes
        input_flatten: Tensor,  # (N, S, C)
        input_spatial_shapes: Tensor,  # (L, 2)
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,  # (N, S), True where there is nothing
    ) -> Tensor:
        if reference_points.shape[-1] not in (2, 4):
            expected, shape = "with 2 or 4 numbers a point", tuple(reference_points.shape)
            checks.fail("FlashDeformAttn", "reference_points", expected, shape)
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0)
        value = value.unflatten(-1, (self.n_heads, -1))
        by_point = (self.n_heads, self.n_levels, self.n_points, 2)
        offsets = self.sampling_offsets(query).unflatten(-1, by_point)
        centres = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            locations = centres + offsets / input_spatial_shapes.flip(-1)[:, None]
        else:
            sizes = centres[..., 2:] * (0.5 / self.n_points)
            locations = centres[..., :2] + offsets * sizes
        logits = self.attention_weights(query).unflatten(-1, (self.n_heads, -1))
        together = torch.cat([locations.flatten(-3), logits], -1)
        output = FlashDeformAttnFunction.apply(
            value, input_spatial_shapes, input_level_start_index, together, 64, self.n_points
        )
        return self.output_proj(output)
