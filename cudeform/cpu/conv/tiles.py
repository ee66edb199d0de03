"""What a tile of pixels adds to the gradients of a slice of an image, step by step.

First come the columns, the gradient of the values that were sampled, for `sums.use_samples`; then
the gradient of the weight, from the values that were sampled anew.
"""

from __future__ import annotations

from cudeform.cpu.conv.blocking import collect_weight, pack_rows
from cudeform.cpu.conv.narrow import add_rows, add_samples, count_rows, find_samples
from cudeform.cpu.conv.parts import read_tile
from cudeform.cpu.conv.sums import collect_points, use_samples, work_of
from cudeform.cpu.language.bare import bare, cleared, give_back
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.matmul import columns_of, multiply, rows_of
from cudeform.cpu.language.simd import block_columns, block_rows
from cudeform.cpu.language.transpose import transpose
from cudeform.cpu.sampler import Image, locate, point_memory, return_points


@inlined
def image_of(work, image, s):
    """Where a slice of an image lies in `Given.source` and `Sums.target`."""
    grid, job, _, part, slices, _, _ = work
    area = grid.height * grid.width
    channels = slices.first[s + 1] - slices.first[s]
    if job.channels_last:
        pitch = job.groups * job.in_channels
        start = image * area * pitch + slices.first[s]
        return Image(start, pitch, grid.width * pitch, channels)
    at = (image - part.first_image) * (slices.first[part.end] - slices.first[part.begin])
    start = (at + slices.first[s] - slices.first[part.begin]) * area
    return Image(start, channels, grid.width * channels, channels)


@inlined
def begin_slice(work, image, s, first, last):
    """Lay pixels of a slice of the input out with its channels last; set its gradient to zero."""
    grid, job, wanted, _, slices, given, sums = work
    view = image_of(work, image, s)
    if not job.channels_last and (wanted.points or wanted.weight):
        area = grid.height * grid.width
        start = (image * job.groups * job.in_channels + slices.first[s]) * area + first
        to = view.start + first * view.pitch
        count = last - first
        transpose(given.input, start, area, view.channels, count, given.source, to, view.pitch)
    if wanted.input:
        for p in range(first, last):
            pixel = bare(sums.target, view.start + p * view.pitch)
            for c in range(view.channels):
                pixel[c] = 0


@inlined
def end_slice(work, image, s, first, last):
    """Copy pixels of a slice of the gradient of the input from where it was summed up."""
    grid, job, _, _, slices, _, sums = work
    area = grid.height * grid.width
    view = image_of(work, image, s)
    at = view.start + first * view.pitch
    to = (image * job.groups * job.in_channels + slices.first[s]) * area + first
    count = last - first
    transpose(sums.target, at, view.pitch, count, view.channels, sums.grad_input, to, area)


@inlined
def find_tile(work, weight, narrow, points, place, s, columns, tile):
    """Locate points; fill the columns and the tile of grad_output."""
    if narrow is None:
        _find_columns(work, weight, points, place, s, columns, tile)
    else:
        find_samples(work, points, place, s, columns, tile)


@inlined
def count_parts(work, narrow, s):
    """Into how many parts the gradient of the weights of a slice can be cut."""
    return _count_blocks(work, s) if narrow is None else count_rows(work, s)


@inlined
def add_tile(work, weight, narrow, place, s, columns, tile, first, last):
    """Add what sampled values say to parts `first` to `last` of the gradient of the weight, and
    with the first one to that of the bias.
    """
    if narrow is not None:
        add_samples(work, place, s, columns, tile, first, last)
    elif weight is not None:
        _add_columns(work, place, s, columns, tile, first, last)


