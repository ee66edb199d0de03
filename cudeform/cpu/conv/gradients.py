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
    cut,
    gradient_blocking,
    gradient_slice,
    is_narrow,
    job_of,
    numbers_with,
    weight_blocks,
    weight_sums,
)
from cudeform.cpu.conv.narrow import bias_of_rows, weight_of_rows, weight_rows
from cudeform.cpu.conv.steps import NO_STEP, Steps, do, steps_of
from cudeform.cpu.conv.stretches import add_stretches
from cudeform.cpu.conv.sums import Part, Room, Wanted
from cudeform.cpu.conv.tiles import slice_gradients
from cudeform.cpu.language.dtypes import sum_first
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.simd import VECTOR_BYTES
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import aligned
from cudeform.cpu.sampler import grid_of
from cudeform.plans.convolution import ConvPlan

__all__ = ["gradients", "workspace_bytes"]

_ROOM = 52 << 20  # bytes of a call, but for a tile for each thread
_LARGE = 2**26  # multiplications: a stretch takes several passes
_LINE = 16  # elements: where they begin, vectors do not lie across lines of the cache
_RESULTS = ("input", "offset", "mask", "weight")


class _Prepared(NamedTuple):
    """What follows from a plan and what is needed alone."""

    job: Job
    wanted: Wanted
    images: int  # at a time
    # With the numbers that kernels read, and their steps: those after stretches are apart
    parts: list[tuple[Part, np.ndarray, list[Steps]]]
    room: int  # elements
    of_weight: slice  # of it, the sums of the weight
    bias: int  # elements of its sums
    ways: tuple[int | None, int | None]  # as `use_samples` takes them
    size: int  # multiplications
    spare: int  # bytes that are left of those of a call


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
    dtype, count = input.dtype, threads.get_num_threads()
    asked = plan, dtype.itemsize, weight is not None, needs, times_mask, copies, count
    job, wanted, images, parts, room, own, biases, ways, size, spare = _prepared(*asked)
    like = {"input": input, "offset": offset, "mask": mask, "weight": weight}
    result = {n: np.empty(like[n].shape, dtype) for n in needs & like.keys()}
    scratch, bias = aligned(room, dtype), np.zeros(biases, dtype)
    of_weight = scratch[own]
    if job.narrow or images < plan.points.batch:  # gradients are added to sums
        of_weight[:] = 0
    flat = [frozen(array, input) for array in (grad_output, input, offset, mask)]
    found = [result[n].reshape(-1) if n in result else scratch for n in _RESULTS]
    arrays, narrow = (*flat, scratch, bias, *found), job.narrow or None
    if narrow:
        weight = weight_rows(plan, weight)
    if weight is not None:
        weight = frozen(weight, input)
    for part, numbers, steps in parts:
        given = numbers, weight, narrow, arrays
        for i, some in enumerate(steps):
            if i:
                add_stretches(plan.points, job, part, wanted, given, size, spare)
            do(partial(slice_gradients, *given, *ways), some)
    if wanted.weight and narrow:
        weight_of_rows(plan, of_weight, result["weight"])
    if wanted.bias and narrow:
        result["bias"] = bias_of_rows(plan, bias)
    elif wanted.bias:
        result["bias"] = bias if images == 1 else sum_first(bias.reshape(images, -1))
    return result


