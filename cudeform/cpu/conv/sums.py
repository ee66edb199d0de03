"""What the gradients of a convolution are summed up from and in, and the sums over slices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.conv.blocking import PART, Job, Slices, grid_and_job
from cudeform.cpu.language.compiler import kernel, record
from cudeform.cpu.sampler import Grid

__all__ = [
    "PART_NUMBERS",
    "Given",
    "Part",
    "Sums",
    "Wanted",
    "Work",
    "collect_points",
    "read_part",
    "read_wanted",
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


read_part, read_wanted = record(Part), record(Wanted)
PART_NUMBERS = len(Part._fields)


@kernel
def collect_points(numbers, slices, points, grad_offset, grad_mask, first, last):
    """Add up what slices found for the gradients of offset and mask, in their order.

    `first` to `last` counts pixels of the part, image after image.
    """
    grid, job = grid_and_job(numbers)
    part = read_part(numbers, PART)
    pixels = part.last_pixel - part.first_pixel
    slice_channels = job.groups * job.in_channels // job.offset_groups
    for image in range(first // pixels, (last - 1) // pixels + 1):
        p0 = max(first - image * pixels, 0)
        p1 = min(last - image * pixels, pixels)
        for s in range(part.begin, part.end):
            group = slices.offset_group[s]
            fresh = slices.first[s] == group * slice_channels
            start = 3 * job.taps * pixels * (image * (part.end - part.begin) + s - part.begin)
            for k in range(job.taps):
                tap = group * job.taps + k
                if grad_offset.size:
                    at = image * grid.offset_image
                    at += 2 * tap * grid.offset_channel + part.first_pixel * grid.offset_pixel
                    for axis in range(2):
                        for p in range(p0, p1):
                            value = points[start + 3 * (p * job.taps + k) + axis]
                            to = at + axis * grid.offset_channel + p * grid.offset_pixel
                            grad_offset[to] = value if fresh else grad_offset[to] + value
                if grad_mask.size:
                    at = image * grid.mask_image
                    at += tap * grid.mask_channel + part.first_pixel * grid.mask_pixel
                    for p in range(p0, p1):
                        value = points[start + 3 * (p * job.taps + k) + 2]
                        to = at + p * grid.mask_pixel
                        grad_mask[to] = value if fresh else grad_mask[to] + value
