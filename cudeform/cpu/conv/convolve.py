"""The forward of a convolution: sample a tile of pixels, multiply it while it is in the cache."""

from __future__ import annotations

from collections.abc import Iterable
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
    numbers_with,
    pack_columns,
    slices_from,
    weight_blocks,
    widest_slice,
)
from cudeform.cpu.conv.corners import gather, renumber
from cudeform.cpu.conv.narrow import bias_rows, sum_rows, weight_rows
from cudeform.cpu.conv.parts import SLICES, Part, parts_of, read, read_tile, reads_little, tile_of
from cudeform.cpu.conv.steps import Steps, do, steps_of
from cudeform.cpu.conv.windows import too_large, windows
from cudeform.cpu.language.bare import bare, cleared, give_back, lent
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.matmul import columns_of, multiply
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.simd import BLOCK_BYTES, block_columns
from cudeform.cpu.language.transpose import copy_plain, frozen, transpose
from cudeform.cpu.language.workspace import aligned
from cudeform.cpu.sampler import Grid, Image, blend, grid_of, locate, point_memory, return_points
from cudeform.plans.convolution import ConvPlan

_STAGED_PIXELS = 256  # laid out channels last in one go


class _Memory(NamedTuple):
    """What the tiles read and write, flat."""

    source: np.ndarray  # images with their channels last
    offset: np.ndarray
    mask: np.ndarray
    weight: np.ndarray | None  # packed
    bias: np.ndarray
    output: np.ndarray


class _Work(NamedTuple):
    """All that the tiles of a part need to know."""

    grid: Grid
    job: Job
    part: Part
    slices: Slices
    memory: _Memory


