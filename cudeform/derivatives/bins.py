"""Poolings of regions whose bins move.

A bin that moves takes its samples along, each through a cell of pixels of its own: there is no
pooling of the whole bin whose result is the slope. So the samples are read one by one, each as a
region of its own with one bin and one sample. Between two columns the slope of a sample along x
is a sample of the columns' differences, at the whole x = floor(x), and this is linear along y.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cudeform import checks
from cudeform.derivatives.calls import Call, Namespace, images_of
from cudeform.plans.regions import RoiPlan

_AT_ONCE = 16  # samples of a bin that one call reads
_NOWHERE = -2  # a coordinate at which every sampler reads nothing

# Options with which a region from -0.5 to 0.5 has one sample, that moves by a pixel for an offset
# of 1: from its centre, or from its corner.
_SINGLE = {
    "grid_centers": dict(output_size=1, spatial_scale=1.0, sampling_ratio=1, gamma=1.0),
    "grid_corners": dict(
        output_size=1,
        spatial_scale=1.0,
        group_size=1,
        part_size=1,
        sample_per_part=1,
        trans_std=1.0,
    ),
}


class _Axis(NamedTuple):
    """The samples of all bins along one axis. Their arrays are (R, classes, ph, pw, samples)."""

    at: Any  # in pixels
    inside: Any  # whether they are read
    moves: Any  # whether what they read changes with `at`
    reach: Any  # pixels that a bin moves for an offset of 1  # (R, 1, 1, 1)
    divisor: Any  # what their sum is divided by  # (R, classes, ph, pw) or less


def along(call: Call, tangent: Any) -> list[Any]:
    """What the bins of a deformable pooling gain where they move to."""
    xp, plan = call.xp, call.plan
    offset, moved = (_pairs(xp, plan, array) for array in (call.primals["offset"], tangent))
    axes = _axes(call, plan, offset)
    share = 1 / (axes[0].divisor * axes[1].divisor)
    if plan.modulated:
        share = share * _of_bins(xp, plan, call.primals["mask"])
    weights = [share * axis.reach * pixels for axis, pixels in zip(axes, moved, strict=True)]
    images = _images(xp, plan, call.primals["boxes"])
    steps = [_staged(xp, plan, _steps(xp, call.primals["input"], axis)) for axis in (2, 3)]
    total = None
    for rows, columns in _parts(axes):
        y, x = _cut(axes[0], (..., rows, None)), _cut(axes[1], (..., None, columns))
        for axis, own in enumerate((y, x)):
            read = y.inside & x.inside & own.moves  # (R, classes, ph, pw, rows, columns)
            at = [y.at, x.at]
            at[axis] = xp.floor(own.at)
            at = [xp.where(read, coordinate, _NOWHERE) for coordinate in at]
            weight = xp.where(read, weights[axis][..., None, None], 0)
            summed = _weighted(call, plan, steps[axis], images, at, weight)
            total = summed if total is None else total + summed
    shape = (plan.regions, plan.out_channels, *plan.bins)
    return [xp.reshape(xp.moveaxis(total, -1, 2), shape)]


def _pairs(xp: Namespace, plan: RoiPlan, array: Any) -> tuple[Any, Any]:
    """An offset, or how it moves, along y and x of each bin.  # (R, classes, ph, pw) each"""
    shape = (plan.regions, plan.classes, 2, *plan.bins)
    pairs = xp.reshape(_of_bins(xp, plan, array), shape)
    return pairs[:, :, 1], pairs[:, :, 0]  # x comes first


