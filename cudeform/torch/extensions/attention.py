"""Multi-scale deformable attention with the arguments of the compiled modules for it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import add, compiled, fill


def _check_starts(op: str, shapes: Tensor, starts: Tensor | None) -> None:
    """Levels lie one after the other here; on a GPU nobody waits to see that they do."""
    if starts is None or starts.is_cuda or shapes.is_cuda:
        return
    sizes = [height * width for height, width in shapes.tolist()]
    expected = [0, *itertools.accumulate(sizes[:-1])]
    if starts.tolist() != expected:
        raise NotImplementedError(
            f"{op}: expected `level_start_index` to be {expected}, levels one after the other, "
            f"got {starts.tolist()}"
        )


@compiled
def ms_deform_attn_forward(
    value: Tensor,  # (N, S, M, D)
    value_spatial_shapes: Tensor,  # (L, (H, W))
    value_level_start_index: Tensor,  # (L)
    sampling_locations: Tensor,  # (N, Lq, M, L, P, (x, y))
    attention_weights: Any,  # (N, Lq, M, L, P)
    im2col_step: int | None = None,
) -> Tensor:  # (N, Lq, M*D)
    """With five arguments there is no `value_level_start_index`, as in TransTrack."""
    starts, locations, weights = value_level_start_index, sampling_locations, attention_weights
    if im2col_step is None:
        starts, locations, weights = None, starts, locations
    _check_starts("ms_deform_attn_forward", value_spatial_shapes, starts)
    return cudeform.ms_deform_attn(value, value_spatial_shapes, locations, weights)


@compiled
def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Any,  # (N, Lq, M*D)
    im2col_step: int | None = None,
) -> list[Tensor]:
    """The gradients of value, locations and weights; six arguments go with the forward's five."""
    starts, locations, weights, grad = level_start_index, sampling_loc, attn_weight, grad_output
    if im2col_step is None:
        starts, locations, weights, grad = None, starts, locations, weights
    _check_starts("ms_deform_attn_backward", spatial_shapes, starts)
    return list(cudeform.ms_deform_attn_backward(grad, value, spatial_shapes, locations, weights))


@compiled
def ms_deform_attn_backward_(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,  # added to
    grad_sampling_loc: Tensor,  # filled, as that of the weights
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """mmcv's, into tensors of the caller."""
    _check_starts("ms_deform_attn_backward", value_spatial_shapes, value_level_start_index)
    found = cudeform.ms_deform_attn_backward(
        grad_output, value, value_spatial_shapes, sampling_locations, attention_weights
    )
    add(grad_value, found.value)
    fill(grad_sampling_loc, found.sampling_locations)
    fill(grad_attn_weight, found.attention_weights)


def _parts(sampling_loc_attn: Tensor, shapes: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Locations, and the logits behind them, of one head: (N, Lq, M, L*P*3)."""
    levels = shapes.shape[0]
    locations, logits = sampling_loc_attn.split([2 * levels * points, levels * points], dim=-1)
    return locations.unflatten(-1, (levels, points, 2)), logits.unflatten(-1, (levels, points))


@compiled
def flash_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc_attn: Tensor,
    im2col_step: int,
    K: int,  # points of each level
    d_stride: int,
    block_thread: int,
) -> Tensor:
    _check_starts("flash_deform_attn_forward", spatial_shapes, level_start_index)
    locations, logits = _parts(sampling_loc_attn, spatial_shapes, K)
    return cudeform.ms_deform_attn(value, spatial_shapes, locations, logits, softmax=True)


@compiled
def flash_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc_attn: Tensor,
    grad_output: Tensor,
    im2col_step: int,
    K: int,
    d_stride: int,
    block_thread: int,
) -> list[Tensor]:
    """The gradients of value and of the locations with the logits."""
    _check_starts("flash_deform_attn_backward", spatial_shapes, level_start_index)
    locations, logits = _parts(sampling_loc_attn, spatial_shapes, K)
    found = cudeform.ms_deform_attn_backward(
        grad_output, value, spatial_shapes, locations, logits, softmax=True
    )
    gradients = (found.sampling_locations.flatten(-3), found.attention_weights.flatten(-2))
    return [found.value, torch.cat(gradients, -1)]
