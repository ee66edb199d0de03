"""The parts of a convolution's forward: what is laid out at a time for the tiles that read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cudeform.cpu.conv.blocking import LANES, Job, Slices, rounds
from cudeform.cpu.language import workspace
from cudeform.cpu.language.bare import records
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.transpose import copy_plain, transpose
from cudeform.cpu.sampler import Grid
from cudeform.plans.convolution import ConvPlan
from cudeform.plans.points import Points

__all__ = [
    "CORNERS",
    "SLICES",
    "Part",
    "parts_of",
    "pitch_of",
    "read",
    "read_tile",
    "reads_little",
    "tile_of",
]

CORNERS = 4  # of a point


class Part(NamedTuple):
    """What one call of `_convolve_tiles` computes from: images, and slices of their channels."""

    first_image: int
    images: int
    image_size: int  # elements from one image to the next in the source
    pitch: int  # elements from one pixel to the next; 0: slices lie one after the other
    first_channel: int  # of the source
    begin: int  # slices
    end: int
    first_pixel: int  # of the output
    last_pixel: int
    gathered: int  # 1: the source is no image, but the corners of points from `corners.gather`
    first_row: int  # of the images that is in the source
    rows: int


read = records(Grid, Job, Part)  # what the numbers of a kernel begin with; its slices follow
SLICES = sum(len(kind._fields) for kind in (Grid, Job, Part))


@inlined
def tile_of(job, part, tile):
    """The image of a tile among those of a part, its first pixel, and its pixels."""
    tiles = (part.last_pixel - part.first_pixel + job.tile - 1) // job.tile
    image = tile // tiles
    pixel = part.first_pixel + (tile - image * tiles) * job.tile
    return part.first_image + image, pixel, min(job.tile, part.last_pixel - pixel)


@inlined
def read_tile(grid, job, output, place, first, channels, tile, pitch):
    """Fill a tile from the output or its gradient: channels from `first` on, as the last axis."""
    image, pixel, count = place
    all_channels = job.groups * job.out_channels
    if job.channels_last:
        for p in range(count):
            at = (image * grid.pixels + pixel + p) * all_channels + first
            copy_plain(output, at, tile, p * pitch, channels)
    else:
        at = (image * all_channels + first) * grid.pixels + pixel
        transpose(output, at, grid.pixels, channels, count, tile, 0, pitch)


def reads_little(points: Points) -> bool:
    """Whether the corners of all points are fewer than the pixels of an image."""
    return CORNERS * points.pixels * points.taps < points.height * points.width


def parts_of(
    plan: ConvPlan, slices: Slices, tile: int, itemsize: int, gathered: bool
) -> Iterator[Part]:
    """All parts, in the order in which they add to the output; a tile has so many pixels."""
    if gathered:
        return _of_corners(plan, slices, tile, itemsize)
    return _of_images(plan, slices, itemsize)


def _of_images(plan: ConvPlan, slices: Slices, itemsize: int) -> Iterator[Part]:
    """All images with their channels last; or copies of a few at a time."""
    points = plan.points
    area, count = points.height * points.width, len(slices.weight_group)
    whole = 0, points.pixels, 0, 0, points.height
    if points.channels_last:
        yield Part(0, points.batch, area * points.channels, points.channels, 0, 0, count, *whole)
        return
    cuts = rounds(slices, area * itemsize)
    widest = max(int(slices.first[end] - slices.first[begin]) for begin, end in cuts)
    most = max(min(workspace.SCRATCH_BYTES // (widest * area * itemsize), points.batch), 1)
    for image in range(0, points.batch, most):
        images = min(most, points.batch - image)
        for begin, end in cuts:
            first, last = int(slices.first[begin]), int(slices.first[end])
            size = area * (last - first)
            pitch = pitch_of(slices, begin, end)
            yield Part(image, images, size, pitch, first, begin, end, *whole)


def pitch_of(slices: Slices, begin: int, end: int) -> int:
    """The `pitch` of a copy of some slices.

    Of slices that lie by themselves more pixels fit in the cache, unless they are narrow: to lay
    such out takes longer than to lay all channels out together.
    """
    channels = np.diff(slices.first[begin : end + 1])
    return 0 if channels.min() >= LANES else int(channels.sum())


def _of_corners(plan: ConvPlan, slices: Slices, tile: int, itemsize: int) -> Iterator[Part]:
    """Some output pixels at a time, of a few images or of a part of one."""
    points, count = plan.points, len(slices.weight_group)
    of_pixel = CORNERS * points.taps * points.channels  # elements
    most = max(workspace.SCRATCH_BYTES // (of_pixel * itemsize), 1)
    pixels = min(most // tile * tile or most, points.pixels)
    images = max(most // points.pixels, 1)
    for image in range(0, points.batch, images):
        here = min(images, points.batch - image)
        for first in range(0, points.pixels, pixels):
            last = min(first + pixels, points.pixels)
            size = (last - first) * of_pixel
            yield Part(image, here, size, points.group_channels, 0, 0, count, first, last, 1, 0, 0)
