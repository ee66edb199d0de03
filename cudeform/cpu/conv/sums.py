"""What the gradients of a convolution are summed up from and in, and the sums over slices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.conv.blocking import Job, Slices, slices_from
from cudeform.cpu.language.bare import bare, records
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.simd import lanes
from cudeform.cpu.sample_gradients import differentiate, measure, spread
from cudeform.cpu.sampler import Grid, blend

__all__ = [
    "Given",
    "Part",
    "Room",
    "Sums",
    "Wanted",
    "Work",
    "collect_points",
    "measure_tile",
    "use_samples",
    "work_of",
]


class Wanted(NamedTuple):
    """Which gradients are computed."""

    input: int
    points: int  # of offset or mask
    weight: int
    bias: int
    offset: int
    mask: int
    times_mask: int  # 1: that of the offset is multiplied by the mask


class Part(NamedTuple):
    """What is worked on at a time: a few images, a range of slices and a range of pixels."""

    first_image: int
    images: int
    most: int  # images of the sums, of which the last are not used where there are fewer
    begin: int  # slices
    end: int
    first_pixel: int
    last_pixel: int
    all_images: int


class Room(NamedTuple):
    """Elements of the sums that are no results; or where they begin in the room for all."""

    packed: int  # the weight
    source: int  # copies of the input by slice with the channels last
    target: int  # the same for its gradient
    weight: int  # (images, slices, columns of samples, output channels), see also `narrow`
    points: int  # (images, slices, pixels, taps, 3): of y, x and mask


class Given(NamedTuple):
    """What the kernels read, flat."""

    grad_output: np.ndarray
    input: np.ndarray
    source: np.ndarray  # input, or copies of it by slice with the channels last
    offset: np.ndarray
    mask: np.ndarray
    packed: np.ndarray  # the weight


class Sums(NamedTuple):
    """What the kernels write, flat. Undefined where it is not needed."""

    target: np.ndarray  # like `Given.source`, for the gradient of the input
    grad_input: np.ndarray
    weight: np.ndarray
    bias: np.ndarray  # (images, O)
    points: np.ndarray
    grad_offset: np.ndarray
    grad_mask: np.ndarray
    grad_weight: np.ndarray


class Work(NamedTuple):
    """All that a task needs to know."""

    grid: Grid
    job: Job
    wanted: Wanted
    part: Part
    slices: Slices
    given: Given
    sums: Sums


_KINDS = Grid, Job, Part, Wanted, Room
_read = records(*_KINDS)
_SLICES = sum(len(kind._fields) for kind in _KINDS)


@inlined
def work_of(numbers, weight, narrow, arrays):
    """What a task needs to know, from the first arguments of a kernel of gradients."""
    grid, job, part, wanted, starts = _read(numbers)
    grad_output, input, offset, mask, room, bias = arrays[:6]
    grad_input, grad_offset, grad_mask, grad_weight = arrays[6:]
    source, target = bare(room, starts.source), bare(room, starts.target)
    packed = bare(room, starts.packed) if narrow is None else bare(weight, 0)
    if job.channels_last:
        source, target = bare(input, 0), bare(grad_input, 0)
    read = bare(grad_output, 0), bare(input, 0), source
    given = Given(*read, bare(offset, 0), bare(mask, 0), packed)
    of_weight, points = bare(room, starts.weight), bare(room, starts.points)
    own = target, bare(grad_input, 0), of_weight, bare(bias, 0), points
    sums = Sums(*own, bare(grad_offset, 0), bare(grad_mask, 0), bare(grad_weight, 0))
    return Work(grid, job, wanted, part, slices_from(job, numbers, _SLICES), given, sums)


@inlined
def use_samples(work, at_once, apart, points, view, place, s, columns):
    """Let a tile's gradients of samples add to those of input and points, and put the samples, of
    which that of the weight is made, in their place.

    What is None of the two ways to do so is not compiled.
    """
    grid, job, wanted, _, _, given, sums = work
    tile = grid, points, place[2]
    if at_once is not None:
        if apart is None or view.channels % lanes(columns) == 0:
            source, target, at = given.source, sums.target, _points_at(work, place, s)
            differentiate(*tile, source, view, columns, job.pitch, sums.points, at, target)
            return
    if apart is not None:
        measure_tile(work, points, view, place, s, columns)
        if wanted.input:
            spread(*tile, columns, job.pitch, sums.target, view)
        if wanted.weight:
            blend(*tile, given.source, view, columns, job.pitch)


@inlined
def measure_tile(work, points, view, place, s, columns):
    """Set what a tile's gradients of samples say about its points, if that is wanted."""
    grid, job, wanted, _, _, given, sums = work
    if wanted.points:
        at = _points_at(work, place, s)
        measure(grid, points, place[2], given.source, view, columns, job.pitch, sums.points, at)


@inlined
def _points_at(work, place, s):
    """Where in `Sums.points` those of a slice of a tile begin."""
    part, (image, pixel, _) = work.part, place
    at = (image - part.first_image) * (part.end - part.begin) + s - part.begin
    at = at * (part.last_pixel - part.first_pixel) + pixel - part.first_pixel
    return 3 * work.job.taps * at


@inlined
def collect_points(work, some):
    """Add up what slices found for the gradients of offset and mask, in their order; those of the
    offset times the mask, if there is one, at last: so an infinite one makes no sum of infinities.

    `some` counts pixels of the part, image after image.
    """
    grid, job, wanted, part, slices, given, sums = work
    first, last = some
    points, mask = sums.points, given.mask
    pixels = part.last_pixel - part.first_pixel
    slice_channels = job.groups * job.in_channels // job.offset_groups
    for image in range(first // pixels, (last + pixels - 1) // pixels):
        p0 = max(first - image * pixels, 0)
        p1 = min(last - image * pixels, pixels)
        for s in range(part.begin, part.end):
            group = slices.offset_group[s]
            fresh = slices.first[s] == group * slice_channels
            ends = slices.first[s + 1] == (group + 1) * slice_channels
            start = 3 * job.taps * pixels * (image * (part.end - part.begin) + s - part.begin)
            for row in range(3 * job.taps):  # y, x and mask of every tap
                tap, which = group * job.taps + row // 3, row % 3
                of_image = part.first_image + image
                of_mask = of_image * grid.mask_image + tap * grid.mask_channel
                of_mask += part.first_pixel * grid.mask_pixel
                if which == 2:
                    target, to, step = sums.grad_mask, of_mask, grid.mask_pixel
                else:
                    to = of_image * grid.offset_image + (2 * tap + which) * grid.offset_channel
                    to += part.first_pixel * grid.offset_pixel
                    target, step = sums.grad_offset, grid.offset_pixel
                if not (wanted.mask if which == 2 else wanted.offset):
                    continue
                for p in range(p0, p1):
                    value = points[start + 3 * p * job.taps + row]
                    target[to + p * step] = value if fresh else target[to + p * step] + value
                if ends and which != 2 and grid.modulated and wanted.times_mask:
                    for p in range(p0, p1):
                        target[to + p * step] *= mask[of_mask + p * grid.mask_pixel]
