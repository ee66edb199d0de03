"""Where the regions of a pooling lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.compiler import inlined, inner, kernel
from cudeform.cpu.language.scratch import zeroed
from cudeform.cpu.regions.axes import cell_along, reads_along
from cudeform.plans.regions import RoiPlan

__all__ = [
    "ALONG_X",
    "NUMBERS",
    "REACH",
    "SHARE",
    "SIZE",
    "SPACING",
    "START",
    "Regions",
    "count_covered",
    "count_pixels",
    "locate",
    "locate_regions",
    "reach_of_argmax",
    "reach_of_regions",
    "rules_of",
]

# Columns of `Regions.numbers`: four along y, the same along x, and one for both
START, SIZE, SPACING, REACH = range(4)
ALONG_X, SHARE, NUMBERS = 4, 8, 9
_COUNTABLE = 2.0**40  # samples
_FOUND = 2**20  # places of what is the largest that are looked at in one go
_RULES = ("unaligned", "aligned", "closed", "half_open", "msra", "msra_aligned")
_CORNER, _CENTER, _PIXEL, _HALF_OPEN, _MSRA, _MSRA_CENTER = range(len(_RULES))


class Regions(NamedTuple):
    """The regions of a call in the order of their frames, for kernels.

    A frame is an image that has boxes, or a part of one.
    """

    # (R, NUMBERS) flat: start, size, spacing of samples and pixels per unit of offset along y, the
    # same along x, one over the number of samples
    numbers: np.ndarray
    counts: np.ndarray  # (R, 2) flat: samples of a bin along y and x
    place: np.ndarray  # (R,): which frame
    order: np.ndarray  # (R,): which of the boxes
    images: np.ndarray  # (U,): that of each frame
    first: np.ndarray  # (U + 1,): the first region of each
    origin: np.ndarray  # (U, 2) flat: the first row and column of each


def locate_regions(plan: RoiPlan, boxes: np.ndarray) -> Regions:
    """The regions of boxes (R, 5), which may be anything but of no image."""
    numbers = np.empty(plan.regions * NUMBERS, boxes.dtype)
    counts = np.empty(2 * plan.regions, np.int64)
    place, order = np.empty(plan.regions, np.int64), np.empty(plan.regions, np.int64)
    images, first = np.empty(plan.batch, np.int64), np.empty(plan.batch + 1, np.int64)
    flat = boxes.reshape(-1)
    flat.setflags(write=False)
    scales = plan.scale, plan.offset_scale
    used = _locate(rules_of(plan), scales, flat, (place, order, images, first), numbers, counts)
    origin = np.zeros(2 * used, np.int64)
    return Regions(numbers, counts, place, order, images[:used], first[: used + 1], origin)


def rules_of(plan: RoiPlan) -> tuple[int, int, int, int]:
    """How boxes become regions and samples, for `locate`."""
    return _RULES.index(plan.region), plan.samples, *plan.bins


def count_pixels(plan: RoiPlan, regions: Regions) -> float:
    """Pixels of a channel that the bins of all regions read, at most, if they do not move."""
    numbers, counts = regions.numbers.reshape(-1, NUMBERS), regions.counts.reshape(-1, 2)
    result = np.ones(plan.regions)
    axes = zip((0, ALONG_X), plan.bins, (plan.height, plan.width), strict=True)
    with np.errstate(over="ignore"):
        for axis, (k, bins, size) in enumerate(axes):
            covered = np.ceil(np.abs(numbers[:, k + SIZE]) / bins) + 2
            read = covered if plan.reads == "pixels" else np.minimum(covered, 2 * counts[:, axis])
            result *= bins * np.minimum(read, size)
    return float(result.sum())


def count_covered(plan: RoiPlan, regions: Regions) -> float:
    """Pixels of a channel that lie in all regions, about, with those that bins share."""
    numbers = regions.numbers.reshape(-1, NUMBERS)
    sizes = zip((SIZE, ALONG_X + SIZE), plan.bins, (plan.height, plan.width), strict=True)
    down, across = (np.minimum(np.abs(numbers[:, k]), size) + 2.0 * bins for k, bins, size in sizes)
    return float(np.dot(down, across))


def reach_of_regions(
    plan: RoiPlan, regions: Regions, offset: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of the image that regions can reach, each (R, 2): first and last + 1."""
    numbers = regions.numbers.reshape(-1, NUMBERS)
    eps = float(np.finfo(numbers.dtype).eps)
    found = []
    for axis, (k, size) in enumerate(zip((0, ALONG_X), (plan.height, plan.width), strict=True)):
        start, extent, reach = (numbers[:, k + n].astype(np.float64) for n in (START, SIZE, REACH))
        low, high = np.minimum(extent, 0), np.maximum(extent, 0)
        if plan.deformable and offset is not None:
            along = offset.reshape(plan.regions, plan.classes, 2, *plan.part_size)[:, :, 1 - axis]
            moved = [
                reach * end.reduce(along, (1, 2, 3))[regions.order].astype(np.float64)
                for end in (np.fmin, np.fmax)
            ]
            low, high = low + np.fmin(*moved), high + np.fmax(*moved)
        slack = 3 + 8 * eps * (np.abs(start) + np.abs(low) + np.abs(high))
        # NaN, where nothing is read or where an infinite offset meets nothing to move by
        first = np.nan_to_num(np.floor(start + low - slack), nan=0.0)
        last = np.nan_to_num(np.ceil(start + high + slack), nan=1.0)
        ends = np.clip(first, 0, size - 1), np.clip(last, 1, size)
        found.append(np.stack(ends, 1).astype(np.int64))
    return found[0], found[1]


