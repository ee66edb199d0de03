"""What the gradients of a convolution are summed up from and in, and the sums over slices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.conv.blocking import Job, Slices
from cudeform.cpu.language.compiler import inlined, kernel, records
from cudeform.cpu.language.simd import lanes
from cudeform.cpu.sample_gradients import differentiate, measure, spread
from cudeform.cpu.sampler import Grid, blend

__all__ = [
    "Given",
    "Part",
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


class Part(NamedTuple):
    """What is worked on at a time: a few images, a range of slices and a range of pixels."""

    images: int
    begin: int  # slices
    end: int
    first_pixel: int
    last_pixel: int
    whole: int  # 1: there are no other images, whose shares come first


class Given(NamedTuple):
    """What the kernels read, flat."""

    grad_output: np.ndarray
    input: np.ndarray
    source: np.ndarray  # input, or copies of it by slice with the channels last
    offset: np.ndarray
    mask: np.ndarray
    packed: np.ndarray  # the weight


class Sums(NamedTuple):
    """What the kernels write, flat. Empty where it is not needed."""

    source: np.ndarray  # the memory under `Given.source`
    target: np.ndarray  # like `source`, for the gradient of the input
    grad_input: np.ndarray
    weight: np.ndarray  # (images, slices, columns of samples, output channels), see also `narrow`
    bias: np.ndarray  # (images, O)
    points: np.ndarray  # (images, slices, pixels, taps, 3): of y, x and mask


class Work(NamedTuple):
    """All that a task needs to know."""

    grid: Grid
    job: Job
    wanted: Wanted
    part: Part
    slices: Slices
    given: Given
    sums: Sums


_read = records(Grid, Job, Part, Wanted)


@inlined
def work_of(numbers, slices, given, sums):
    """What a task needs to know, from the numbers that a kernel of gradients reads first."""
    grid, job, part, wanted = _read(numbers)
    return Work(grid, job, wanted, part, slices, given, sums)


@inlined
def use_samples(work, points, view, place, s, columns):
    """Let a tile's gradients of samples add to those of input and points, and put the samples, of
    which that of the weight is made, in their place.
    """
    grid, job, wanted, _, _, given, sums = work
    tile = grid, points, place[2]
    whole = view.channels % lanes(columns) == 0
    if wanted.input and wanted.points and wanted.weight and whole:
        source, target, out, at = given.source, sums.target, sums.points, _points_at(work, place, s)
        differentiate(*tile, source, view, columns, job.pitch, out, at, target)
        return
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
    at = image * (part.end - part.begin) + s - part.begin
    at = at * (part.last_pixel - part.first_pixel) + pixel - part.first_pixel
    return 3 * work.job.taps * at


@kernel
def collect_points(numbers, slices, points, mask, grad_offset, grad_mask, first, last):
    """Add up what slices found for the gradients of offset and mask, in their order; those of the
    offset times the mask, if there is one, at last: so an infinite one makes no sum of infinities.

    `first` to `last` counts pixels of the part, image after image.
    """
    grid, job, part, _ = _read(numbers)
    pixels = part.last_pixel - part.first_pixel
    slice_channels = job.groups * job.in_channels // job.offset_groups
    for image in range(first // pixels, (last - 1) // pixels + 1):
        p0 = max(first - image * pixels, 0)
        p1 = min(last - image * pixels, pixels)
        for s in range(part.begin, part.end):
            group = slices.offset_group[s]
            fresh = slices.first[s] == group * slice_channels
            ends = slices.first[s + 1] == (group + 1) * slice_channels
            start = 3 * job.taps * pixels * (image * (part.end - part.begin) + s - part.begin)
            for row in range(3 * job.taps):  # y, x and mask of every tap
                tap, which = group * job.taps + row // 3, row % 3
                of_mask = image * grid.mask_image + tap * grid.mask_channel
                of_mask += part.first_pixel * grid.mask_pixel
                if which == 2:
                    target, to, step = grad_mask, of_mask, grid.mask_pixel
                else:
                    to = image * grid.offset_image + (2 * tap + which) * grid.offset_channel
                    to += part.first_pixel * grid.offset_pixel
                    target, step = grad_offset, grid.offset_pixel
                if target.size == 0:
                    continue
                for p in range(p0, p1):
                    value = points[start + 3 * p * job.taps + row]
                    target[to + p * step] = value if fresh else target[to + p * step] + value
                if ends and which != 2 and mask.size:
                    for p in range(p0, p1):
                        target[to + p * step] *= mask[of_mask + p * grid.mask_pixel]
