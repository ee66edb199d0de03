"""Windows of rows: of an image too large to be laid out at once, the rows that some tiles read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.blocking import Job, Slices, grid_and_job, rounds
from cudeform.cpu.conv.parts import CORNERS, Part
from cudeform.cpu.language import workspace
from cudeform.cpu.language.compiler import kernel
from cudeform.cpu.sampler import locate, point_arrays, reach
from cudeform.plans.convolution import ConvPlan

__all__ = ["too_large", "windows"]

_WORTH = 2  # times the workspace: which rows tiles read has to be found out first


def too_large(plan: ConvPlan, slices: Slices, itemsize: int) -> bool:
    """Whether one slice of one image takes more than there is room for."""
    points = plan.points
    size = _widest(slices) * points.height * points.width * itemsize
    return not points.channels_last and size > _WORTH * workspace.SCRATCH_BYTES


def windows(
    plan: ConvPlan, slices: Slices, job: Job, numbers: np.ndarray, given: list[np.ndarray]
) -> Iterator[Part]:
    """Parts of tiles in a row that read few rows; tiles that read more gather their corners.

    `numbers` begin with the grid and the job, `given` is offset and mask, flat.
    """
    points, count = plan.points, len(slices.weight_group)
    itemsize = given[0].itemsize
    tiles = -(-points.pixels // job.tile)
    rows = np.empty((tiles, 2), np.int32)
    most = workspace.SCRATCH_BYTES // (_widest(slices) * points.width * itemsize)
    of_pixel = CORNERS * points.taps * points.channels  # elements
    together = max(workspace.SCRATCH_BYTES // (of_pixel * job.tile * itemsize), 1)
    for image in range(points.batch):
        threads.share(partial(_reach, numbers, *given, rows.reshape(-1), image), tiles)
        for first, last, low, high in _runs(rows, most, together):
            pixels = first * job.tile, min(last * job.tile, points.pixels)
            if high - low > most:
                size = (pixels[1] - pixels[0]) * of_pixel
                yield Part(image, 1, size, points.group_channels, 0, 0, count, *pixels, 1, 0, 0)
                continue
            area = (high - low) * points.width
            for begin, end in rounds(slices, area * itemsize):
                channels = int(slices.first[end] - slices.first[begin])
                of_image = area * channels, channels, int(slices.first[begin]), begin, end
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
def _reach(numbers, offset, mask, rows, image, first_tile, last_tile):
    """The first row of an image that each tile reads, and one that is beyond the last."""
    grid, job = grid_and_job(numbers)
    points = point_arrays(offset, job.taps)
    for tile in range(first_tile, last_tile):
        pixel = tile * job.tile
        low, high = grid.height * grid.width, 0
        for group in range(job.offset_groups):
            place = (image, pixel, min(job.tile, grid.pixels - pixel))
            locate(grid, offset, mask, place, group, points)
            a, b = reach(grid, points, place[2])
            low, high = min(low, a), max(high, b)
        low = min(low // grid.width, grid.height - 1)  # of a tile that reads nothing: any row
        rows[2 * tile] = low
        rows[2 * tile + 1] = max(min(high // grid.width + 1, grid.height), low + 1)
