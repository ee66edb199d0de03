"""The corners of sampling points, gathered: of an image of which little is read, only that.

Every point gets a place of its own, of two by two pixels with their channels last, as if it were a
tiny image. So what computes on images computes on these, to the same bytes.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.parts import CORNERS, read, tile_of
from cudeform.cpu.language.bare import bare
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.strided import lying
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.sampler import (
    ON_PIXEL,
    PIXELS,
    Image,
    corners,
    locate,
    point_memory,
    return_points,
)


def gather(
    numbers: np.ndarray,
    input: np.ndarray,
    channels_last: bool,
    offset: np.ndarray,
    mask: np.ndarray,
    target: np.ndarray,
    tasks: int,
) -> None:
    """Fill `target` with the corners of the points of a part, which are cut into `tasks` tiles.

    All arrays but the input are flat. That may have any strides, and 16 bits, which are widened.
    """
    given, start, strides = lying(input)
    copied = target
    if input.dtype != target.dtype:  # Numba has neither type: words of 16 bits are copied first
        copied = np.empty(len(target), given.dtype)
    image, *others = strides
    channel, row, column = others[2:] + others[:2] if channels_last else others
    view = numbers_of((start, image, channel, row, column))
    task = partial(_gather, numbers, view, given, offset, mask, copied)
    threads.share(task, tasks, len(target))
    if copied is not target:
        target[...] = copied.view(input.dtype)


@inlined
def _place_of(job, pixel, group, tap):
    """The place of a point among those of an image: the number of its first corner."""
    return CORNERS * ((pixel * job.offset_groups + group) * job.taps + tap)


@inlined
def renumber(job, points, count, first, group):
    """Let the points of a tile read their places, the tile's first pixel being the `first` one."""
    pixel, _, _ = points
    for k in range(job.taps):
        for p in range(count):
            pixel[k * PIXELS + p] = _place_of(job, first + p, group, k)


@kernel
def _gather(numbers, view, source, offset, mask, target, first_tile, last_tile):
    """Tiles `first_tile` to `last_tile` of the images of a part."""
    grid, job, part = read(numbers)
    source, target = bare(source, 0), bare(target, 0)
    offset, mask = bare(offset, 0), bare(mask, 0)
    points = point_memory(offset, job.taps)
    all_channels = job.groups * job.in_channels
    channels = all_channels // job.offset_groups
    begin, of_image, of_channel, of_row, of_pixel = view[0], view[1], view[2], view[3], view[4]
    for tile in range(first_tile, last_tile):
        own = tile_of(job, part, tile)
        image, pixel, count = own
        for group in range(job.offset_groups):
            locate(grid, offset, mask, own, group, points)
            start = begin + image * of_image + group * channels * of_channel
            lies = Image(start, of_pixel, of_row, channels)
            to = (image - part.first_image) * part.image_size
            place = (to, pixel - part.first_pixel, count, group)
            _copy(job, grid.width, points, lies, of_channel, source, target, place)
    return_points(points)


@inlined
def _copy(job, width, points, view, of_channel, source, target, place):
    """Copy the corners of the points of a tile, whose channels are `of_channel` apart."""
    pixel, state, _ = points
    image, first, count, group = place
    gap = view.line - width * view.pitch  # behind the last pixel of a row
    for k in range(job.taps):
        for p in range(count):
            bits = state[k * PIXELS + p]
            if bits == 0:  # nobody reads its place
                continue
            n = pixel[k * PIXELS + p]
            row = view.start + n // width * gap
            at = corners(bits, n, Image(row, view.pitch, view.line, view.channels))
            to = image + _place_of(job, first + p, group, k) * view.channels
            for corner in range(1 if bits == ON_PIXEL else CORNERS):
                for c in range(view.channels):
                    target[to + c] = source[at[corner] + c * of_channel]
                to += view.channels