class _Prepared(NamedTuple):
    """What follows from a plan alone."""

    slices: Slices
    job: Job
    parts: list[tuple[Part, np.ndarray, Steps]]  # with the numbers that their kernel reads
    packed: int  # elements of the weight
    staged: int  # elements of images laid out channels last
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
    last, count = plan.points.channels_last, threads.get_num_threads()
    direct = last and input.dtype == output.dtype and input.flags.c_contiguous
    asked = plan, output.itemsize, weight is not None, direct, count
    slices, job, parts, packed, staged, large = _prepared(*asked)
    bias = _no_bias(plan.out_channels, output.dtype) if bias is None else frozen(bias, output)
    if job.narrow:
        weight, bias = weight_rows(plan, weight), frozen(bias_rows(plan, bias), output)
    offset, mask = frozen(offset, output), frozen(mask, output)
    given = frozen(None if parts[0][0].gathered else input, output), offset, mask
    if large:
        numbers, steps = parts[0][1:]
        found = windows(plan, slices, job, numbers, offset)
        packing = steps.ranges[0][1], steps.work[0]
        parts = _with_numbers(plan, slices, job, found, packing, steps.work[2], count)
        staged = _staged(parts)
    scratch = aligned(packed + staged, output.dtype)
    weight = None if weight is None else frozen(weight, output)
    given += weight, job.narrow or None, bias, scratch, output.reshape(-1)
    for part, numbers, steps in parts:
        if part.gathered:
            tiles = steps.ranges[2][1]
            gather(numbers, input, last, offset, mask, scratch[packed:], tiles)
        do(partial(_convolve, numbers, *given), steps)


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
    job = job_of(plan, slices, itemsize, narrow, threads.wanted_tasks(size, count))
    in_place = points.channels_last and not gathered
    blocks = weight_blocks(job, slices, itemsize) if dense and not narrow else 0
    packed = blocks * job.widest * (BLOCK_BYTES // itemsize)
    found = parts_of(plan, slices, job.tile, itemsize, gathered)
    parts = _with_numbers(plan, slices, job, found, (blocks, packed), size, count)
    staged = 0 if in_place else _staged(parts)
    large = not gathered and too_large(plan, slices, itemsize)
    return _Prepared(slices, job, parts, packed, staged, large)


def _with_numbers(
    plan: ConvPlan, slices: Slices, job: Job, parts: Iterable[Part], packing: tuple[int, float],
    size: float, count: int
) -> list[tuple[Part, np.ndarray, Steps]]:  # fmt: skip
    """Parts with the numbers that their kernel reads and its steps; the first packs the weight."""
    grid = grid_of(plan.points, plan.deformable, plan.modulated)
    result = []
    for part in parts:
        tiles = part.images * -(-(part.last_pixel - part.first_pixel) // job.tile)
        pieces = part.images * -(-part.rows * grid.width // _STAGED_PIXELS)
        if part.gathered or plan.points.channels_last:
            pieces = 0
        staged = pieces, part.images * part.image_size
        steps = steps_of(count, (packing, staged), ((tiles, size),))
        result.append((part, numbers_with(slices, grid, job, part), steps))
        packing = 0, 0
    return result


def _staged(parts: list[tuple[Part, np.ndarray, Steps]]) -> int:
    """Elements that the largest part lays out."""
    return max(part.images * part.image_size for part, _, _ in parts)


@kernel
def _convolve(
    numbers, input, offset, mask, weight, narrow, bias, scratch, output, blocks, pieces, tiles
):  # fmt: skip
    """Pack blocks of the weight, lay out pieces of the images of a part, and compute its tiles.

    What is not for the weight, None or not, and not for its groups is not compiled; `narrow` is
    None where they are not narrow.
    """
    grid, job, part = read(numbers)
    slices, packed, at = slices_from(job, numbers, SLICES), bare(scratch, 0), 0
    if narrow is not None:
        packed = bare(weight, 0)
    elif weight is not None:
        at = job.slices * job.widest * columns_of(scratch, job.out_channels)
        pack_columns(job, slices, bare(weight, 0), packed, blocks)
    source = _stage(grid, job, part, slices, bare(input, 0), bare(scratch, at), pieces)
    memory = _Memory(source, bare(offset, 0), bare(mask, 0), packed, bare(bias, 0), bare(output, 0))
    if tiles[0] < tiles[1]:
        _compute_tiles(_Work(grid, job, part, slices, memory), weight, narrow, tiles)


@inlined
def _stage(grid, job, part, slices, source, staged, pieces):
    """Lay pieces of the images of a part out with their channels last. Returns what tiles read."""
    if job.channels_last and not part.gathered:
        return source
    channels, area = job.groups * job.in_channels, grid.height * grid.width
    laid_out = part.rows * grid.width
    each = (laid_out + _STAGED_PIXELS - 1) // _STAGED_PIXELS
    for piece in range(pieces[0], pieces[1]):
        image = piece // each
        pixel = (piece - image * each) * _STAGED_PIXELS
        start = (part.first_image + image) * channels * area + part.first_row * grid.width + pixel
        count = min(_STAGED_PIXELS, laid_out - pixel)
        s = part.begin
        while s < part.end:
            end = part.end if part.pitch else s + 1
            channel, pitch = slices.first[s], slices.first[end] - slices.first[s]
            at = image * part.image_size + (channel - part.first_channel) * laid_out + pixel * pitch
            transpose(source, start + channel * area, area, pitch, count, staged, at, pitch)
            s = end
    return staged


@inlined
def _compute_tiles(work, weight, narrow, tiles):
    grid, job, part, slices, memory = work
    source, width = memory.source, job.out_pitch
    points = point_memory(source, job.taps)
    total = cleared(job.tile * width, source.dtype)
    samples = lent(job.tile * job.pitch if narrow is None else 0, source.dtype)
    sums, columns = bare(total, 0), bare(samples, 0)
    size = job.widest * columns_of(source, job.out_channels)  # of a slice's packed weights
    block = block_columns(source)
    for tile in range(tiles[0], tiles[1]):
        place = tile_of(job, part, tile)
        count = place[2]
        offsets_of, sums_of = -1, -1  # the groups that `points` and `sums` are for
        for s in range(part.begin, part.end):
            if slices.offset_group[s] != offsets_of:
                offsets_of = slices.offset_group[s]
                _locate(work, points, place, offsets_of)
            view = _image_of(work, place, s)
            if narrow is not None:
                sum_rows(grid, job, points, view, memory, place, slices.first[s], sums)
                continue
            blend(grid, points, count, source, view, columns, job.pitch)
            if weight is None:
                _write(work, columns, job.pitch, place, slices.first[s], view.channels)
                continue
            group = slices.weight_group[s]
            first = group * job.out_channels
            if group != sums_of:
                sums_of = group
                fresh = slices.first[s] == group * job.in_channels
                _start_sums(work, sums, place, first, fresh)
            depth = job.taps * view.channels
            multiply(
                columns,
                (0, job.pitch, 1),
                memory.weight,
                (s * size, block, depth * block),
                sums,
                (0, width),
                (count, columns_of(source, job.out_channels), depth),
                False,
            )
            if s + 1 == part.end or slices.weight_group[s + 1] != group:
                _write(work, sums, width, place, first, job.out_channels)
    give_back(total)
    give_back(samples)
    return_points(points)


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
    grid, job, _, _, memory = work
    channels, pitch = job.out_channels, job.out_pitch
    if fresh:
        for p in range(place[2]):
            copy_plain(memory.bias, first, sums, p * pitch, channels)
    else:
        read_tile(grid, job, memory.output, place, first, channels, sums, pitch)


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
