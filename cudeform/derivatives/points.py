"""Samples whose points move: slopes between whole coordinates."""

from __future__ import annotations

from typing import Any

from cudeform.derivatives.calls import Call, border, check_sides


def along(call: Call, tangent: Any) -> list[Any]:
    xp, points = call.xp, call.primals["points"]
    check_sides(call, "points", (call.plan.points.height, call.plan.points.width))
    terms = []
    for axis in (0, 1):
        low, moves = border(call, 0, points[..., axis], axis)
        factor = xp.where(moves, tangent[..., axis], 0)
        ends = []
        for end in (low + 1, low):
            pair = [points[..., 0], points[..., 1]]
            pair[axis] = end
            ends.append(call(points=xp.stack(pair, -1)))
        factor = factor[..., None] if call.plan.points.channels_last else factor[:, None]
        terms.append((ends[0] - ends[1]) * factor)
    return terms
