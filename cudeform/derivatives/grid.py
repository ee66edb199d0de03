"""Points around the pixels of an output that move: slopes between whole coordinates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cudeform.derivatives.calls import Call, check_sides

__all__ = ["along"]


class _Points(NamedTuple):
    """Of offsets and factors, or of their tangents.  # (N, Ho, Wo, G, P) each"""

    x: Any
    y: Any
    mask: Any


def along(call: Call, tangent: Any) -> list[Any]:
    xp, plan = call.xp, call.plan
    coordinates = "offset_mask" if plan.packed else "offset"
    check_sides(call, coordinates, (plan.height, plan.width))
    points = _points(call, call.primals[coordinates])
    moved = _points(call, tangent)
    terms = [_sum(call, points._replace(mask=moved.mask))] if plan.packed else []
    for axis, size in (("y", plan.height), ("x", plan.width)):
        base, tap = _grid(call, axis, points.x)
        at = (tap + getattr(points, axis)) * plan.scale
        below = xp.floor(at)
        cell = base + below
        moves = (cell > -1) | ((cell == -1) & (at > below))  # beyond, all samples are 0
        slope = points.mask * getattr(moved, axis) * plan.scale
        mask = xp.where(moves & (cell < size), slope, 0)
        for end, sign in ((below + 1, 1), (below, -1)):
            term = _sum(call, points._replace(**{axis: end / plan.scale - tap, "mask": mask}))
            terms.append(term if sign == 1 else -term)
    return terms


def _points(call: Call, array: Any) -> _Points:
    """The points of an offset, or of an offset with a mask in one array."""
    xp, plan = call.xp, call.plan
    each = 2 * plan.points
    if plan.packed:
        groups = (*plan.shares[:-1], 3 * plan.points)
        array = xp.reshape(array[..., : plan.groups * groups[-1]], groups)
        mask, array = array[..., each:], array[..., :each]
    else:
        mask = xp.reshape(call.primals["mask"], plan.shares)
    pairs = xp.reshape(array, (*plan.shares, 2))
    return _Points(pairs[..., 0], pairs[..., 1], mask)


def _sum(call: Call, points: _Points) -> Any:
    xp, plan = call.xp, call.plan
    pairs = xp.stack([points.x, points.y], -1)
    if not plan.packed:
        shapes = (tuple(call.primals[name].shape) for name in ("offset", "mask"))
        offset, mask = map(xp.reshape, (pairs, points.mask), shapes)
        return call(offset=offset, mask=mask)
    both = [xp.reshape(pairs, (*plan.shares[:-1], 2 * plan.points)), points.mask]
    used = 3 * plan.groups * plan.points
    packed = xp.reshape(xp.concatenate(both, -1), (*plan.shares[:-2], used))
    behind = xp.zeros_like(call.primals["offset_mask"][..., used:])
    return call(offset_mask=xp.concatenate([packed, behind], -1))


def _grid(call: Call, axis: str, like: Any) -> tuple[Any, Any]:
    """Where the kernel's centre is along y or x, and where the points are from there."""
    xp, plan, number = call.xp, call.plan, "yx".index(axis)
    pixels = xp.arange((plan.out_height, plan.out_width)[number], like)
    base = pixels * plan.stride[number] + (plan.center[number] - plan.padding[number])
    base = base[:, None, None, None] if axis == "y" else base[:, None, None]
    taps = np.array(plan.taps)[:, number] - plan.center[number]
    return base, xp.constant(taps, like)
