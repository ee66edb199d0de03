"""The gradients of a convolution: a task takes one slice of the channels through one image.

It owns that slice of the gradients of input and weight, so nothing is locked and every sum has one
order. What slices share, the gradients of offset and mask, they leave side by side in
`Sums.points`, to be added up afterwards, slice by slice; so do images with the gradient of the
weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.blocking import (
    PRODUCTS,
    Blocking,
    Job,
    Slices,
    collect_weight,
    cut,
    gradient_blocking,
    gradient_slice,
    is_narrow,
    job_of,
    packed_rows,
    weight_sums,
)
from cudeform.cpu.conv.narrow import bias_of_rows, tile_gradients, weight_of_rows, weight_rows
from cudeform.cpu.conv.sums import (
    Given,
    Part,
    Sums,
    Wanted,
    Work,
    collect_points,
    use_samples,
)
from cudeform.cpu.language.compiler import inlined, kernel, records
from cudeform.cpu.language.matmul import columns_of, multiply, rows_of
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.scratch import zeroed
from cudeform.cpu.language.simd import block_columns
from cudeform.cpu.language.transpose import copy_plain, frozen, transpose
from cudeform.cpu.language.workspace import aligned, numbers_of
from cudeform.cpu.sampler import Grid, Image, grid_of, locate, point_arrays
from cudeform.plans.convolution import ConvPlan

__all__ = ["gradients", "workspace_bytes"]


def gradients(
    plan: ConvPlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    offset: np.ndarray | None,
    weight: np.ndarray | None,
    mask: np.ndarray | None,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`; all arrays are of one dtype, float32 or float64."""
    like = {"input": input, "offset": offset, "mask": mask, "weight": weight}
    result = {n: np.empty(like[n].shape, input.dtype) for n in needs & like.keys()}
    if "bias" in needs:
        result["bias"] = np.empty(plan.out_channels, input.dtype)
    if plan.points.batch == 0:
        for gradient in result.values():
            gradient[...] = 0
        return result
    wanted = Wanted(*(int(bool(needs & names)) for names in _WANTED))
    prepared = _prepared(plan, input.itemsize, weight is not None, wanted)
    slices, job, blocking, parts, _, sizes = prepared
    numbers = parts[0][0][1]
    sums = _allocate(sizes, input.dtype)
    packed = None
    if job.narrow:
        packed = weight_rows(plan, weight)
    elif job.dense and (wanted.input or wanted.points):
        packed = packed_rows(job, numbers, slices, weight)
    packed = frozen(packed, input)
    for first in range(0, plan.points.batch, blocking.images):
        images = slice(first, min(first + blocking.images, plan.points.batch))
        arrays = [_of(images, array, input) for array in (grad_output, input, offset, mask)]
        found = {name: result[name][images] for name in result.keys() & {*_OF_IMAGES}}
        here = parts[images.stop - first < blocking.images]
        _add_images(prepared, wanted, here, (*arrays, packed), sums, found)
    if wanted.weight and job.narrow:
        weight_of_rows(plan, sums.weight, result["weight"])
    elif wanted.weight:
        flat = result["weight"].reshape(-1)
        task = partial(collect_weight, numbers, slices, sums.weight, blocking.images, flat)
        threads.share(task, len(slices.weight_group), 2 * blocking.images * flat.size)
    if wanted.bias and job.narrow:
        result["bias"][...] = bias_of_rows(plan, sums.bias)
    elif wanted.bias:
        np.add.reduce(sums.bias.reshape(blocking.images, -1), 0, out=result["bias"])
    return result


