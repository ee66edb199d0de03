"""The gradients of so few slices of images that threads have to share each of them.

What a tile finds is kept for a stretch of tiles. Then some tasks add a range of the input's pixels
up, and others blocks of the gradient of the weight: each goes through all tiles of the stretch. So
every sum has the order that it has where one task takes a whole slice, and the same bytes.
"""

from __future__ import annotations

from functools import partial
from math import isqrt
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.blocking import Job
from cudeform.cpu.conv.steps import NO_STEP, do, steps_of
from cudeform.cpu.conv.sums import Part, Wanted, measure_tile, work_of
from cudeform.cpu.conv.tiles import (
    add_tile,
    begin_slice,
    count_parts,
    end_slice,
    find_tile,
    image_of,
)
from cudeform.cpu.language.bare import bare, records
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.simd import BLOCK_ROWS
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.sample_gradients import spread_between
from cudeform.cpu.sampler import PIXELS, blend, locate, point_memory, return_points
from cudeform.plans.points import Points

_TILES = 16  # kept at a time where there is room, but one for each thread at least
_LAID_OUT = 1024  # pixels of the input at a time
_NOWHERE = 2**62


class _Stretch(NamedTuple):
    """What is worked on at a time: some pixels of some slices of images, counted as one row."""

    first_slice: int
    last_slice: int
    first_pixel: int
    last_pixel: int
    room: int  # pixels of a slice in `_Kept`
    step: int  # pixels that are sampled by a task, and located at once
    ranges: int  # of the pixels of the input
    blocks: int  # ranges of blocks of the gradient of the weight


class _Kept(NamedTuple):
    """What is kept of a stretch, slice by slice."""

    columns: np.ndarray  # gradients of sampled values
    samples: np.ndarray  # the sampled values
    tiles: np.ndarray  # of grad_output
    reach: np.ndarray  # (slices, steps, 2): from which pixel of the input to which is read


