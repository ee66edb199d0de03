"""The forward of a convolution: sample a tile of pixels, multiply it while it is in the cache."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.blocking import (
    PRODUCTS,
    Job,
    Slices,
    cut,
    is_narrow,
    job_of,
    packed_columns,
    widest_slice,
)
from cudeform.cpu.conv.corners import gather, renumber
from cudeform.cpu.conv.narrow import bias_rows, sum_rows, weight_rows
from cudeform.cpu.conv.parts import Part, parts_of, read, reads_little
from cudeform.cpu.conv.windows import too_large, windows
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.matmul import columns_of, multiply
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.scratch import empty, zeroed
from cudeform.cpu.language.simd import block_columns
from cudeform.cpu.language.transpose import copy_plain, frozen, transpose
from cudeform.cpu.language.workspace import aligned, numbers_of
from cudeform.cpu.sampler import Grid, Image, blend, grid_of, locate, point_arrays
from cudeform.plans.convolution import ConvPlan

__all__ = [
    "Memory",
    "Work",
    "convolve",
]

_STAGED_PIXELS = 256  # laid out channels last in one go


class Memory(NamedTuple):
    """What the kernels read and write, flat."""

    source: np.ndarray  # images with their channels last
    offset: np.ndarray
    mask: np.ndarray
    packed: np.ndarray  # the weight
    bias: np.ndarray
    output: np.ndarray


class Work(NamedTuple):
    """All that the tiles of a part need to know."""

    grid: Grid
    job: Job
    part: Part
    slices: Slices
    memory: Memory


class _Prepared(NamedTuple):
    """What follows from a plan alone."""

    slices: Slices
    job: Job
    parts: list[tuple[Part, np.ndarray]]  # with the numbers that their kernels read
    staged: int  # elements of images laid out channels last
    size: int  # multiplications
    large: bool  # a slice of an image is too large to be laid out


def convolve(
    plan: ConvPlan,
    input: np.ndarray,
    offset: np.ndarray | None,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    mask: np.ndarray | None,
    output: np.ndarray,
) -> None:
    """Fill `output`; all arrays are of one dtype, float32 or float64. No weight: only sample.

    Where `reads_little`, the input may have 16 bits and any strides.
    """
    # an image with its channels last is read where it lies
    last = plan.points.channels_last
    direct = last and input.dtype == output.dtype and input.flags.c_contiguous
    dense = weight is not None
    prepared = _prepared(plan, output.itemsize, dense, direct, threads.get_num_threads())
    slices, job, parts, staged, size, large = prepared
    packed, loops = None, []
    bias = _no_bias(plan.out_channels, output.dtype) if bias is None else frozen(bias, output)
    kernel_of_tiles = _convolve_tiles
    if job.narrow:
        kernel_of_tiles = _sum_tiles
        packed, bias = weight_rows(plan, weight), frozen(bias_rows(plan, bias), output)
    elif dense:
        packed, loop = packed_columns(job, parts[0][1], slices, weight)
        loops = [loop]
    source = given = frozen(None if parts[0][0].gathered else input, input)
    if large:
        found = windows(plan, slices, job, parts[0][1], frozen(offset, output))
        grid = grid_of(plan.points, plan.deformable, plan.modulated)
        parts = [(part, numbers_of(grid, job, part)) for part in found]
        staged = _staged(parts)
    if staged:
        scratch = aligned(staged, output.dtype)
        source = frozen(scratch, output)
    arrays = [frozen(array, output) for array in (offset, mask, packed)]
    memory = Memory(source, *arrays, bias, output.ravel())
    for part, numbers in parts:
        tiles = -(-(part.last_pixel - part.first_pixel) // job.tile)
        if part.gathered:
            gather(numbers, input, last, arrays[0], arrays[1], scratch, part.images * tiles)
        elif staged:
            pieces = part.images * -(-part.rows * plan.points.width // _STAGED_PIXELS)
            task = partial(_stage, numbers, slices, given, scratch)
            loops = [*loops, (task, pieces, part.images * part.image_size)]
        if loops:
            threads.share_all(loops)
            loops = []
        task = partial(kernel_of_tiles, numbers, slices, memory)
        threads.share(task, part.images * tiles, size)


@remembered
def _no_bias(channels: int, dtype: np.dtype) -> np.ndarray:
    return frozen(np.zeros(channels, dtype), np.zeros(0, dtype))


@remembered
def _prepared(plan: ConvPlan, itemsize: int, dense: bool, direct: bool, count: int) -> _Prepared:
    """The cut for `count` threads does not change a bit: every pixel is computed by itself."""
    points = plan.points
    size = points.batch * points.pixels * points.taps * points.channels
    size *= 4 + (plan.out_channels // plan.groups // PRODUCTS if dense else 0)
    gathered = reads_little(points) and not direct
    narrow = is_narrow(plan, backward=False)
    slices = cut(plan, widest_slice(plan), narrow)
    job = job_of(plan, slices, itemsize, dense, narrow, threads.wanted_tasks(size, count))
    grid = grid_of(points, plan.deformable, plan.modulated)
    parts = parts_of(plan, slices, job.tile, itemsize, gathered)
    parts = [(part, numbers_of(grid, job, part)) for part in parts]
    in_place = points.channels_last and not gathered
    staged = 0 if in_place else _staged(parts)
    large = not gathered and too_large(plan, slices, itemsize)
    return _Prepared(slices, job, parts, staged, size, large)


def _staged(parts: list[tuple[Part, np.ndarray]]) -> int:
    """Elements that the largest part lays out."""
    return max(part.images * part.image_size for part, _ in parts)


@kernel
def _stage(numbers, slices, source, staged, first, last):
    """Lay pieces `first` to `last` of the images of a part out with their channels last."""
    grid, job, part = read(numbers)
    channels, area = job.groups * job.in_channels, grid.height * grid.width
    laid_out = part.rows * grid.width
    pieces = (laid_out + _STAGED_PIXELS - 1) // _STAGED_PIXELS
    for piece in range(first, last):
        image = piece // pieces
        pixel = (piece - image * pieces) * _STAGED_PIXELS
        start = (part.first_image + image) * channels * area + part.first_row * grid.width + pixel
        count = min(_STAGED_PIXELS, laid_out - pixel)
        s = part.begin
        while s < part.end:
            end = part.end if part.pitch else s + 1
            channel, pitch = slices.first[s], slices.first[end] - slices.first[s]
            at = image * part.image_size + (channel - part.first_channel) * laid_out + pixel * pitch
            transpose(source, start + channel * area, area, pitch, count, staged, at, pitch)
            s = end


@kernel
def _convolve_tiles(numbers, slices, memory, first_tile, last_tile):
    """Tiles `first_tile` to `last_tile` of the images of a part."""
    grid, job, part = read(numbers)
    work = Work(grid, job, part, slices, memory)
    source, packed = memory.source, memory.packed
    points = point_arrays(source, job.taps)
    columns = empty(job.tile * job.pitch, source.dtype)
    width = job.out_pitch
    sums = zeroed(job.tile * width, source.dtype)
    size = job.widest * columns_of(source, job.out_channels)  # of a slice's packed weights
    block = block_columns(source)
    for tile in range(first_tile, last_tile):
        place = _place_of(job, part, tile)
        count = place[2]
        offsets_of, sums_of = -1, -1  # the groups that `points` and `sums` are for
        for s in range(part.begin, part.end):
            if slices.offset_group[s] != offsets_of:
                offsets_of = slices.offset_group[s]
                _locate(work, points, place, offsets_of)
            channels = slices.first[s + 1] - slices.first[s]
            view = _image_of(work, place, s)
            blend(grid, points, count, source, view, columns, job.pitch)
            values, pitch, first = columns, job.pitch, slices.first[s]
            if job.dense:
                group = slices.weight_group[s]
                first = group * job.out_channels
                if group != sums_of:
                    sums_of = group
                    fresh = slices.first[s] == group * job.in_channels
                    _start_sums(work, sums, place, first, fresh)
                depth = job.taps * channels
                multiply(
                    columns,
                    (0, job.pitch, 1),
                    packed,
                    (s * size, block, depth * block),
                    sums,
                    (0, width),
                    (count, columns_of(source, job.out_channels), depth),
                    False,
                )
                if s + 1 < part.end and slices.weight_group[s + 1] == group:
                    continue
                values, pitch, channels = sums, width, job.out_channels
            _write(work, values, pitch, place, first, channels)


@kernel
def _sum_tiles(numbers, slices, memory, first_tile, last_tile):
    """Tiles `first_tile` to `last_tile` of the images of a part, where groups are narrow."""
    grid, job, part = read(numbers)
    work = Work(grid, job, part, slices, memory)
    source = memory.source
    points = point_arrays(source, job.taps)
    rows = zeroed(job.tile * job.out_pitch, source.dtype)
    for tile in range(first_tile, last_tile):
        place = _place_of(job, part, tile)
        offsets_of = -1
        for s in range(part.begin, part.end):
            if slices.offset_group[s] != offsets_of:
                offsets_of = slices.offset_group[s]
                _locate(work, points, place, offsets_of)
            view = _image_of(work, place, s)
            sum_rows(grid, job, points, view, memory, place, slices.first[s], rows)


@inlined
def _place_of(job, part, tile):
    """The image of a tile of a part, its first pixel, and its pixels."""
    tiles = (part.last_pixel - part.first_pixel + job.tile - 1) // job.tile
    image = tile // tiles
    pixel = part.first_pixel + (tile - image * tiles) * job.tile
    return part.first_image + image, pixel, min(job.tile, part.last_pixel - pixel)


@inlined
def _locate(work, points, place, group):
    """Locate the points of a tile that an offset group of channels reads."""
    grid, job, part, _, memory = work
    locate(grid, memory.offset, memory.mask, place, group, points)
    if part.gathered:
        renumber(job, points, place[2], place[1] - part.first_pixel, group)


@inlined
def _image_of(work, place, s):
    """Where a slice of an image lies in the source."""
    grid, job, part, slices, _ = work
    channels = slices.first[s + 1] - slices.first[s]
    first, pitch = slices.first[s] - part.first_channel, part.pitch
    width = grid.width
    if part.gathered:
        first -= slices.offset_group[s] * pitch
        width = 2
    elif pitch == 0:
        first, pitch = first * part.rows * width, channels
    line = width * pitch
    start = (place[0] - part.first_image) * part.image_size + first - part.first_row * line
    return Image(start, pitch, line, channels)


@inlined
def _start_sums(work, sums, place, first, fresh):
    """Begin a tile's sums of a weight group with the bias, or with what the output has so far."""
    grid, job, bias, output = work.grid, work.job, work.memory.bias, work.memory.output
    pitch = job.out_pitch
    image, pixel, count = place
    channels = job.groups * job.out_channels
    if fresh:
        for p in range(count):
            copy_plain(bias, first, sums, p * pitch, job.out_channels)
    elif job.channels_last:
        for p in range(count):
            at = (image * grid.pixels + pixel + p) * channels + first
            copy_plain(output, at, sums, p * pitch, job.out_channels)
    else:
        at = (image * channels + first) * grid.pixels + pixel
        transpose(output, at, grid.pixels, job.out_channels, count, sums, 0, pitch)


@inlined
def _write(work, values, pitch, place, first, channels):
    """Write a tile of the output's channels from `first` on."""
    grid, job, output = work.grid, work.job, work.memory.output
    image, pixel, count = place
    all_channels = job.groups * job.out_channels
    if job.channels_last:
        for p in range(count):
            to = (image * grid.pixels + pixel + p) * all_channels + first
            copy_plain(values, p * pitch, output, to, channels)
    else:
        to = (image * all_channels + first) * grid.pixels + pixel
        transpose(values, 0, pitch, count, channels, output, to, grid.pixels)