def _of(images: slice, array: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """Some images of an array, flat; copied only if it is not contiguous."""
    return frozen(None if array is None else array[images], like)


def _add_images(
    prepared: _Prepared,
    wanted: Wanted,
    parts: list[tuple[Part, np.ndarray]],
    given: tuple[np.ndarray, ...],
    sums: Sums,
    found: dict[str, np.ndarray],
) -> None:
    """Add what a few images add to the sums over all of them, and fill the gradients of these."""
    grad_output, input, offset, mask, packed = given
    slices, job, size = prepared.slices, prepared.job, prepared.size
    nothing = sums.bias[:0]
    grads = [found[n].reshape(-1) if n in found else nothing for n in _OF_IMAGES]
    source = input if job.channels_last else sums.source
    given = Given(grad_output, input, source, offset, mask, packed)
    target = grads[0] if job.channels_last else sums.target
    sums = sums._replace(grad_input=grads[0], target=target)
    kernel_of_slices = _narrow_gradients if job.narrow else _slice_gradients
    for part, numbers in parts:
        tasks = part.images * (part.end - part.begin)
        threads.share(partial(kernel_of_slices, numbers, slices, given, sums), tasks, size)
        if wanted.points:
            task = partial(collect_points, numbers, slices, sums.points, *grads[1:])
            pixels = part.images * (part.last_pixel - part.first_pixel)
            threads.share(task, pixels, 12 * pixels * job.taps * (part.end - part.begin))


class _Prepared(NamedTuple):
    """What follows from a plan and what is wanted alone."""

    slices: Slices
    job: Job
    blocking: Blocking
    # Of as many images as are worked on at a time, and of the last ones, which may be fewer; with
    # the numbers that kernels read
    parts: tuple[list[tuple[Part, np.ndarray]], ...]
    size: int  # multiplications
    sizes: Sums  # elements of its arrays that are no results


@remembered
def _prepared(plan: ConvPlan, itemsize: int, dense: bool, wanted: Wanted) -> _Prepared:
    points = plan.points
    narrow = is_narrow(plan, backward=True)
    slices = cut(plan, gradient_slice(plan), narrow)
    job = job_of(plan, slices, itemsize, dense, narrow)
    grid = grid_of(points, plan.deformable, plan.modulated)
    blocking = gradient_blocking(plan, job, slices, itemsize)
    parts = tuple(
        [(part, numbers_of(grid, job, part, wanted)) for part in parts]
        for images in (blocking.images, points.batch % blocking.images)
        for parts in [_parts(plan, blocking, images)]
    )
    size = 2 * points.batch * points.pixels * points.taps * points.channels
    size *= 4 + (job.out_channels // PRODUCTS if dense else 0)
    sizes = _sizes(plan, slices, job, blocking, wanted)
    return _Prepared(slices, job, blocking, parts, size, sizes)


_WANTED = ({"input"}, {"offset", "mask"}, {"weight"}, {"bias"})
_OF_IMAGES = ("input", "offset", "mask")


@remembered
def workspace_bytes(plan: ConvPlan, dtype: np.dtype, dense: bool, needs: frozenset[str]) -> int:
    """What `gradients` takes besides what it is given and returns."""
    wanted = Wanted(*(int(bool(needs & names)) for names in _WANTED))
    prepared = _prepared(plan, dtype.itemsize, dense, wanted)
    packed = prepared.job.out_channels * prepared.job.pitch * len(prepared.slices.weight_group)
    return (sum(prepared.sizes) + (packed if dense else 0)) * dtype.itemsize


def _sizes(plan: ConvPlan, slices: Slices, job: Job, blocking: Blocking, wanted: Wanted) -> Sums:
    images, cuts, pixels = blocking
    points = plan.points
    widest = max(int(slices.first[e] - slices.first[b]) for b, e in cuts)
    staged = 0 if points.channels_last else images * widest * points.height * points.width
    bias = job.out_channels * points.channels if job.narrow else plan.out_channels
    most = max(e - b for b, e in cuts)
    return Sums(
        source=staged if wanted.points or wanted.weight else 0,
        target=staged if wanted.input else 0,
        grad_input=0,
        weight=images * weight_sums(job, slices) if wanted.weight else 0,
        bias=images * bias if wanted.bias else 0,
        points=images * most * pixels * 3 * job.taps if wanted.points else 0,
    )


def _allocate(sizes: Sums, dtype: np.dtype) -> Sums:
    sums = Sums(*(aligned(size, dtype) for size in sizes))
    sums.weight[:] = sums.bias[:] = 0
    return sums


def _parts(plan: ConvPlan, blocking: Blocking, images: int) -> Iterator[Part]:
    points = plan.points
    for begin, end in blocking.cuts if images else ():
        for pixel in range(0, points.pixels, blocking.pixels):
            last = min(pixel + blocking.pixels, points.pixels)
            yield Part(images, begin, end, pixel, last)


@inlined
def _image_of(grid, job, part, slices, image, s):
    """Where a slice of an image lies in `Given.source` and `Sums.target`."""
    area = grid.height * grid.width
    channels = slices.first[s + 1] - slices.first[s]
    if job.channels_last:
        pitch = job.groups * job.in_channels
        start = image * area * pitch + slices.first[s]
        return Image(start, pitch, grid.width * pitch, channels)
    at = image * (slices.first[part.end] - slices.first[part.begin])
    start = (at + slices.first[s] - slices.first[part.begin]) * area
    return Image(start, channels, grid.width * channels, channels)


@inlined
def _begin_slice(work, image, s):
    """Lay a slice of the input out with its channels last; set its gradient to zero."""
    grid, job, wanted, part, slices, given, sums = work
    area = grid.height * grid.width
    view = _image_of(grid, job, part, slices, image, s)
    if not job.channels_last and (wanted.points or wanted.weight):
        channels = job.groups * job.in_channels
        start = (image * channels + slices.first[s]) * area
        transpose(
            given.input, start, area, view.channels, area, sums.source, view.start, view.pitch
        )
    if wanted.input:
        for p in range(area):
            at = view.start + p * view.pitch
            sums.target[at : at + view.channels] = 0


@inlined
def _end_slice(work, image, s):
    """Copy a slice of the gradient of the input from where it was summed up."""
    grid, job, _, part, slices, _, sums = work
    area = grid.height * grid.width
    view = _image_of(grid, job, part, slices, image, s)
    channels = job.groups * job.in_channels
    to = (image * channels + slices.first[s]) * area
    transpose(sums.target, view.start, view.pitch, area, view.channels, sums.grad_input, to, area)


@inlined
def _output_tile(grid, job, given, place, first, channels, tile, pitch):
    """A tile of grad_output, of the channels from `first` on, with the channels last."""
    image, pixel, count = place
    all_channels = job.groups * job.out_channels
    if job.channels_last:
        for p in range(count):
            start = (image * grid.pixels + pixel + p) * all_channels + first
            copy_plain(given.grad_output, start, tile, p * pitch, channels)
    else:
        start = (image * all_channels + first) * grid.pixels + pixel
        transpose(given.grad_output, start, grid.pixels, channels, count, tile, 0, pitch)


_read = records(Grid, Job, Part, Wanted)


@kernel
def _slice_gradients(numbers, slices, given, sums, first, last):
    """Tasks `first` to `last` of a part, each a slice of an image."""
    _each_slice(numbers, slices, given, sums, first, last, _tile_gradients)


@kernel
def _narrow_gradients(numbers, slices, given, sums, first, last):
    """As `_slice_gradients`, where groups are narrow."""
    _each_slice(numbers, slices, given, sums, first, last, tile_gradients)


@inlined
def _each_slice(numbers, slices, given, sums, first, last, add_tile):
    grid, job, part, wanted = _read(numbers)
    work = Work(grid, job, wanted, part, slices, given, sums)
    like = given.input
    points = point_arrays(like, job.taps)
    columns = zeroed(job.tile * job.pitch, like.dtype)
    tile = zeroed(job.tile * job.out_pitch, like.dtype)
    count = part.end - part.begin
    for task in range(first, last):
        image = task // count
        s = part.begin + task - image * count
        if part.first_pixel == 0:
            _begin_slice(work, image, s)
        view = _image_of(grid, job, part, slices, image, s)
        for pixel in range(part.first_pixel, part.last_pixel, job.tile):
            add_tile(work, (points, columns, tile), view, image, s, pixel)
        if wanted.input and not job.channels_last and part.last_pixel == grid.pixels:
            _end_slice(work, image, s)


@inlined
def _tile_gradients(work, scratch, view, image, s, pixel):
    """What a tile of pixels adds to the gradients of a slice of an image, which is at `view`."""
    grid, job, wanted, part, slices, given, sums = work
    points, columns, tile = scratch
    count = min(job.tile, part.last_pixel - pixel)
    place, first, group = (image, pixel, count), slices.first[s], slices.weight_group[s]
    if job.dense:
        o0 = group * job.out_channels
        _output_tile(grid, job, given, place, o0, job.out_channels, tile, job.out_pitch)
    else:
        _output_tile(grid, job, given, place, first, view.channels, columns, job.pitch)
    if wanted.bias and first == group * job.in_channels:
        at = (image * job.groups + group) * job.out_channels
        _add_rows(tile, job.out_pitch, count, job.out_channels, sums.bias, at)
    if not (wanted.input or wanted.points or wanted.weight):
        return
    locate(grid, given.offset, given.mask, place, slices.offset_group[s], points)
    depth, block = job.taps * view.channels, block_columns(tile)
    if job.dense and (wanted.input or wanted.points):
        start = s * job.out_channels * job.pitch
        multiply(
            tile,
            (0, job.out_pitch, 1),
            given.packed,
            (start, block, job.out_channels * block),
            columns,
            (0, job.pitch),
            (count, columns_of(tile, depth), job.out_channels),
            True,
        )
    use_samples(work, points, view, place, s, columns)
    if wanted.weight:
        at = image * len(slices.weight_group) + s
        multiply(
            columns,
            (0, 1, job.pitch),
            tile,
            (0, job.out_pitch, block),
            sums.weight,
            (at * rows_of(tile, job.widest) * job.out_pitch, job.out_pitch),
            (depth, columns_of(tile, job.out_channels), count),
            False,
        )


@inlined
def _add_rows(tile, pitch, count, channels, target, at):
    """Add the sum over a tile's pixels: summing tile by tile keeps the rounding error small."""
    subtotal = zeroed(channels, tile.dtype)
    for p in range(count):
        row = tile[p * pitch :]
        for c in range(channels):
            subtotal[c] += row[c]
    for c in range(channels):
        target[at + c] += subtotal[c]
