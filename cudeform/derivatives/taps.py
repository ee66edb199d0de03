"""Convolutions whose taps move: slopes between whole coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np

from cudeform.derivatives.calls import Call, border, check_sides


def along(call: Call, tangent: Any) -> list[Any]:
    xp, offset = call.xp, call.primals["offset"]
    check_sides(call, "offset", (call.plan.points.height, call.plan.points.width))
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
        low, moves = border(call, _start(call, offset, axis), pair[axis], axis)
        mask = xp.where(moves, tangents[axis], 0)
        if "mask" in call.primals:
            mask = mask * call.primals["mask"]
        for end, sign in ((low + 1, 1), (low, -1)):
            moved = list(pair)
            moved[axis] = end
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
