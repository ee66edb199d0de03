"""Attention to points of several levels: a head of an image at a time, a block of its queries.

The values of a head lie apart in memory, among those of the others. Where they are read often they
are first copied side by side, so that they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language.compiler import inlined, kernel, record
from cudeform.cpu.language.halves import element, put, words
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.rows import (
    join_pairs,
    read_rows,
    softmax_rows,
    split_pairs,
    write_rows,
)
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import SCRATCH_BYTES, numbers_of
from cudeform.cpu.located import (
    HEIGHT,
    PLANE,
    SHARE,
    START,
    WIDTH,
    Rows,
    View,
    X,
    Y,
    block_arrays,
    dot_points,
    locate_nearest,
    locate_points,
    slopes,
    spread_points,
    sum_points,
)
from cudeform.plans.attention import AttentionPlan

__all__ = ["backward", "forward"]

_TASKS = 4  # for each thread
_FEW = 16  # queries that are not worth a task of their own
_RANGE_BYTES = 4 << 20  # of the sums of a range of pixels, which a thread has at a time
_MOST_RANGES = 8  # each locates all points anew


class _Job(NamedTuple):
    """What kernels need to know of a plan, and of the part of it that they are called for."""

    values: int
    heads: int
    channels: int
    queries: int
    samples: int
    rows: int  # of a block
    nearest: int
    softmax: int
    first: int  # slice of the part: a slice is a head of an image
    pieces: int  # of the queries of a slice, or of its pixels
    image: int  # from one image to the next in the values
    head: int
    pixel: int


_read_job = record(_Job)


class _Part(NamedTuple):
    """Slices that are worked on together."""

    first: int
    last: int
    packed: bool


def _job(plan: AttentionPlan, part: _Part, pieces: int) -> np.ndarray:
    each = plan.values * plan.channels
    pixel = plan.heads * plan.channels
    strides = each * plan.heads, plan.channels, pixel
    return numbers_of(
        _Job(
            plan.values,
            plan.heads,
            plan.channels,
            plan.queries,
            plan.samples,
            max(min(PLANE // plan.samples, plan.queries), 1),
            int(plan.method == "nearest"),
            int(plan.softmax),
            part.first,
            pieces,
            *((each * plan.heads, each, plan.channels) if part.packed else strides),
        )
    )


@remembered
def _levels(plan: AttentionPlan) -> np.ndarray:
    """Height, width and first value of the level of each point, one after the other."""
    rows = [(*size, start) for size, start in zip(plan.shapes, plan.starts, strict=True)]
    return np.repeat(np.array(rows, np.int32), plan.points, 0).T.ravel()


def _parts(plan: AttentionPlan, value: np.ndarray) -> Iterator[_Part]:
    """All slices, so many at a time that copies of them are small."""
    slices = plan.batch * plan.heads
    size = plan.values * plan.channels * sum_dtype(value.dtype).itemsize
    often = plan.queries * plan.samples >= plan.values
    if size > SCRATCH_BYTES or not often:
        yield _Part(0, slices, False)
        return
    most = max(min(SCRATCH_BYTES // size, threads.get_num_threads()), 1)
    for first in range(0, slices, most):
        yield _Part(first, min(first + most, slices), True)


def _source(plan: AttentionPlan, part: _Part, value: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The values as kernels take them."""
    flat = frozen(words(value), value)
    if not part.packed:
        return flat
    pieces = _pieces(part, plan.values)
    slices = part.last - part.first
    target = np.empty(slices * plan.values * plan.channels, like.dtype)
    job = _job(plan, part._replace(packed=False), pieces)
    threads.share(partial(_pack, job, flat, target), slices * pieces, target.size)
    return frozen(target, target)


