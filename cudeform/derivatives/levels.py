"""Points of several levels that move: slopes between whole coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np

from cudeform.derivatives.calls import Call, check_sides


def along(call: Call, tangent: Any) -> list[Any]:
    xp, plan = call.xp, call.plan
    locations, weights = call.primals["sampling_locations"], call.primals["attention_weights"]
    if plan.method == "nearest":  # a pixel is what it is
        return [call(attention_weights=xp.zeros_like(weights))]
    check_sides(call, "sampling_locations", [side for size in plan.shapes or () for side in size])
    shape = tuple(locations.shape)
    axes = (*shape[:3], plan.samples)  # those of the points as one
    pairs = (xp.reshape(array, (*axes, 2)) for array in (locations, tangent))
    located, moved = ([array[..., axis] for axis in (0, 1)] for array in pairs)
    shares = xp.reshape(weights, axes)
    sizes = _sizes(call, locations)
    terms = []
    for axis in (0, 1):  # x, y
        size = sizes[axis]
        at = located[axis] * size - 0.5
        below = xp.floor(at)
        moves = (below > -1) | ((below == -1) & (at > below))  # beyond, all samples are 0
        factor = xp.where(moves & (below < size), shares * moved[axis] * size, 0)
        factor = xp.reshape(factor, tuple(weights.shape))
        for end, sign in ((below + 1, 1), (below, -1)):
            ends = list(located)
            ends[axis] = (end + 0.5) / size
            term = call(
                sampling_locations=xp.reshape(xp.stack(ends, -1), shape), attention_weights=factor
            )
            terms.append(term if sign == 1 else -term)
    return terms


def _sizes(call: Call, like: Any) -> list[Any]:
    """Width, and height, of the level of each point, in the dtype of the locations."""
    xp, plan = call.xp, call.plan
    level = np.repeat(np.arange(plan.levels), plan.points)
    if plan.shapes is not None:
        return [xp.constant(np.array(plan.shapes)[level, axis], like) for axis in (1, 0)]
    shapes = xp.cast(call.primals["spatial_shapes"], xp.dtype_name(like))
    parts = [shapes[index] for index in level.tolist()]
    sizes = xp.stack(parts, 0)
    return [sizes[:, 1], sizes[:, 0]]
