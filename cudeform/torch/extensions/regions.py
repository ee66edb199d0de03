"""Poolings of regions with the arguments of mmcv, DCNv2 and mmdetection 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import add, compiled, fill, named
from cudeform.torch.state import untraced

_MODES = ("max", "avg")
_OUTSIDE, _NOWHERE = -2, -1  # where the largest sample is, here and there


@compiled
def roi_align_forward(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (R, 5)
    output: Tensor,  # (R, C, ph, pw), filled
    argmax_y: Tensor,  # with pool_mode 0 of the same shape, and filled
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,  # 0: maximum; 1: average
    aligned: bool,
) -> None:
    size, mode = (aligned_height, aligned_width), _MODES[pool_mode]
    options = (size, spatial_scale, sampling_ratio, bool(aligned))
    if mode == "avg":
        fill(output, cudeform.roi_align(input, rois, *options))
        return
    largest, at = cudeform.roi_align(input, rois, *options, mode=mode, return_argmax=True)
    fill(output, largest)
    for given, found in zip((argmax_y, argmax_x), at.unbind(1), strict=True):
        fill(given, torch.where(found == _OUTSIDE, _NOWHERE, found))


# Not to be traced: the images are not among the arguments, and a trace would look for the largest
# samples in them.
@untraced
@compiled
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,  # (N, C, H, W), added to
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    size, mode = (aligned_height, aligned_width), _MODES[pool_mode]
    options = (size, spatial_scale, sampling_ratio, bool(aligned))
    at = None
    if mode == "max":
        at = torch.stack([argmax_y, argmax_x], 1)
        at = torch.where(at == _NOWHERE, _OUTSIDE, at)
        at = at.to(torch.float64 if at.dtype == torch.float64 else torch.float32)
    # Of the images it is the shape alone that counts, which is that of their gradient.
    found = cudeform.roi_align_backward(
        grad_output, grad_input, rois, *options, mode=mode, argmax=at
    )
    add(grad_input, found.input)


def _bins(rois: Tensor, images: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """mmcv's bins of regions that are not rounded, each as a box of whole pixels.

    (R, 5) -> (R*ph*pw, 5), last pixels included; a bin without pixels lies outside.
    """
    rois = rois.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
    sides, empty = [], False
    for axis, bins in zip((1, 0), size, strict=True):  # y, x
        low, high = rois[:, 1 + axis] * scale, (rois[:, 3 + axis] + 1) * scale
        length, pixels = (high - low)[:, None], images.shape[2 + (1 - axis)]
        step = torch.arange(bins, device=rois.device, dtype=rois.dtype)
        first = (step * (length / bins) + low[:, None]).floor().clamp(0, pixels)
        end = ((step + 1) * (length / bins) + low[:, None]).ceil().clamp(0, pixels)
        shape = (-1, bins, 1) if axis == 1 else (-1, 1, bins)
        empty = empty | ((end <= first) | (length <= 0)).view(shape)
        sides.append((first.view(shape), end.view(shape) - 1))
    (y1, y2), (x1, x2) = sides
    x1, x2 = (torch.where(empty, images.shape[3], x) for x in (x1, x2))
    image = rois[:, 0].view(-1, 1, 1)
    return torch.stack(torch.broadcast_tensors(image, x1, y1, x2, y2), -1).view(-1, 5)


def _one_by_one(bins: Tensor) -> Tensor:
    """(R, C, ph, pw) -> (R*ph*pw, C, 1, 1)"""
    return bins.permute(0, 2, 3, 1).reshape(-1, bins.shape[1], 1, 1)


def _together(pooled: Tensor, like: Tensor) -> Tensor:
    """The inverse, for as many regions as another tensor has."""
    regions, channels, height, width = like.shape
    return pooled.view(regions, height, width, channels).permute(0, 3, 1, 2)


@compiled
def roi_pool_forward(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (R, 5)
    output: Tensor,  # (R, C, ph, pw), filled
    argmax: Tensor,  # int32 of the same shape, filled: y*W + x, -1 for none
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """mmcv's, whose regions go from x1*s to (x2 + 1)*s, unlike torchvision's not rounded before."""
    boxes = _bins(rois, input, (pooled_height, pooled_width), spatial_scale)
    largest, at = cudeform.roi_pool(input, boxes, 1, return_argmax=True)
    fill(output, _together(largest, output))
    fill(argmax, _together(at, argmax))


@untraced  # as `roi_align_backward`
@compiled
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,  # added to
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    boxes = _bins(rois, grad_input, (pooled_height, pooled_width), spatial_scale)
    found = cudeform.roi_pool_backward(
        _one_by_one(grad_output), grad_input, boxes, 1, argmax=_one_by_one(argmax)
    )
    add(grad_input, found.input)


_OF_DEFORM = "pooled_height pooled_width spatial_scale sampling_ratio gamma"


def _deform(offset: Tensor, numbers: dict[str, Any]) -> dict[str, Any]:
    """The offset (R, 2, ph, pw), unless it is empty, and the options as they are named here."""
    others = {name: numbers[name] for name in ("spatial_scale", "sampling_ratio", "gamma")}
    return {
        "offset": offset if offset.numel() else None,
        "output_size": (numbers["pooled_height"], numbers["pooled_width"]),
        **others,
    }


@compiled
@named("input rois offset output", _OF_DEFORM)
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,  # filled
    **numbers: Any,
) -> None:
    fill(output, cudeform.deform_roi_pool(input, rois, **_deform(offset, numbers)))


@compiled
@named("grad_output input rois offset grad_input grad_offset", _OF_DEFORM)
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,  # added to, as that of offset
    grad_offset: Tensor,
    **numbers: Any,
) -> None:
    options = _deform(offset, numbers)
    found = cudeform.deform_roi_pool_backward(grad_output, input, rois, **options)
    add(grad_input, found.input)
    if found.offset is not None:
        add(grad_offset, found.offset)


def _counts(input: Tensor, bbox: Tensor, trans: Tensor | None, options: dict[str, Any]) -> Tensor:
    """How many samples of each bin are inside.  # (R, output_dim, pooled_size, pooled_size)

    An axis at a time: a sample counts if it does along both.
    """
    bins, samples = options["output_size"], options["sample_per_part"]
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    corners = bbox[:, 1:].to(dtype)
    corners = torch.copysign((corners.abs() + 0.5).floor(), corners)  # halves away from zero
    low = corners[:, :2] * options["spatial_scale"] - 0.5
    high = (corners[:, 2:] + 1) * options["spatial_scale"] - 0.5
    size = (high - low).clamp(min=0.1)[:, :, None, None, None]  # (R, (x, y), 1, 1, 1)
    step = torch.arange(bins, device=bbox.device)
    moved = torch.zeros((), dtype=dtype, device=bbox.device)
    if trans is not None:
        part = (step / bins * options["part_size"]).floor().long()
        cells = trans.to(dtype).unflatten(1, (-1, 2))[..., part[:, None], part]
        moved = cells.transpose(1, 2) * options["trans_std"]  # (R, 2, classes, ph, pw)
    inside = []
    for axis in (0, 1):
        at = step if axis == 0 else step[:, None]  # x along the columns of bins, y the rows
        shift = moved[:, axis] if moved.ndim else moved
        start = at * (size[:, axis] / bins) + low[:, axis, None, None, None] + shift * size[:, axis]
        sample = torch.arange(samples, device=bbox.device, dtype=dtype)
        points = start[..., None] + sample * (size[:, axis, ..., None] / bins / samples)
        pixels = input.shape[3 - axis]
        inside.append(((points >= -0.5) & (points <= pixels - 0.5)).sum(-1))
    counts = (inside[0] * inside[1]).to(input.dtype)  # (R, classes, ph, pw)
    return counts.repeat_interleave(options["output_dim"] // counts.shape[1], 1).expand(
        -1, -1, bins, bins
    )


_OF_PSROI = (
    "no_trans spatial_scale output_dim group_size output_size part_size sample_per_part trans_std"
)


def _psroi(
    bbox: Tensor, trans: Tensor, numbers: dict[str, Any]
) -> tuple[Tensor | None, dict[str, Any]]:
    """The offsets, if there are any, and the options as they are named here.

    Callers pass offsets for more regions than there are; the others have none.
    """
    options = dict(numbers)
    return None if options.pop("no_trans") else trans[: len(bbox)], options


@compiled
@named("input bbox trans", _OF_PSROI)
def deform_psroi_pooling_forward(
    input: Tensor, bbox: Tensor, trans: Tensor, **numbers: Any
) -> tuple[Tensor, Tensor]:
    """The bins, and how many samples are in each."""
    offset, options = _psroi(bbox, trans, numbers)
    pooled = cudeform.deform_ps_roi_pool(input, bbox, offset, **options)
    return pooled, _counts(input, bbox, offset, options)


@compiled
@named("out_grad input bbox trans top_count", _OF_PSROI)
def deform_psroi_pooling_backward(
    out_grad: Tensor, input: Tensor, bbox: Tensor, trans: Tensor, top_count: Tensor, **numbers: Any
) -> tuple[Tensor, Tensor]:
    """The gradients of input and trans."""
    offset, options = _psroi(bbox, trans, numbers)
    found = cudeform.deform_ps_roi_pool_backward(out_grad, input, bbox, offset, **options)
    if offset is not None and len(offset) == len(trans):
        return found.input, found.offset
    moved = torch.zeros_like(trans)
    if offset is not None:
        moved[: len(offset)] = found.offset
    return found.input, moved


@compiled
@named("data rois offset output output_count", _OF_PSROI)
def deform_psroi_pooling_forward_(
    data: Tensor, rois: Tensor, offset: Tensor, output: Tensor, output_count: Tensor, **numbers: Any
) -> None:
    """The same into tensors of the caller."""
    pooled, counts = deform_psroi_pooling_forward(data, rois, offset, **numbers)
    fill(output, pooled)
    fill(output_count, counts)


@compiled
@named("grad_output data rois offset output_count grad_input grad_offset", _OF_PSROI)
def deform_psroi_pooling_backward_(
    grad_output: Tensor,
    data: Tensor,
    rois: Tensor,
    offset: Tensor,
    output_count: Tensor,
    grad_input: Tensor,  # added to, as that of offset
    grad_offset: Tensor,
    **numbers: Any,
) -> None:
    found, moved = deform_psroi_pooling_backward(
        grad_output, data, rois, offset, output_count, **numbers
    )
    add(grad_input, found)
    if not numbers["no_trans"]:
        add(grad_offset, moved)
