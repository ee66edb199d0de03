"""Convolutions and samples whose points move: slopes between whole coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np

from cudeform import checks
from cudeform.derivatives.calls import Call

__all__ = ["along_offset", "along_points"]


_EXACT = 2**24  # pixels: beyond, float32 does not tell a whole number from the next


def _sides(call: Call) -> tuple[int, int]:
    """The height and the width of the images."""
    shape = call.primals["input"].shape
    return shape[1:3] if call.options["layout"] == "NHWC" else shape[2:4]


def _check_sides(call: Call, coordinates: str) -> None:
    """Refuse images so large that a pixel and the next one are one number."""
    if call.xp.dtype_name(call.primals[coordinates]) != "float32":
        return
    for size in _sides(call):
        if isinstance(size, int) and size > _EXACT:  # a symbol of a tracer would get a bound
            checks.fail(
                call.name,
                "input",
                f"of at most {_EXACT} pixels along an axis for a derivative along `{coordinates}`",
                size,
                "float32 has no next whole number beyond; float64 has",
                NotImplementedError,
            )


def _border(call: Call, start: Any, moved: Any, axis: int) -> tuple[Any, Any]:
    """For coordinates start + moved along y (0) or x (1), of which start is whole: `moved` at the
    lower pixel, and where S has a slope.
    """
    below = call.xp.floor(moved)
    cell = below + start
    if call.options["border"] == "clamp":
        moves = (cell >= 0) & (cell < _sides(call)[axis] - 1)
    else:  # beyond the other edge both samples are 0
        moves = (cell > -1) | ((cell == -1) & (moved > below))
    return below, moves


def along_points(call: Call, tangent: Any) -> list[Any]:
    xp, points = call.xp, call.primals["points"]
    _check_sides(call, "points")
    terms = []
    for axis in (0, 1):
        low, moves = _border(call, 0, points[..., axis], axis)
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
    _check_sides(call, "offset")
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
        low, moves = _border(call, _start(call, offset, axis), pair[axis], axis)
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