def _of_bins(xp: Namespace, plan: RoiPlan, array: Any) -> Any:
    """From (R, c, part_h, part_w) to (R, c, ph, pw): to each bin the element it moves by."""
    if plan.part_size == plan.bins:
        return array
    rows, columns = (
        [i * elements // bins for i in range(bins)]
        for elements, bins in zip(plan.part_size, plan.bins, strict=True)
    )
    array = xp.stack([array[:, :, row] for row in rows], 2)
    return xp.stack([array[..., column] for column in columns], -1)


def _axes(call: Call, plan: RoiPlan, offset: tuple[Any, Any]) -> list[_Axis]:
    """The samples along y and x."""
    xp, boxes = call.xp, call.primals["boxes"]
    shape = (plan.regions, 1, 1, 1)
    extents = [_extent(xp, plan, boxes, axis) for axis in (0, 1)]
    finite = [abs(start + size) < math.inf for start, size in extents]  # boxes may be anything
    real = finite[0] & finite[1]
    axes = []
    for axis, (start, size) in enumerate(extents):
        if plan.region == "msra_aligned":
            size = xp.where(size > 0.1, size, 0.1)
        start = xp.reshape(xp.where(real, start, _NOWHERE), shape)
        size = xp.reshape(xp.where(real, size, 0), shape)  # what is nowhere does not move
        axes.append(_samples(call, plan, axis, (start, size), offset[axis]))
    return axes


def _extent(xp: Namespace, plan: RoiPlan, boxes: Any, axis: int) -> tuple[Any, Any]:
    """Start and size of regions along y (0) or x (1), see `RoiPlan`, without a least size."""
    first, last = boxes[:, 2 - axis], boxes[:, 4 - axis]
    if plan.region == "msra_aligned":
        first, last = _rounded(xp, first), _rounded(xp, last) + 1
    start = first * plan.scale - 0.5
    return start, last * plan.scale - 0.5 - start


def _rounded(xp: Namespace, values: Any) -> Any:
    """To whole numbers, halves away from zero."""
    size = abs(values)
    whole = xp.floor(size)
    whole = xp.where(size - whole < 0.5, whole, whole + 1)
    return xp.where(values < 0, -whole, whole)


def _samples(call: Call, plan: RoiPlan, axis: int, extent: tuple[Any, Any], offset: Any) -> _Axis:
    """Those along one axis of regions that have start and size `extent`."""
    xp, (start, size) = call.xp, extent
    pixels, bins = (plan.height, plan.width)[axis], plan.bins[axis]
    corners = plan.reads == "grid_corners"
    low, high = (-0.5, pixels - 0.5) if corners else (-1, pixels)
    count, most = _counts(call, plan, axis)
    divisor = xp.where(count > 1, count, 1)
    spacing = size / bins / divisor
    reach = plan.offset_scale * size
    index = xp.constant(np.arange(bins).reshape((-1, 1) if axis == 0 else (1, -1)), start)
    first = start + index * size / bins + reach * offset  # (R, classes, ph, pw)
    first = first if corners else first + 0.5 * spacing
    number = xp.arange(min(most, _room(pixels)), start)
    if most > _room(pixels):  # only those of a huge box that can be inside
        before = xp.floor((low - first) / xp.where(spacing > 0, spacing, 1))
        number = number + xp.where(before > 0, before, 0)[..., None]
    at = first[..., None] + number * spacing[..., None]
    inside = (at >= low) & (at <= high) & (number < count[..., None])  # not where it is NaN
    moves = (at >= 0) & (at < pixels - 1)
    if corners:
        moves = moves & (at > xp.floor(at))
        divisor = xp.cast(inside, xp.dtype_name(start)).sum(-1)
        divisor = xp.where(divisor > 1, divisor, 1)
    return _Axis(at, inside, moves, reach, divisor)


def _room(pixels: int) -> int:
    """More samples than are inside the image of a bin with more: those are about a pixel apart."""
    return pixels + 6


def _counts(call: Call, plan: RoiPlan, axis: int) -> tuple[Any, int]:
    """Samples of a bin along an axis, (R, 1, 1, 1) or one for all regions, and the most."""
    xp, boxes = call.xp, call.primals["boxes"]
    if plan.samples:
        return xp.constant(np.full((1, 1, 1, 1), plan.samples), boxes), plan.samples
    values = xp.values(boxes)
    if values is None:
        checks.fail(
            call.name,
            "sampling_ratio",
            "to be at least 1 where a derivative along `offset` is traced",
            call.options["sampling_ratio"],
            "how many samples a bin has follows from values in `boxes`, which are not known yet",
            NotImplementedError,
        )
    with np.errstate(all="ignore"):  # arithmetic alone, so NumPy's arrays will do
        _, size = _extent(xp, plan, values, axis)
        counts = np.ceil(size / plan.bins[axis])
    counts = np.where(np.isfinite(counts) & (counts > 0), counts, 0)
    return xp.constant(counts.reshape(-1, 1, 1, 1), boxes), int(counts.max(initial=1))


def _images(xp: Namespace, plan: RoiPlan, boxes: Any) -> Any:
    """Which of the images of `_staged` a bin reads.  # (R, classes, ph, pw)"""
    group_y, group_x = (
        np.arange(bins) * groups // bins
        for groups, bins in zip(plan.groups, plan.bins, strict=True)
    )
    groups = plan.groups[0] * plan.groups[1]
    of_bin = group_y[:, None] * plan.groups[1] + group_x
    inner = np.arange(plan.classes)[:, None, None] * groups + of_bin
    return images_of(xp, boxes) * (plan.classes * groups) + xp.constant(inner, boxes)


def _steps(xp: Namespace, images: Any, axis: int) -> Any:
    """From each pixel to the next along y (2) or x (3); 0 from the last."""
    if axis == 2:
        steps, edge = images[:, :, 1:] - images[:, :, :-1], images[:, :, :1]
    else:
        steps, edge = images[..., 1:] - images[..., :-1], images[..., :1]
    return xp.concatenate([steps, xp.zeros_like(edge)], axis)


def _staged(xp: Namespace, plan: RoiPlan, images: Any) -> Any:
    """Channels that the same bins read, as images.  # (N*classes*groups, channels, H, W)"""
    classes, groups = plan.classes, plan.groups[0] * plan.groups[1]
    channels, size = plan.out_channels // classes, (plan.height, plan.width)
    split = xp.reshape(images, (plan.batch, classes, channels, groups, *size))
    return xp.reshape(xp.moveaxis(split, 3, 2), (plan.batch * classes * groups, channels, *size))


def _parts(axes: list[_Axis]) -> Iterator[tuple[slice, slice]]:
    """The samples of a bin, a few at a time."""
    high, wide = (axis.at.shape[-1] for axis in axes)
    columns = min(wide, _AT_ONCE)
    rows = max(_AT_ONCE // columns, 1)
    for top in range(0, high, rows):
        for left in range(0, wide, columns):
            yield slice(top, top + rows), slice(left, left + columns)


def _cut(axis: _Axis, place: tuple[Any, ...]) -> _Axis:
    return axis._replace(**{k: getattr(axis, k)[place] for k in ("at", "inside", "moves")})


def _weighted(
    call: Call, plan: RoiPlan, images: Any, image: Any, at: list[Any], weight: Any
) -> Any:
    """The weighted sum over samples at (y, x) = `at`.  # (R, classes, ph, pw, channels)"""
    xp, shape, channels = call.xp, weight.shape, images.shape[1]
    count, zero = math.prod(shape), xp.zeros_like(weight)
    size, more = zero + 1, {}
    if plan.reads == "grid_corners":
        size, more = zero, {"output_dim": channels}  # its boxes include their last pixel
        at = [coordinate + 0.5 for coordinate in at]  # from the corner of the bin at -0.5
    boxes = xp.stack([image[..., None, None] + zero, zero, zero, size, size], -1)
    summed = call.function(
        input=images,
        boxes=xp.reshape(boxes, (count, 5)),
        offset=xp.reshape(xp.stack([at[1], at[0]], -1), (count, 2, 1, 1)),
        mask=xp.reshape(weight, (count, 1, 1, 1)),
        **_SINGLE[plan.reads],
        **more,
    )
    return xp.reshape(summed, (*shape[:4], shape[4] * shape[5], channels)).sum(4)
