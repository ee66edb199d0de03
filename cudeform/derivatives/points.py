"""Convolutions and samples whose points move: slopes between whole coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np

from cudeform import checks
from cudeform.derivatives.calls import Call

__all__ = ["along_offset", "along_points"]


def _border(call: Call, coordinate: Any, axis: int) -> tuple[Any, Any]:
    """The lower pixel of a coordinate along y (0) or x (1), and where S has a slope there."""
    last = call.options["layout"] == "NHWC"
    size = call.primals["input"].shape[axis + (1 if last else 2)]
    if call.options["border"] == "clamp":
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
        factor = factor[..., None] if call.options["layout"] == "NHWC" else factor[:, None]
        terms.append((ends[0] - ends[1]) * factor)
    return terms


def along_offset(call: Call, tangent: Any) -> list[Any]:
    xp, offset = call.xp, call.primals["offset"]
    axes = offset.shape
    last = call.options["layout"] == "NHWC"
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
    xp, options = call.xp, call.options
    last = options["layout"] == "NHWC"
    kernel = call.primals["weight"].shape[2:]
    stride = checks.pair(call.name, "stride", options["stride"], 1)[axis]
    dilation = checks.pair(call.name, "dilation", options["dilation"], 1)[axis]
    before = checks.pad_pairs(call.name, "padding", options["padding"])[axis][0]
    groups = int(offset.shape[3 if last else 1]) // (2 * int(kernel[0]) * int(kernel[1]))
    tap = np.indices([int(k) for k in kernel])[axis].ravel() * dilation
    taps = xp.constant(np.tile(tap, groups), offset)
    pixels = xp.arange(offset.shape[axis + (1 if last else 2)], offset) * stride - before
    if axis == 0:
        pixels = pixels[:, None]  # (Ho, 1)
    return pixels[..., None] + taps if last else pixels + taps[:, None, None]