@inlined
def _sort(boxes, place, order, images, first):
    """Put the boxes in the order of their images. Returns how many images have any."""
    found = zeroed(len(images), np.int64)
    for r in range(len(order)):
        found[np.int64(boxes[5 * r])] += 1
    used, begin = 0, 0
    for image in range(len(images)):
        if found[image]:
            images[used], first[used] = image, begin
            place[begin : begin + found[image]] = used
            begin, found[image] = begin + found[image], begin
            used += 1
    first[used] = begin
    for r in range(len(order)):
        image = np.int64(boxes[5 * r])
        order[found[image]] = r
        found[image] += 1
    return used


@kernel
def _locate(rules, scales, boxes, places, numbers, counts):
    return locate(rules, scales, boxes, places, numbers, counts)


@inlined
def locate(rules, scales, boxes, places, numbers, counts):
    """Fill all arrays. Returns how many images have boxes."""
    rule, samples, down_bins, across_bins = rules
    place, order, images, first = places
    used = _sort(boxes, place, order, images, first)
    real = numbers.dtype.type
    scale, reach = real(scales[0]), real(scales[1])
    for t in range(len(order)):
        at = 5 * order[t]
        y, height = _extent(rule, boxes[at + 2], boxes[at + 4], scale, numbers)
        x, width = _extent(rule, boxes[at + 1], boxes[at + 3], scale, numbers)
        if not (np.isfinite(y + height) and np.isfinite(x + width)):
            y = x = real(np.nan)  # nothing is inside,
            height = width = real(0)  # and nothing moves it
        down = _axis(samples, down_bins, (y, height, reach), numbers, t * NUMBERS)
        across = _axis(samples, across_bins, (x, width, reach), numbers, t * NUMBERS + ALONG_X)
        counts[2 * t], counts[2 * t + 1] = down, across
        numbers[t * NUMBERS + SHARE] = 1 / max(np.float64(down) * np.float64(across), 1.0)
    return used


@inner
def _axis(samples, bins, extent, numbers, k):
    """Write the four numbers of an axis. Returns the samples of a bin along it."""
    real = numbers.dtype.type
    start, size, reach = extent
    bin_size = size / real(bins)
    count = real(samples) if samples else np.ceil(bin_size)
    count = min(max(count, real(0)), real(_COUNTABLE))
    numbers[k + START], numbers[k + SIZE] = start, size
    numbers[k + SPACING], numbers[k + REACH] = bin_size / max(count, real(1)), reach * size
    return np.int64(count)


@inner
def _extent(rule, first, last, scale, like):
    """Start and size along an axis, by the rules that `RoiPlan` lists."""
    real = like.dtype.type
    shift = real(0.5) if rule == _CENTER or rule == _MSRA_CENTER else real(0)
    if rule == _CORNER or rule == _CENTER:
        start = first * scale - shift
        size = last * scale - shift - start
        return start, _at_least(size, real(1)) if rule == _CORNER else size
    if rule == _PIXEL or rule == _HALF_OPEN:
        start = _rounded(first * scale, like)
        size = _rounded(last * scale, like) - start
        return start, _at_least(size + real(rule == _PIXEL), real(1))
    start = _rounded(first, like) * scale - shift
    size = (_rounded(last, like) + real(1)) * scale - shift - start
    return start, _at_least(size, real(0.1))


@inlined
def _at_least(value, least):
    """The larger of the two; NaN stays."""
    return least if value < least else value


@inlined
def _rounded(value, like):
    """To a whole number, halves away from zero."""
    whole = np.trunc(value)
    away = like.dtype.type(1) if abs(value - whole) >= like.dtype.type(0.5) else like.dtype.type(0)
    return whole + np.copysign(away, value)


def reach_of_argmax(
    plan: RoiPlan, regions: Regions, argmax: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same of regions whose largest pixels or samples are known; they may be anywhere."""
    rows, columns = np.empty((2, plan.regions, 2), np.int64)
    find = _reach_of_pixels if len(argmax) == 1 else _reach_of_samples
    step = max(_FOUND // argmax[0][0].size, 1)
    for first in range(0, plan.regions, step):
        some = slice(first, first + step)
        flat = [np.ascontiguousarray(array[some]).reshape(-1) for array in argmax]
        find(plan.height, plan.width, *flat, rows[some], columns[some])
    return rows[regions.order], columns[regions.order]


@kernel
def _reach_of_pixels(height, width, argmax, rows, columns):
    each = len(argmax) // len(rows)
    for t in range(len(rows)):
        top, bottom, left, right = height - 1, 1, width - 1, 1
        for pixel in argmax[t * each : (t + 1) * each]:
            if pixel >= 0 and pixel < height * width:
                y, x = pixel // width, pixel % width
                top, bottom = min(top, y), max(bottom, y + 1)
                left, right = min(left, x), max(right, x + 1)
        rows[t, 0], rows[t, 1] = min(top, bottom - 1), bottom
        columns[t, 0], columns[t, 1] = min(left, right - 1), right


@kernel
def _reach_of_samples(height, width, ys, xs, rows, columns):
    each = len(ys) // len(rows)
    for t in range(len(rows)):
        top, bottom, left, right = height - 1, 1, width - 1, 1
        for n in range(t * each, (t + 1) * each):
            y, x = ys[n], xs[n]
            if reads_along(y, height) and reads_along(x, width):
                y0, y1, _ = cell_along(y, height)
                x0, x1, _ = cell_along(x, width)
                top, bottom = min(top, y0), max(bottom, y1 + 1)
                left, right = min(left, x0), max(right, x1 + 1)
        rows[t, 0], rows[t, 1] = min(top, bottom - 1), bottom
        columns[t, 0], columns[t, 1] = min(left, right - 1), right
