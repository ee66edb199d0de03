"""Points around the pixels of an output that move: slopes between whole coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cudeform.derivatives.calls import Call, check_sides
from cudeform.plans import plan


def apart(
    call: Call, name: str, function: Callable[..., Any], tangents: dict[str, Any]
) -> tuple[Call, dict[str, Any]]:
    """The same with offsets and factors in arrays of their own, as the operator `name` has them."""
    primals, tangents = _unpacked(call, call.primals), _unpacked(call, tangents)
    planned = plan(name, primals, call.options)
    return call._replace(function=function, primals=primals, plan=planned), tangents


def _unpacked(call: Call, arrays: dict[str, Any]) -> dict[str, Any]:
    if "offset_mask" not in arrays:
        return dict(arrays)
    xp, (*outputs, groups, points) = call.xp, call.plan.shares
    used = arrays["offset_mask"][..., : 3 * groups * points]
    packed = xp.reshape(used, (*outputs, groups, 3 * points))
    offset = xp.reshape(packed[..., : 2 * points], (*outputs, 2 * groups * points))
    mask = xp.reshape(packed[..., 2 * points :], (*outputs, groups * points))
    others = {name: array for name, array in arrays.items() if name != "offset_mask"}
    return {**others, "offset": offset, "mask": mask}


def along(call: Call, tangent: Any) -> list[Any]:
    xp, plan = call.xp, call.plan
    check_sides(call, "offset", (plan.height, plan.width))
    offsets = dict(zip("xy", _pairs(call, call.primals["offset"]), strict=True))
    moved = dict(zip("xy", _pairs(call, tangent), strict=True))
    factors = xp.reshape(call.primals["mask"], plan.shares)
    terms = []
    for axis, size in (("y", plan.height), ("x", plan.width)):
        base, tap = _grid(call, axis, factors)
        at = (tap + offsets[axis]) * plan.scale
        below = xp.floor(at)
        cell = base + below
        moves = (cell > -1) | ((cell == -1) & (at > below))  # beyond, all samples are 0
        mask = xp.where(moves & (cell < size), factors * moved[axis] * plan.scale, 0)
        mask = xp.reshape(mask, tuple(call.primals["mask"].shape))
        for end, sign in ((below + 1, 1), (below, -1)):
            ends = {**offsets, axis: end / plan.scale - tap}
            pairs = xp.stack([ends["x"], ends["y"]], -1)
            offset = xp.reshape(pairs, tuple(call.primals["offset"].shape))
            term = call(offset=offset, mask=mask)
            terms.append(term if sign == 1 else -term)
    return terms


def _pairs(call: Call, offset: Any) -> tuple[Any, Any]:
    """x and y of each point.  # (N, Ho, Wo, G, P) both"""
    pairs = call.xp.reshape(offset, (*call.plan.shares, 2))
    return pairs[..., 0], pairs[..., 1]


def _grid(call: Call, axis: str, like: Any) -> tuple[Any, Any]:
    """Where the kernel's centre is along y or x, and where the points are from there."""
    xp, plan, number = call.xp, call.plan, "yx".index(axis)
    pixels = xp.arange((plan.out_height, plan.out_width)[number], like)
    base = pixels * plan.stride[number] + (plan.center[number] - plan.padding[number])
    base = base[:, None, None, None] if axis == "y" else base[:, None, None]
    taps = np.array(plan.taps)[:, number] - plan.center[number]
    return base, xp.constant(taps, like)