@inlined
def _find_columns(work, weight, points, place, s, columns, tile):
    grid, job, wanted, _, slices, given, _ = work
    first, channels = slices.first[s], slices.first[s + 1] - slices.first[s]
    width, block = job.out_pitch, block_columns(tile)
    if weight is not None:
        o0 = slices.weight_group[s] * job.out_channels
        read_tile(grid, job, given.grad_output, place, o0, job.out_channels, tile, width)
    else:
        read_tile(grid, job, given.grad_output, place, first, channels, columns, job.pitch)
    if not (wanted.input or wanted.points or wanted.weight):
        return
    locate(grid, given.offset, given.mask, place, slices.offset_group[s], points)
    if weight is not None and (wanted.input or wanted.points):
        multiply(
            tile,
            (0, width, 1),
            given.packed,
            (s * job.out_channels * job.pitch, block, job.out_channels * block),
            columns,
            (0, job.pitch),
            (place[2], columns_of(tile, job.taps * channels), job.out_channels),
            True,
        )


@inlined
def _count_blocks(work, s):
    _, job, _, _, slices, _, sums = work
    depth = job.taps * (slices.first[s + 1] - slices.first[s])
    rows = rows_of(sums.weight, depth) // block_rows(sums.weight)
    return rows * (columns_of(sums.weight, job.out_channels) // block_columns(sums.weight))


@inlined
def _add_columns(work, place, s, columns, tile, first, last):
    _, job, wanted, part, slices, _, sums = work
    image, pixel, count = place
    block, high, width = block_columns(tile), block_rows(tile), job.out_pitch
    group = slices.weight_group[s]
    if wanted.bias and first == 0 and slices.first[s] == group * job.in_channels:
        at = ((image - part.first_image) * job.groups + group) * job.out_channels
        add_rows(tile, width, count, job.out_channels, bare(sums.bias, at))
    if not wanted.weight:
        return
    depth = job.taps * (slices.first[s + 1] - slices.first[s])
    down = rows_of(tile, depth) // high
    start = ((image - part.first_image) * job.slices + s) * rows_of(tile, job.widest) * width
    b = first
    while b < last:  # blocks of one panel
        panel, row = b // down, b % down
        end = min(down, row + last - b)
        multiply(
            columns,
            (row * high, 1, job.pitch),
            tile,
            (panel * block, width, block),
            sums.weight,
            (start + row * high * width + panel * block, width),
            (min(end * high, depth) - row * high, block, count),
            part.images == part.all_images and pixel == 0,
        )
        b += end - row


@kernel
def slice_gradients(
    numbers, weight, narrow, arrays, at_once, apart, blocks, tasks, pixels, collected
):  # fmt: skip
    """Pack blocks of the weight, compute tasks of a part, each a slice of an image, and add up
    pixels of the gradients of offset and mask, and blocks of that of the weight.
    """
    work = work_of(numbers, weight, narrow, arrays)
    job, slices, sums = work.job, work.slices, work.sums
    if narrow is None and weight is not None:
        pack_rows(job, slices, bare(weight, 0), work.given.packed, blocks)
    if tasks[0] < tasks[1]:
        _each_slice(work, weight, narrow, at_once, apart, tasks)
    collect_points(work, pixels)
    if narrow is None and weight is not None:
        collect_weight(job, slices, sums.weight, work.part.most, sums.grad_weight, collected)


@inlined
def _each_slice(work, weight, narrow, at_once, apart, tasks):
    grid, job, wanted, part, _, given, _ = work
    like = given.input
    points = point_memory(like, job.taps)
    room = cleared(job.tile * (job.pitch + job.out_pitch), like.dtype)
    columns, tile = bare(room, 0), bare(room, job.tile * job.pitch)
    slices_here, area = part.end - part.begin, grid.height * grid.width
    for task in range(tasks[0], tasks[1]):
        image = part.first_image + task // slices_here
        s = part.begin + task % slices_here
        view = image_of(work, image, s)
        if part.first_pixel == 0:
            begin_slice(work, image, s, 0, area)
        for pixel in range(part.first_pixel, part.last_pixel, job.tile):
            place = image, pixel, min(job.tile, part.last_pixel - pixel)
            find_tile(work, weight, narrow, points, place, s, columns, tile)
            use_samples(work, at_once, apart, points, view, place, s, columns)
            count = count_parts(work, narrow, s)
            add_tile(work, weight, narrow, place, s, columns, tile, 0, count)
        if wanted.input and not job.channels_last and part.last_pixel == grid.pixels:
            end_slice(work, image, s, 0, area)
    give_back(room)
    return_points(points)
