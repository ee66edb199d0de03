"""Windows of rows: of an image too large to be laid out at once, the rows that some tiles read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.blocking import Job, Slices, rounds
from cudeform.cpu.conv.parts import CORNERS, Part, pitch_of, read
from cudeform.cpu.language import workspace
from cudeform.cpu.language.bare import bare, give_back, lent
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.sampler import PLANE
from cudeform.plans.convolution import ConvPlan

_WORTH = 2  # times the workspace: which rows tiles read has to be found out first
_SLACK = 3  # rows on either side, for corners and for what is rounded


def too_large(plan: ConvPlan, slices: Slices, itemsize: int) -> bool:
    """Whether one slice of one image takes more than there is room for."""
    points = plan.points
    size = _widest(slices) * points.height * points.width * itemsize
    return not points.channels_last and size > _WORTH * workspace.SCRATCH_BYTES


def windows(
    plan: ConvPlan, slices: Slices, job: Job, numbers: np.ndarray, offset: np.ndarray
) -> Iterator[Part]:
    """Parts of tiles in a row that read few rows; tiles that read more gather their corners.

    `numbers` begin with the grid and the job; the offset is flat.
    """
    points, count = plan.points, len(slices.weight_group)
    itemsize = offset.itemsize
    tiles = -(-points.pixels // job.tile)
    rows = np.empty((tiles, 2), np.int32)
    most = workspace.SCRATCH_BYTES // (_widest(slices) * points.width * itemsize)
    of_pixel = CORNERS * points.taps * points.channels  # elements
    together = max(workspace.SCRATCH_BYTES // (of_pixel * job.tile * itemsize), 1)
    for image in range(points.batch):
        threads.share(partial(_reach, numbers, offset, rows.reshape(-1), image), tiles)
        for first, last, low, high in _runs(rows, most, together):
            pixels = first * job.tile, min(last * job.tile, points.pixels)
            if high - low > most:
                size = (pixels[1] - pixels[0]) * of_pixel
                yield Part(image, 1, size, points.group_channels, 0, 0, count, *pixels, 1, 0, 0)
                continue
            area = (high - low) * points.width
            for begin, end in rounds(slices, area * itemsize):
                channels = int(slices.first[end] - slices.first[begin])
                pitch = pitch_of(slices, begin, end)
                of_image = area * channels, pitch, int(slices.first[begin]), begin, end
                yield Part(image, 1, *of_image, *pixels, 0, low, high - low)


def _widest(slices: Slices) -> int:
    """Channels of the widest slice."""
    return int(np.diff(slices.first).max())


def _runs(rows: np.ndarray, most: int, together: int) -> Iterator[tuple[int, int, int, int]]:
    """(first tile, one after the last, first row, one after the last): tiles of `most` rows in all,
    or up to so many `together` that read more rows each.
    """
    first, (low, high) = 0, map(int, rows[0])
    gathers = high - low > most
    for tile in range(1, len(rows)):
        top, bottom = map(int, rows[tile])
        wide = bottom - top > most
        if wide == gathers:
            fits = max(high, bottom) - min(low, top) <= most
            if tile - first < together if wide else fits:
                low, high = min(low, top), max(high, bottom)
                continue
        yield first, tile, low, high
        first, low, high, gathers = tile, top, bottom, wide
    yield first, len(rows), low, high


@kernel
def _reach(numbers, offset, rows, image, first_tile, last_tile):
    """The first row of an image that each tile reads, and one that is beyond the last, at least."""
    grid, job, _ = read(numbers)
    offset, rows = bare(offset, 0), bare(rows, 0)
    memory = lent(3 * PLANE, offset.dtype)
    low, high, odd = bare(memory, 0), bare(memory, PLANE), bare(memory, 2 * PLANE)
    for tile in range(first_tile, last_tile):
        pixel = tile * job.tile
        count = min(job.tile, grid.pixels - pixel)
        for p in range(count):
            low[p], high[p], odd[p] = np.inf, -np.inf, 0
        for channel in range(job.offset_groups * grid.taps):
            down = channel % grid.taps // grid.kernel_width * grid.dilation_y
            _widen(grid, offset, (image, pixel, count), (channel, down), (low, high, odd))
        top = pixel // grid.out_width * grid.stride_y + grid.origin_y
        bottom = (pixel + count - 1) // grid.out_width * grid.stride_y + grid.origin_y
        lowest, highest, strange = low[0], high[0], odd[0]
        for p in range(1, count):
            lowest, highest = min(lowest, low[p]), max(highest, high[p])
            strange += odd[p]
        first, last = np.floor(lowest) + top - _SLACK, np.floor(highest) + bottom + _SLACK
        if strange != 0:  # a NaN or an infinite offset: anywhere
            first, last = 0.0, float(grid.height)
        first = min(max(first, 0.0), grid.height - 1.0)  # of a tile that reads nothing: any row
        rows[2 * tile] = np.int64(first)
        rows[2 * tile + 1] = np.int64(min(max(last, first + 1.0), float(grid.height)))
    give_back(memory)


@inlined
def _widen(grid, offset, place, tap, found):
    """Let rows, relative to those of the pixels, be what one more tap reads of a tile."""
    image, pixel, count = place
    channel, down = tap
    low, high, odd = found
    real = offset.dtype.type
    if not grid.deformable:
        for p in range(count):
            low[p], high[p] = min(low[p], real(down)), max(high[p], real(down))
        return
    at = image * grid.offset_image + 2 * channel * grid.offset_channel + pixel
    moved = bare(offset, at)
    for p in range(count):  # no sum over pixels: LLVM makes vectors of this
        y = moved[p] + real(down)
        low[p] = y if y < low[p] else low[p]
        high[p] = y if y > high[p] else high[p]
        odd[p] += y - y