def add_stretches(
    points: Points, job: Job, part: Part, wanted: Wanted, given: tuple, work: int, spare: int
) -> None:
    """As one task for each slice of each image adds up, with many for each.

    `given` are the first arguments of kernels. There are so many bytes to `spare` besides a tile
    for each thread.
    """
    dtype, threaded = given[3][0].dtype, threads.get_num_threads()
    count = part.images * (part.end - part.begin)
    area, pixels = points.height * points.width, part.last_pixel - part.first_pixel
    pieces = count * -(-area // _LAID_OUT), count * area * job.widest
    begins = part.first_pixel == 0 and (wanted.input or not job.channels_last)
    ends = wanted.input and not job.channels_last and part.last_pixel == points.pixels
    tile = job.tile * (2 * job.pitch + job.out_pitch) * dtype.itemsize
    most = max(min(_TILES, spare // tile), threaded)
    together, tasks = min(count, most), threads.wanted_tasks(work)
    tiles = min(most // together, -(-pixels // job.tile))
    step = job.tile // max(tasks // (together * tiles), 1) // BLOCK_ROWS * BLOCK_ROWS
    step = max(step, BLOCK_ROWS)
    room = together * tiles * job.tile
    kept = (  # as `_Kept` has them
        np.empty(room * job.pitch, dtype),
        np.empty(room * job.pitch if wanted.weight else 0, dtype),
        np.empty(room * job.out_pitch, dtype),
        np.empty(2 * -(-room // step) + 2 * room // job.tile, np.int64),
    )
    for first in range(0, count, together):
        last = min(first + together, count)
        blocks = -(-tasks // (last - first))
        ranges = min(isqrt(threaded), blocks)
        each = wanted.input * ranges + (wanted.weight or wanted.bias) * blocks
        for pixel in range(part.first_pixel, part.last_pixel, tiles * job.tile):
            end = min(pixel + tiles * job.tile, part.last_pixel)
            cut = _Stretch(first, last, pixel, end, tiles * job.tile, step, ranges, blocks)
            own = work * (last - first) * (end - pixel) // (count * pixels)
            steps = steps_of(
                threaded,
                (pieces if begins else NO_STEP,),
                (((last - first) * -(-(end - pixel) // step), own),),
                (((last - first) * each, own),),
                (pieces if ends and last == count and end == part.last_pixel else NO_STEP,),
            )
            do(partial(_sum, *given, kept, numbers_of(cut)), steps)
            begins = False


_read = records(_Stretch)


@kernel
def _sum(numbers, weight, narrow, arrays, kept, stretch, begun, found, added, ended):
    """Lay pieces of the slices of images out, find what is kept of some steps of a stretch, add up
    ranges of pixels and of blocks, and lay pieces out after the last sums.
    """
    work = work_of(numbers, weight, narrow, arrays)
    (stretch,), columns, samples, tiles, reach = _read(stretch), *kept
    kept = _Kept(bare(columns, 0), bare(samples, 0), bare(tiles, 0), bare(reach, 0))
    points = point_memory(work.given.input, work.job.taps)
    _lay_out(work, begin_slice, begun)
    _find(work, weight, narrow, kept, stretch, points, found)
    _add(work, weight, narrow, kept, stretch, points, added)
    _lay_out(work, end_slice, ended)
    return_points(points)


@inlined
def _lay_out(work, lay, pieces):
    """As `lay` does, pieces of the slices of images."""
    area = work.grid.height * work.grid.width
    each = (area + _LAID_OUT - 1) // _LAID_OUT
    for task in range(pieces[0], pieces[1]):
        image, s = _slice(work.part, task // each)
        pixel = task % each * _LAID_OUT
        lay(work, image, s, pixel, min(pixel + _LAID_OUT, area))


@inlined
def _slice(part, number):
    """The image and the slice of a number among all of a part."""
    count = part.end - part.begin
    return part.first_image + number // count, part.begin + number % count


@inlined
def _find(work, weight, narrow, kept, stretch, points, some):
    """What is kept of some steps of the slices of a stretch."""
    grid, job, wanted, part, _, given, _ = work
    steps = _count_steps(stretch)
    for task in range(some[0], some[1]):
        own = task // steps
        image, s = _slice(part, stretch.first_slice + own)
        pixel, count, at = _step(stretch, own, task % steps)
        columns, tile = bare(kept.columns, at * job.pitch), bare(kept.tiles, at * job.out_pitch)
        place, view = (image, pixel, count), image_of(work, image, s)
        find_tile(work, weight, narrow, points, place, s, columns, tile)
        measure_tile(work, points, view, place, s, columns)
        if wanted.input:
            _reach(grid, job, points, count, bare(kept.reach, 2 * task))
        if wanted.weight:
            samples = bare(kept.samples, at * job.pitch)
            blend(grid, points, count, given.source, view, samples, job.pitch)


@inlined
def _count_steps(stretch):
    return (stretch.last_pixel - stretch.first_pixel + stretch.step - 1) // stretch.step


@inlined
def _step(stretch, own, number):
    """The first pixel of a step of a slice, how many pixels it has, and where they are kept."""
    pixel = stretch.first_pixel + number * stretch.step
    at = own * stretch.room + number * stretch.step
    return pixel, min(stretch.step, stretch.last_pixel - pixel), at


@inlined
def _reach(grid, job, points, count, reach):
    """The first pixel that points read, and one behind the last."""
    pixel, state, _ = points
    low, high = _NOWHERE, -1
    for k in range(job.taps):
        for p in range(count):
            if state[k * PIXELS + p]:
                low = min(low, pixel[k * PIXELS + p])
                high = max(high, pixel[k * PIXELS + p])
    reach[0], reach[1] = low, high + grid.width + 2


@inlined
def _add(work, weight, narrow, kept, stretch, points, some):
    """Some ranges of pixels and of blocks of the gradients of slices."""
    job, wanted, part = work.job, work.wanted, work.part
    blocks = stretch.blocks if wanted.weight or wanted.bias else 0
    each = blocks + (stretch.ranges if wanted.input else 0)
    for task in range(some[0], some[1]):
        own, number = task // each, task % each
        image, s = _slice(part, stretch.first_slice + own)
        if number < blocks:
            parts = count_parts(work, narrow, s)
            here = min(blocks, parts)
            if number >= here:
                continue
            begin, end = parts * number // here, parts * (number + 1) // here
            for pixel in range(stretch.first_pixel, stretch.last_pixel, job.tile):
                at = own * stretch.room + pixel - stretch.first_pixel
                columns = bare(kept.samples, at * job.pitch)
                tile = bare(kept.tiles, at * job.out_pitch)
                place = image, pixel, min(job.tile, stretch.last_pixel - pixel)
                add_tile(work, weight, narrow, place, s, columns, tile, begin, end)
        else:
            _spread(work, points, stretch, kept, own, number - blocks)


@inlined
def _spread(work, points, stretch, kept, own, number):
    """Add up a range of the pixels of the input that a slice of a stretch reads."""
    grid, job, _, part, slices, given, sums = work
    image, s = _slice(part, stretch.first_slice + own)
    view, steps = image_of(work, image, s), _count_steps(stretch)
    low, high = _NOWHERE, 0
    for n in range(own * steps, (own + 1) * steps):
        low, high = min(low, kept.reach[2 * n]), max(high, kept.reach[2 * n + 1])
    length = max(high - low, 0)
    begin = low + length * number // stretch.ranges
    end = low + length * (number + 1) // stretch.ranges
    for n in range(steps if begin < end else 0):
        reach = bare(kept.reach, 2 * (own * steps + n))
        if reach[0] < end and reach[1] > begin:
            pixel, count, at = _step(stretch, own, n)
            place = image, pixel, count
            locate(grid, given.offset, given.mask, place, slices.offset_group[s], points)
            columns = bare(kept.columns, at * job.pitch)
            between = begin, end
            spread_between(grid, points, count, columns, job.pitch, sums.target, view, between)
