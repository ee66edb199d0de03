"""Where the regions of a pooling lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.bare import bare
from cudeform.cpu.language.compiler import inlined, inner, kernel
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.regions.axes import cell_along, reads_along
from cudeform.plans.regions import RoiPlan

# Columns of `Regions.numbers`: four along y, the same along x, and one for both
START, SIZE, SPACING, REACH = range(4)
ALONG_X, SHARE, NUMBERS = 4, 8, 9
_COUNTABLE = 2.0**40  # samples
_FOUND = 2**20  # places of what is the largest that are looked at in one go
_RULES = ("unaligned", "aligned", "closed", "half_open", "msra", "msra_aligned")
_CORNER, _CENTER, _PIXEL, _HALF_OPEN, _MSRA, _MSRA_CENTER = range(len(_RULES))


class Regions(NamedTuple):
    """The regions of a call in the order of their frames.

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
    integers: np.ndarray  # all of these integers, as `regions_in` finds them
    frames: int  # that there is room for in them


def regions_of(numbers: np.ndarray, integers: np.ndarray, frames: int, used: int) -> Regions:
    """The regions of two arrays, with room for so many frames, of which some are used."""
    regions = len(numbers) // NUMBERS
    sizes = [(2 * regions,) * 2, (regions,) * 2, (regions,) * 2]
    sizes += [(frames, used), (frames + 1, used + 1), (2 * frames, 2 * used)]
    parts, at = [], 0
    for room, size in sizes:
        parts.append(integers[at : at + size])
        at += room
    return Regions(numbers, *parts, integers, frames)


@inlined
def regions_in(numbers, integers, regions, frames):
    """The same for kernels."""
    return Regions(
        bare(numbers, 0),
        bare(integers, 0),
        bare(integers, 2 * regions),
        bare(integers, 3 * regions),
        bare(integers, 4 * regions),
        bare(integers, 4 * regions + frames),
        bare(integers, 4 * regions + 2 * frames + 1),
        bare(integers, 0),
        frames,
    )


def count_integers(regions, frames):
    """Of so many regions in so many frames."""
    return 4 * regions + 4 * frames + 1


def locate_regions(plan: RoiPlan, boxes: np.ndarray) -> Regions:
    """The regions of boxes (R, 5), which may be anything but of no image."""
    numbers = np.empty(plan.regions * NUMBERS, boxes.dtype)
    integers = np.zeros(count_integers(plan.regions, plan.batch), np.int64)
    scales = plan.scale, plan.offset_scale
    rules = *rules_of(plan), plan.regions, plan.batch
    used = _locate(rules, scales, frozen(boxes, boxes), numbers, integers)
    return regions_of(numbers, integers, plan.batch, used)


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


@np.errstate(over="ignore", invalid="ignore")
def reach_of_regions(plan: RoiPlan, regions: Regions, offset: np.ndarray | None) -> np.ndarray:
    """The rows and columns of the image that regions can reach, from the first up to the last.

    (2, R, 2): along y and x, of each region, both ends.
    """
    axes = regions.numbers.reshape(-1, NUMBERS)[:, :SHARE].reshape(-1, 2, ALONG_X)
    eps = float(np.finfo(axes.dtype).eps)
    start, extent, reach = np.moveaxis(axes[..., [START, SIZE, REACH]].astype(np.float64), 2, 0)
    low, high = np.minimum(extent, 0), np.maximum(extent, 0)
    if plan.deformable and offset is not None:
        along = offset.reshape(plan.regions, plan.classes, 2, *plan.part_size)
        moved = [
            reach * end.reduce(along, (1, 3, 4))[regions.order, ::-1].astype(np.float64)
            for end in (np.fmin, np.fmax)
        ]
        low, high = low + np.fmin(*moved), high + np.fmax(*moved)
    slack = 1 + 8 * eps * (np.abs(start) + np.abs(low) + np.abs(high))
    # The image's first pixel for NaN, where nothing is read or an infinite offset moves nothing
    size = np.array([plan.height, plan.width])
    first = np.fmin(np.fmax(np.floor(start + low - slack), 0), size - 1)
    last = np.fmin(np.fmax(np.ceil(start + high + slack) + 1, 1), size)  # of two that are read
    return np.stack([first.T, last.T], 2).astype(np.int64)


@inlined
def _sort(boxes, regions, count):
    """Put the boxes in the order of their images. Returns how many images have any."""
    place, order, images, first = regions.place, regions.order, regions.images, regions.first
    found = regions.origin  # so many of each image, and 0 again
    for r in range(count):
        found[np.int64(boxes[5 * r])] += 1
    used, begin = 0, 0
    for image in range(regions.frames):
        here, found[image] = found[image], begin
        for t in range(begin, begin + here):
            place[t] = used
        if here:
            images[used], first[used] = image, begin
            used += 1
        begin += here
    first[used] = begin
    for r in range(count):
        image = np.int64(boxes[5 * r])
        order[found[image]] = r
        found[image] += 1
    for image in range(regions.frames):
        found[image] = 0
    return used


@kernel
def _locate(rules, scales, boxes, numbers, integers):
    rule, samples, down, across, count, batch = rules
    regions = regions_in(numbers, integers, count, batch)
    return locate((rule, samples, down, across), scales, bare(boxes, 0), regions, count)


@inner
def locate(rules, scales, boxes, regions, count):
    """Fill all arrays, the integers of which are 0. Returns how many images have boxes."""
    rule, samples, down_bins, across_bins = rules
    numbers, counts = regions.numbers, regions.counts
    used = _sort(boxes, regions, count)
    real = numbers.dtype.type
    scale, reach = real(scales[0]), real(scales[1])
    for t in range(count):
        at = 5 * regions.order[t]
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


def reach_of_argmax(plan: RoiPlan, regions: Regions, argmax: tuple[np.ndarray, ...]) -> np.ndarray:
    """The same of regions whose largest pixels or samples are known; they may be anywhere."""
    reach = np.empty((2, plan.regions, 2), np.int64)
    find = _reach_of_pixels if len(argmax) == 1 else _reach_of_samples
    step = max(_FOUND // argmax[0][0].size, 1)
    for first in range(0, plan.regions, step):
        some = slice(first, first + step)
        flat = [np.ascontiguousarray(array[some]).reshape(-1) for array in argmax]
        find(plan.height, plan.width, *flat, reach[0, some], reach[1, some])
    return reach[:, regions.order]


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