def _pieces(part: _Part, count: int) -> int:
    """How many pieces to cut each slice of a part into, of `count` queries or pixels."""
    tasks = threads.get_num_threads()
    tasks = 1 if tasks == 1 else _TASKS * tasks
    return max(min(-(-tasks // (part.last - part.first)), count // _FEW), 1)


def forward(
    plan: AttentionPlan,
    value: np.ndarray,
    spatial_shapes: None,
    sampling_locations: np.ndarray,
    attention_weights: np.ndarray,
) -> tuple[np.ndarray]:
    """The sums of samples, in the dtype of `value`."""
    output = np.empty(plan.results[0].shape, value.dtype)
    if output.size == 0:
        return (output,)
    like = np.empty(0, sum_dtype(value.dtype))
    points = [frozen(words(a), a) for a in (sampling_locations, attention_weights)]
    target = words(output.reshape(-1))
    for part in _parts(plan, value):
        source = _source(plan, part, value, like)
        pieces = _pieces(part, plan.queries)
        job, tasks = _job(plan, part, pieces), (part.last - part.first) * pieces
        task = partial(_attend, job, _levels(plan), source, *points, like, target)
        threads.share(task, tasks, output.size * plan.samples * 4)
    return (output,)


def backward(
    plan: AttentionPlan,
    grad_output: np.ndarray,
    value: np.ndarray,
    spatial_shapes: None,
    sampling_locations: np.ndarray,
    attention_weights: np.ndarray,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, each in the dtype of its argument."""
    given = {
        "value": value,
        "sampling_locations": sampling_locations,
        "attention_weights": attention_weights,
    }
    if grad_output.size == 0:
        return {name: np.zeros_like(given[name]) for name in needs}
    found = {name: np.empty_like(given[name]) for name in needs}
    like = np.empty(0, sum_dtype(value.dtype))
    work = grad_output.size * plan.samples * 4
    points = [frozen(words(a), a) for a in (sampling_locations, attention_weights, grad_output)]
    if needs - {"value"}:
        targets = [
            words(found[name].reshape(-1) if name in needs else np.empty(0, given[name].dtype))
            for name in ("sampling_locations", "attention_weights")
        ]
        for part in _parts(plan, value):
            source = _source(plan, part, value, like)
            pieces = _pieces(part, plan.queries)
            job, tasks = _job(plan, part, pieces), (part.last - part.first) * pieces
            task = partial(_point_gradients, job, _levels(plan), source, *points, like, *targets)
            threads.share(task, tasks, work)
    if "value" in needs:
        part = _Part(0, plan.batch * plan.heads, False)
        size = plan.values * plan.channels * like.itemsize
        pieces = max(min(_pieces(part, plan.values), _MOST_RANGES), -(-size // _RANGE_BYTES))
        job, tasks = _job(plan, part, pieces), part.last * pieces
        target = words(found["value"].reshape(-1))
        task = partial(_value_gradients, job, _levels(plan), *points, like, target)
        threads.share(task, tasks, work)
    return found


@inlined
def _place(job, task, count):
    """The slice of a task, and the range of `count` queries or pixels."""
    piece = task % job.pieces
    first, last = count * piece // job.pieces, count * (piece + 1) // job.pieces
    return job.first + task // job.pieces, first, last


@kernel
def _pack(numbers, source, target, first_task, last_task):
    """Copy the values of slices side by side."""
    job = _read_job(numbers, 0)
    for task in range(first_task, last_task):
        number, first, last = _place(job, task, job.values)
        start = number // job.heads * job.image + number % job.heads * job.head
        to = (number - job.first) * job.values * job.channels
        places = start + first * job.pixel, job.pixel, to + first * job.channels, job.channels
        read_rows(source, target, places, (last - first, job.channels))


@inlined
def _fill_shares(job, weights, row, count, shares):
    """The factors of the points of so many queries, from row `row` of the weights on."""
    samples = job.samples
    places = row * samples, job.heads * samples, 0, samples
    read_rows(weights, shares, places, (count, samples))
    if job.softmax:
        softmax_rows(shares, count, samples)


@inlined
def _fill_levels(levels, samples, first, rows, block):
    """The levels of the points of a block, from point `first` of each row on."""
    _, whole = block
    for r in range(rows.count):
        at = r * rows.each
        for k in range(rows.each):
            whole[HEIGHT + at + k] = levels[first + k]
            whole[WIDTH + at + k] = levels[samples + first + k]
            whole[START + at + k] = levels[2 * samples + first + k]


@inlined
def _locate(job, locations, row, shares, first, rows, block):
    """The points of a block, from point `first` of each row on."""
    reals, whole = block
    half = reals.dtype.type(0.5 if job.nearest else -0.5)
    samples = job.samples
    places = 2 * (row * samples + first), 2 * job.heads * samples, X, rows.each
    split_pairs(locations, reals, places, rows, Y - X)
    read_rows(shares, reals, (first, samples, SHARE, rows.each), rows)
    count = rows.count * rows.each
    for p in range(count):
        reals[X + p] = reals[X + p] * reals.dtype.type(whole[WIDTH + p]) + half
        reals[Y + p] = reals[Y + p] * reals.dtype.type(whole[HEIGHT + p]) + half
    if job.nearest:
        locate_nearest(block, count)
    else:
        locate_points(block, count)


@kernel
def _attend(numbers, levels, source, locations, weights, like, output, first_task, last_task):
    """The results of queries of slices."""
    job = _read_job(numbers, 0)
    channels, samples = job.channels, job.samples
    block = block_arrays(like)
    shares = np.empty(job.rows * samples, like.dtype)
    sums = np.empty(job.rows * channels, like.dtype)
    for task in range(first_task, last_task):
        number, first, last = _place(job, task, job.queries)
        image, head = number // job.heads, number % job.heads
        start = image * job.image + head * job.head
        if job.pixel == channels:
            start -= job.first * job.head
        view = View(start, job.pixel, channels)
        for q in range(first, last, job.rows):
            count = min(job.rows, last - q)
            row = (image * job.queries + q) * job.heads + head
            sums[: count * channels] = 0
            _fill_shares(job, weights, row, count, shares)
            for k in range(0, samples, PLANE):
                rows = Rows(count, min(PLANE, samples - k))
                if q == first or samples > PLANE:
                    _fill_levels(levels, samples, k, rows, block)
                _locate(job, locations, row, shares, k, rows, block)
                sum_points(block, rows, source, view, sums)
            places = 0, channels, row * channels, job.heads * channels
            write_rows(sums, output, places, (count, channels))


@inlined
def _fill_grads(job, grad_output, row, count, grads):
    """The gradients of the results of so many queries."""
    channels = job.channels
    places = row * channels, job.heads * channels, 0, channels
    read_rows(grad_output, grads, places, (count, channels))


@kernel
def _point_gradients(
    numbers,
    levels,
    source,
    locations,
    weights,
    grad_output,
    like,
    grad_locations,
    grad_weights,
    first_task,
    last_task,
):
    """The gradients of the locations and weights of queries of slices; an empty one is skipped."""
    job = _read_job(numbers, 0)
    channels, samples = job.channels, job.samples
    block = block_arrays(like)
    dots = np.empty(4 * PLANE, like.dtype)
    shares, found = (
        np.empty(job.rows * samples, like.dtype),
        np.empty(job.rows * samples, like.dtype),
    )
    grads = np.empty(job.rows * channels, like.dtype)
    for task in range(first_task, last_task):
        number, first, last = _place(job, task, job.queries)
        image, head = number // job.heads, number % job.heads
        start = image * job.image + head * job.head
        if job.pixel == channels:
            start -= job.first * job.head
        view = View(start, job.pixel, channels)
        for q in range(first, last, job.rows):
            count = min(job.rows, last - q)
            row = (image * job.queries + q) * job.heads + head
            _fill_shares(job, weights, row, count, shares)
            _fill_grads(job, grad_output, row, count, grads)
            for k in range(0, samples, PLANE):
                rows = Rows(count, min(PLANE, samples - k))
                if q == first or samples > PLANE:
                    _fill_levels(levels, samples, k, rows, block)
                _locate(job, locations, row, shares, k, rows, block)
                dot_points(block, rows, source, view, grads, dots)
                _write_locations(job, block, rows, dots, grad_locations, row, k)
                read_rows(dots, found, (0, rows.each, k, samples), rows)
            if len(grad_weights):
                _write_weights(job, count, shares, found, grad_weights, row)


@inlined
def _write_locations(job, block, rows, dots, target, row, first):
    """From the dots of a block to gradients of its locations, and of its shares in their place."""
    _, whole = block
    count = rows.count * rows.each
    if job.nearest:
        dots[PLANE : 3 * PLANE] = 0
    else:
        slopes(block, count, dots)
        for p in range(count):
            dots[PLANE + p] *= dots.dtype.type(whole[WIDTH + p])
            dots[2 * PLANE + p] *= dots.dtype.type(whole[HEIGHT + p])
    if len(target):
        samples = job.samples
        places = PLANE, rows.each, 2 * (row * samples + first), 2 * job.heads * samples
        join_pairs(dots, target, places, rows, PLANE)


@inlined
def _write_weights(job, count, shares, found, target, row):
    """The gradients of the weights of so many queries."""
    samples = job.samples
    if job.softmax:
        for at in range(0, count * samples, samples):
            total = found.dtype.type(0)
            for k in range(at, at + samples):
                total += element(shares, k) * element(found, k)
            for k in range(at, at + samples):
                put(found, k, element(shares, k) * (element(found, k) - total))
    places = 0, samples, row * samples, job.heads * samples
    write_rows(found, target, places, (count, samples))


@kernel
def _value_gradients(
    numbers, levels, locations, weights, grad_output, like, target, first_task, last_task
):
    """The gradients of ranges of pixels of slices."""
    job = _read_job(numbers, 0)
    channels, samples = job.channels, job.samples
    block = block_arrays(like)
    shares = np.empty(job.rows * samples, like.dtype)
    grads = np.empty(job.rows * channels, like.dtype)
    sums = np.empty((job.values // job.pieces + 1) * channels, like.dtype)
    view = View(0, channels, channels)
    for task in range(first_task, last_task):
        number, first, end = _place(job, task, job.values)
        image, head = number // job.heads, number % job.heads
        sums[: (end - first) * channels] = 0
        for q in range(0, job.queries, job.rows):
            count = min(job.rows, job.queries - q)
            row = (image * job.queries + q) * job.heads + head
            _fill_shares(job, weights, row, count, shares)
            _fill_grads(job, grad_output, row, count, grads)
            for k in range(0, samples, PLANE):
                rows = Rows(count, min(PLANE, samples - k))
                if q == 0 or samples > PLANE:
                    _fill_levels(levels, samples, k, rows, block)
                _locate(job, locations, row, shares, k, rows, block)
                spread_points(block, rows, grads, sums, view, (first, end))
        to = ((image * job.values + first) * job.heads + head) * channels
        places = 0, channels, to, job.heads * channels
        write_rows(sums, target, places, (end - first, channels))
