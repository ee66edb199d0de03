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
    weight_blocks,
    weight_sums,
)
from cudeform.cpu.conv.narrow import bias_of_rows, weight_of_rows, weight_rows
from cudeform.cpu.conv.stretches import add_stretches
from cudeform.cpu.conv.sums import Given, Part, Sums, Wanted, collect_points
from cudeform.cpu.conv.tiles import narrow_gradients, slice_gradients
from cudeform.cpu.language.dtypes import sum_first
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import aligned, numbers_of
from cudeform.cpu.sampler import Grid, grid_of
from cudeform.plans.convolution import ConvPlan

__all__ = ["gradients", "workspace_bytes"]

_ROOM = 52 << 20  # bytes of a call, but for a tile for each thread
_LARGE = 2**26  # multiplications: a stretch takes several passes


def gradients(
    plan: ConvPlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    offset: np.ndarray | None,
    weight: np.ndarray | None,
    mask: np.ndarray | None,
    needs: frozenset[str],
    copies: int = 0,
    times_mask: bool = True,
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`; all arrays are of one dtype, float32 or float64.

    The caller keeps so many bytes of copies meanwhile. It may multiply the gradient of the offset
    by the mask itself.
    """
    like = {"input": input, "offset": offset, "mask": mask, "weight": weight}
    result = {n: np.empty(like[n].shape, input.dtype) for n in needs & like.keys()}
    if "bias" in needs:
        result["bias"] = np.empty(plan.out_channels, input.dtype)
    if plan.points.batch == 0:
        for gradient in result.values():
            gradient[...] = 0
        return result
    wanted = Wanted(*(int(bool(needs & names)) for names in _WANTED))
    prepared = _prepared(plan, input.itemsize, weight is not None, wanted, copies)
    slices, _, job, blocking, parts, _, sizes, _ = prepared
    numbers = parts[0][0][1]
    added = job.narrow or blocking.images < plan.points.batch
    sums = _allocate(sizes, added, input.dtype)
    packed = None
    if job.narrow:
        packed = weight_rows(plan, weight)
    elif job.dense and (wanted.input or wanted.points):
        packed = packed_rows(job, numbers, slices, weight)
    packed = frozen(packed, input)
    given = grad_output, input, offset, mask
    for first in range(0, plan.points.batch, blocking.images):
        last = min(first + blocking.images, plan.points.batch)
        arrays, found = given, {name: result[name] for name in _OF_IMAGES if name in result}
        if last - first < plan.points.batch:
            images = slice(first, last)
            arrays = [None if array is None else array[images] for array in given]
            found = {name: gradient[images] for name, gradient in found.items()}
        flat = [frozen(array, input) for array in arrays]  # copied only if it is not contiguous
        here = parts[last - first < blocking.images]
        factor = flat[3] if times_mask else packed[:0]
        _add_images(prepared, wanted, here, (*flat, packed), factor, sums, found)
    if wanted.weight and job.narrow:
        weight_of_rows(plan, sums.weight, result["weight"])
    elif wanted.weight:
        flat = result["weight"].reshape(-1)
        task = partial(collect_weight, numbers, slices, sums.weight, blocking.images, flat)
        blocks = weight_blocks(job, slices, flat.itemsize)
        threads.share(task, blocks, 2 * blocking.images * flat.size)
    if wanted.bias and job.narrow:
        result["bias"][...] = bias_of_rows(plan, sums.bias)
    elif wanted.bias:
        sum_first(sums.bias.reshape(blocking.images, -1), result["bias"])
    return result


def _add_images(
    prepared: _Prepared,
    wanted: Wanted,
    parts: list[tuple[Part, np.ndarray]],
    given: tuple[np.ndarray, ...],
    factor: np.ndarray,
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
    kernel_of_slices = narrow_gradients if job.narrow else slice_gradients
    for part, numbers in parts:
        tasks = part.images * (part.end - part.begin)
        if size >= _LARGE and threads.too_few(tasks):
            arrays = slices, given, sums
            add_stretches(prepared.grid, job, part, wanted, arrays, size, prepared.spare)
        else:
            threads.share(partial(kernel_of_slices, numbers, slices, given, sums), tasks, size)
        if wanted.points:
            task = partial(collect_points, numbers, slices, sums.points, factor, *grads[1:])
            pixels = part.images * (part.last_pixel - part.first_pixel)
            threads.share(task, pixels, 12 * pixels * job.taps * (part.end - part.begin))


class _Prepared(NamedTuple):
    """What follows from a plan and what is wanted alone."""

    slices: Slices
    grid: Grid
    job: Job
    blocking: Blocking
    # Of as many images as are worked on at a time, and of the last ones, which may be fewer; with
    # the numbers that kernels read
    parts: tuple[list[tuple[Part, np.ndarray]], ...]
    size: int  # multiplications
    sizes: Sums  # elements of its arrays that are no results
    spare: int  # bytes that are left of those of a call


@remembered
def _prepared(plan: ConvPlan, itemsize: int, dense: bool, wanted: Wanted, copies: int) -> _Prepared:
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
    spare = max(_ROOM - copies - sum(sizes) * itemsize, 0)
    return _Prepared(slices, grid, job, blocking, parts, size, sizes, spare)


_WANTED = ({"input"}, {"offset", "mask"}, {"weight"}, {"bias"})
_OF_IMAGES = ("input", "offset", "mask")


@remembered
def workspace_bytes(plan: ConvPlan, dtype: np.dtype, dense: bool, needs: frozenset[str]) -> int:
    """What `gradients` takes besides what it is given and returns."""
    wanted = Wanted(*(int(bool(needs & names)) for names in _WANTED))
    prepared = _prepared(plan, dtype.itemsize, dense, wanted, 0)
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


def _allocate(sizes: Sums, added: bool, dtype: np.dtype) -> Sums:
    """With zeros where gradients are `added` to sums, and do not begin them."""
    sums = Sums(*(aligned(size, dtype) for size in sizes))
    sums.bias[:] = 0
    if added:
        sums.weight[:] = 0
    return sums


def _parts(plan: ConvPlan, blocking: Blocking, images: int) -> Iterator[Part]:
    points = plan.points
    for begin, end in blocking.cuts if images else ():
        for pixel in range(0, points.pixels, blocking.pixels):
            last = min(pixel + blocking.pixels, points.pixels)
            yield Part(images, begin, end, pixel, last, int(images == points.batch))
