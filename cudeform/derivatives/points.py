"""Convolutions and samples whose points move: slopes between whole coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np

from cudeform.derivatives.calls import Call

__all__ = ["along_offset", "along_points"]


def _border(call: Call, coordinate: Any, axis: int) -> tuple[Any, Any]:
    """The lower pixel of a coordinate along y (0) or x (1), and where S has a slope there."""
    points = call.plan.points
    if points.border == "clamp":
        size = (points.height, points.width)[axis]
        moves = (coordinate >= 0) & (coordinate < size - 1)
    else:  # beyond the other edge both samples are 0
        moves = coordinate > -1
    return call.xp.floor(coordinate), moves


def along_points(call: Call, tangent: Any) -> list[Any]:
    xp, points = call.xp, call.primals["points"]
    terms = []
    for axis in (0, 1):
        low, moves = _border(call, points[..., axis], axis)
        factor = xp.where(moves, tangent[..., axis], 0)
        ends = []
        for end in (low + 1, low):
            pair = [points[..., 0], points[..., 1]]
            pair[axis] = end
            ends.append(call(points=xp.stack(pair, -1)))
        factor = factor[..., None] if call.plan.points.channels_last else factor[:, None]
        terms.append((ends[0] - ends[1]) * factor)
    return terms


def along_offset(call: Call, tangent: Any) -> list[Any]:
    xp, offset = call.xp, call.primals["offset"]
    axes = offset.shape
    last = call.plan.points.channels_last
    # (N, taps, 2, Ho, Wo) or (N, Ho, Wo, taps, 2), with the taps of all offset groups
    at = -1 if last else 2
    split = (*axes[:3], axes[3] // 2, 2) if last else (axes[0], axes[1] // 2, 2, *axes[2:])
    pair, tangents = (
        [
            xp.reshape(array, split)[(..., axis) if last else (slice(None), slice(None), axis)]
            for axis in (0, 1)
        ]
        for array in (offset, tangent)
    )
    terms = []
    for axis in (0, 1):
        start = _start(call, offset, axis)
        low, moves = _border(call, pair[axis] + start, axis)
        mask = xp.where(moves, tangents[axis], 0)
        if "mask" in call.primals:
            mask = mask * call.primals["mask"]
        for end, sign in ((low + 1, 1), (low, -1)):
            moved = list(pair)
            moved[axis] = end - start
            term = call(offset=xp.reshape(xp.stack(moved, at), axes), mask=mask)
            terms.append(term if sign == 1 else -term)
    return terms


def _start(call: Call, offset: Any, axis: int) -> Any:
    """Where the taps read along y (0) or x (1) without an offset, to add to a channel each."""
    xp, points = call.xp, call.plan.points
    tap = np.indices(points.kernel)[axis].ravel() * points.dilation[axis]
    taps = xp.constant(np.tile(tap, points.offset_groups), offset)
    pixels = (points.out_height, points.out_width)[axis]
    pixels = xp.arange(pixels, offset) * points.stride[axis] + points.origin[axis]
    if axis == 0:
        pixels = pixels[:, None]  # (Ho, 1)
    return pixels[..., None] + taps if points.channels_last else pixels + taps[:, None, None]