@remembered
def _prepared(
    plan: ConvPlan, itemsize: int, dense: bool, needs: frozenset[str], times_mask: bool,
    copies: int, count: int,
) -> _Prepared:  # fmt: skip
    """For `count` threads, whose number does not change a bit."""
    points = plan.points
    slices, job, wanted, blocking, sizes, bias = _sizes(plan, itemsize, dense, needs, times_mask)
    size = 2 * points.batch * points.pixels * points.taps * points.channels
    size *= 4 + (job.out_channels // PRODUCTS if dense else 0)
    starts, room = [], 0
    for elements in sizes:
        starts.append(room)
        room += -(-elements // _LINE) * _LINE
    starts, grid = Room(*starts), grid_of(points, plan.deformable, plan.modulated)
    weights = points.channels * plan.out_channels // plan.groups * points.taps
    blocks = weight_blocks(job, slices, itemsize) if dense and not job.narrow else 0
    packing = blocks if sizes.packed else 0, 2 * weights
    collecting = blocks if wanted.weight else 0, 2 * blocking.images * weights
    cut_up = list(_parts(plan, blocking))
    parts = []
    for i, part in enumerate(cut_up):
        tasks = part.images * (part.end - part.begin)
        pixels = part.images * (part.last_pixel - part.first_pixel) if wanted.points else 0
        last = collecting if i == len(cut_up) - 1 else NO_STEP
        ends = (pixels, 12 * pixels * job.taps * (part.end - part.begin)), last
        if size >= _LARGE and threads.too_few(tasks):
            steps = [_steps(count, packing, NO_STEP, NO_STEP, NO_STEP)]
            steps += [_steps(count, NO_STEP, NO_STEP, *ends)]
        else:
            steps = [_steps(count, packing, (tasks, size), *ends)]
        parts.append((part, numbers_with(slices, grid, job, part, wanted, starts), steps))
        packing = NO_STEP
    spare = max(_ROOM - copies - (sum(sizes) - sizes.packed) * itemsize, 0)
    whole = np.diff(slices.first) % (VECTOR_BYTES // itemsize) == 0
    at_once = wanted.input and wanted.points and wanted.weight and whole.any()
    ways = 1 if at_once else None, None if at_once and whole.all() else 1
    own = slice(starts.weight, starts.weight + sizes.weight)
    return _Prepared(job, wanted, blocking.images, parts, room, own, bias, ways, size, spare)


def _steps(count: int, *steps: tuple[int, float]) -> Steps:
    """One after the other."""
    return steps_of(count, *((step,) for step in steps))


@remembered
def workspace_bytes(plan: ConvPlan, dtype: np.dtype, dense: bool, needs: frozenset[str]) -> int:
    """What `gradients` takes besides what it is given and returns."""
    *_, sizes, bias = _sizes(plan, dtype.itemsize, dense, needs, True)
    return (sum(sizes) + bias) * dtype.itemsize


def _sizes(
    plan: ConvPlan, itemsize: int, dense: bool, needs: frozenset[str], times_mask: bool
) -> tuple[Slices, Job, Wanted, Blocking, Room, int]:
    """How the work is cut up; elements of what is kept meanwhile, and of the sums of the bias."""
    points, narrow = plan.points, is_narrow(plan, backward=True)
    slices = cut(plan, gradient_slice(plan), narrow)
    job = job_of(plan, slices, itemsize, narrow)
    wanted = Wanted(*(int(bool(needs & names)) for names in _WANTED), int(times_mask))
    blocking = gradient_blocking(plan, job, slices, itemsize)
    images, cuts, pixels = blocking
    widest = max(int(slices.first[e] - slices.first[b]) for b, e in cuts)
    staged = 0 if points.channels_last else images * widest * points.height * points.width
    most = max(e - b for b, e in cuts)
    packs = dense and not narrow and (wanted.input or wanted.points)
    room = Room(
        packed=job.out_channels * job.pitch * job.slices if packs else 0,
        source=staged if wanted.points or wanted.weight else 0,
        target=staged if wanted.input else 0,
        weight=images * weight_sums(job, slices) if wanted.weight else 0,
        points=images * most * pixels * 3 * job.taps if wanted.points else 0,
    )
    bias = job.out_channels * points.channels if narrow else plan.out_channels
    return slices, job, wanted, blocking, room, images * bias if wanted.bias else 0


_WANTED = {"input"}, {"offset", "mask"}, {"weight"}, {"bias"}, {"offset"}, {"mask"}


def _parts(plan: ConvPlan, blocking: Blocking) -> Iterator[Part]:
    points = plan.points
    images, cuts, pixels = blocking
    for image in range(0, points.batch, images):
        for begin, end in cuts:
            for pixel in range(0, points.pixels, pixels):
                last = min(pixel + pixels, points.pixels)
                count = min(images, points.batch - image)
                yield Part(image, count, images, begin, end, pixel, last, points.batch)
