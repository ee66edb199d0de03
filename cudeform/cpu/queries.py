"""Kernels for the heads of queries: a head of an image at a time, a block of its queries."""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import numpy as np

from cudeform.cpu.gathered import CORNERS, gather_corners
from cudeform.cpu.language.bare import bare, give_back, lent, records
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.halves import element, put
from cudeform.cpu.language.rows import (
    join_pairs,
    read_rows,
    softmax_rows,
    split_pairs,
    write_rows,
)
from cudeform.cpu.located import (
    BASE_X,
    BASE_Y,
    PLANE,
    SHARE,
    Rows,
    View,
    X,
    Y,
    block_in,
    block_memory,
    dot_points,
    fill_levels,
    fill_taps,
    locate_beside,
    locate_nearest,
    locate_points,
    numbers_behind,
    return_memory,
    slopes,
    sum_points,
)

_FARTHEST = 2**31 - 1  # from the image, of a base that a plane of integers holds


class Extent(NamedTuple):
    """How many there are, and where in their arrays they lie: steps in elements.

    With an `out_width` queries are pixels of an output, whose bases are at (y, x) multiples of a
    stride from an origin, and locations are offsets from the taps of a kernel there, in pixels.
    Without one, locations are parts of a level.
    """

    pixels: int  # of an image, on all levels
    heads: int
    channels: int  # of a head
    queries: int
    points: int  # of a head of a query
    location_query: int
    location_head: int
    weight_query: int
    weight_head: int
    out_width: int = 0
    stride_y: int = 0
    stride_x: int = 0
    origin_y: int = 0
    origin_x: int = 0


class Strides(NamedTuple):
    """Where values are, and how a part of them is cut up."""

    rows: int  # of a block
    first: int  # slice of the part: a slice is a head of an image
    pieces: int  # of the queries of a slice, or of its pixels
    start: int  # of the values
    image: int  # from one image to the next in them
    head: int
    pixel: int
    channel: int
    gap: int  # behind the last pixel of a row


Job = namedtuple("Job", Extent._fields + Strides._fields)
_read_job = records(Job)
# What is None is no part of what a call compiles: `taps`, the taps of a grid, where points are at
# locations; `nearest`, where one reads four pixels; `softmax`, where factors are as given;
# `gathers`, where channels lie side by side.
# A grid has no number for each tap, of which there may be millions; a block finds its own.


class _Queries(NamedTuple):
    """A head of so many queries, for kernels."""

    first: int  # of the image
    row: int  # the same, of all images
    head: int
    count: int


@inlined
def queries_of(job, image, head, first, last):
    """A block of queries, from the first on."""
    count = min(job.rows, last - first)
    return _Queries(first, image * job.queries + first, head, count)


@inlined
def _place(job, task, count):
    """The slice of a task, and the range of `count` queries or pixels."""
    piece = task % job.pieces
    first, last = count * piece // job.pieces, count * (piece + 1) // job.pieces
    return job.first + task // job.pieces, first, last


@kernel
def pack(numbers, source, target, first_task, last_task):
    """Copy the values of slices side by side."""
    (job,) = _read_job(numbers)
    source, target = bare(source, 0), bare(target, 0)
    for task in range(first_task, last_task):
        number, first, last = _place(job, task, job.pixels)
        start = number // job.heads * job.image + number % job.heads * job.head
        to = (number - job.first) * job.pixels * job.channels
        places = start + first * job.pixel, job.pixel, to + first * job.channels, job.channels
        read_rows(source, target, places, (last - first, job.channels))


@inlined
def _weights(job, queries):
    """Where the weights of queries begin, and the step from one query to the next."""
    return queries.row * job.weight_query + queries.head * job.weight_head, job.weight_query


@inlined
def count_shares(job, softmax):
    """Factors of the points of a block's queries, where these depend on each other."""
    return 0 if softmax is None else job.rows * job.points


@inlined
def fill_shares(job, softmax, weights, queries, shares):
    """The factors of all points of so many queries, where these depend on each other."""
    if softmax is not None:
        points, count = job.points, queries.count
        places = *_weights(job, queries), np.int64(0), points
        read_rows(weights, shares, places, (count, points))
        softmax_rows(shares, count, points)


@inlined
def _rows(job, queries, first):
    """The rows of a block, from point `first` of each query on."""
    return Rows(queries.count, min(PLANE, job.points - first))


@inlined
def share(job, softmax, weights, shares, queries, first, block):
    """Give the points of a block their factors, from point `first` of each query on."""
    rows, (reals, _) = _rows(job, queries, first), block
    size, to = (rows.count, rows.each), np.int64(SHARE)  # no numbers written out: one function
    if softmax is not None:
        read_rows(shares, reals, (first, job.points, to, rows.each), size)
    else:
        at, step = _weights(job, queries)
        read_rows(weights, reals, (at + first, step, to, rows.each), size)


@inlined
def _locations(job, queries, first):
    """Where point `first` of queries has its location, and the step to the next query's."""
    at = queries.row * job.location_query + queries.head * job.location_head
    return at + 2 * first, job.location_query


@inlined
def locate(job, taps, nearest, given, queries, first, block, fresh):
    """Locate the points of a block, which have their factors, from point `first` of each query on;
    levels of a `fresh` block are not known. Returns its rows.
    """
    levels, locations, scale = given
    reals, _ = block
    rows = _rows(job, queries, first)
    if fresh or job.points > PLANE:
        if taps is not None:
            fill_taps(levels, taps, first, rows, block)
        else:
            fill_levels(levels, job.points, first, rows, block)
    places = *_locations(job, queries, first), X, rows.each
    split_pairs(locations, reals, places, rows, Y - X)
    count = rows.count * rows.each
    if taps is not None:
        _find_bases(job, queries, rows, block)
        locate_beside(block, count, scale[0])
    elif nearest is None:
        locate_points(block, count)
    else:
        locate_nearest(block, count)
    return rows


@inlined
def _find_bases(job, queries, rows, block):
    """Where the kernels of the points of a block lie."""
    _, whole = block
    for r in range(rows.count):
        to, q = r * rows.each, queries.first + r
        i = q // job.out_width
        y = i * job.stride_y + job.origin_y
        x = (q - i * job.out_width) * job.stride_x + job.origin_x
        y = np.int32(min(max(y, -_FARTHEST), _FARTHEST))
        x = np.int32(min(max(x, -_FARTHEST), _FARTHEST))
        for k in range(rows.each):
            whole[BASE_Y + to + k], whole[BASE_X + to + k] = y, x


@inlined
def _slice(job, task):
    """The image and the head of a task, its range of queries, and where its values lie."""
    number, first, last = _place(job, task, job.queries)
    image, head = number // job.heads, number % job.heads
    start = job.start + image * job.image + head * job.head
    if job.pixel == job.channels:  # copied side by side
        start -= job.first * job.head
    return image, head, (first, last), View(start, job.pixel, job.channels)


@kernel
def aggregate(
    numbers,
    levels,
    taps,
    nearest,
    softmax,
    gathers,
    source,
    locations,
    weights,
    scale,
    output,
    first_task,
    last_task,
):
    """The results of queries of slices."""
    (job,) = _read_job(numbers)
    channels, points = job.channels, job.points
    own = job.rows * channels
    memory = block_memory(scale, own + count_shares(job, softmax))
    block, sums, shares = block_in(memory), numbers_behind(memory, 0), numbers_behind(memory, own)
    gathered = _room(job, gathers, source)
    room, beside = bare(gathered, 0), View(0, channels, channels)
    given = bare(levels, 0), bare(locations, 0), scale
    source, weights, output = bare(source, 0), bare(weights, 0), bare(output, 0)
    for task in range(first_task, last_task):
        image, head, (first, last), view = _slice(job, task)
        for q in range(first, last, job.rows):
            queries = queries_of(job, image, head, q, last)
            for i in range(queries.count * channels):
                sums[i] = 0
            fill_shares(job, softmax, weights, queries, shares)
            for k in range(0, points, PLANE):
                share(job, softmax, weights, shares, queries, k, block)
                rows = locate(job, taps, nearest, given, queries, k, block, q == first)
                if gathers is None:
                    sum_points(block, rows, source, view, sums, nearest)
                else:
                    _gather(job, block, rows, source, view, room, nearest)
                    sum_points(block, rows, room, beside, sums, nearest)
            size = queries.count, channels
            write_rows(sums, output, (0, channels, *_results(job, queries)), size)
    give_back(gathered)
    return_memory(memory)


@inlined
def _room(job, gathers, source):
    """For what the points of a block read, where the channels of a pixel lie apart."""
    return lent(0 if gathers is None else CORNERS * PLANE * job.channels, source.dtype)


@inlined
def _gather(job, block, rows, source, view, room, nearest):
    count, apart = rows.count * rows.each, (job.channel, job.gap)
    gather_corners(block, count, source, view, apart, room, nearest)


@inlined
def _results(job, queries):
    """The same of results."""
    step = job.heads * job.channels
    return queries.row * step + queries.head * job.channels, step


@inlined
def fill_grads(job, grad_output, queries, grads):
    """The gradients of the results of so many queries."""
    channels = job.channels
    places = *_results(job, queries), 0, channels
    read_rows(grad_output, grads, places, (queries.count, channels))


@kernel
def point_gradients(
    numbers,
    levels,
    taps,
    nearest,
    softmax,
    gathers,
    source,
    locations,
    weights,
    grad_output,
    scale,
    grad_locations,
    grad_weights,
    first_task,
    last_task,
):
    """The gradients of the locations and weights of queries of slices; an empty one is skipped."""
    (job,) = _read_job(numbers)
    channels, points = job.channels, job.points
    own, most = 4 * PLANE + job.rows * channels, count_shares(job, softmax)
    memory = block_memory(scale, own + 2 * most)
    block, dots = block_in(memory), numbers_behind(memory, 0)
    grads, shares = numbers_behind(memory, 4 * PLANE), numbers_behind(memory, own)
    found = numbers_behind(memory, own + most)
    gathered = _room(job, gathers, source)
    room, beside = bare(gathered, 0), View(0, channels, channels)
    given = bare(levels, 0), bare(locations, 0), scale
    source, weights, grad_output = bare(source, 0), bare(weights, 0), bare(grad_output, 0)
    for task in range(first_task, last_task):
        image, head, (first, last), view = _slice(job, task)
        for q in range(first, last, job.rows):
            queries = queries_of(job, image, head, q, last)
            fill_shares(job, softmax, weights, queries, shares)
            fill_grads(job, grad_output, queries, grads)
            for k in range(0, points, PLANE):
                share(job, softmax, weights, shares, queries, k, block)
                rows = locate(job, taps, nearest, given, queries, k, block, q == first)
                if gathers is None:
                    dot_points(block, rows, source, view, grads, dots, nearest)
                else:
                    _gather(job, block, rows, source, view, room, nearest)
                    dot_points(block, rows, room, beside, grads, dots, nearest)
                where = grad_locations, queries, k
                _write_locations(job, taps, nearest, block, rows, dots, where, scale)
                size, here = (rows.count, rows.each), (np.int64(0), rows.each)
                if softmax is not None:
                    read_rows(dots, found, (*here, k, points), size)
                elif len(grad_weights):
                    at, step = _weights(job, queries)
                    write_rows(dots, bare(grad_weights, 0), (*here, at + k, step), size)
            if softmax is not None and len(grad_weights):
                _write_weights(job, shares, found, bare(grad_weights, 0), queries)
    give_back(gathered)
    return_memory(memory)


@inlined
def _write_locations(job, taps, nearest, block, rows, dots, where, scale):
    """From the dots of a block to gradients of its locations, and of its shares in their place."""
    target, queries, first = where
    count = rows.count * rows.each
    if nearest is not None:
        for p in range(PLANE, 3 * PLANE):
            dots[p] = 0
    elif taps is not None:
        slopes(block, count, dots, scale[0])
    else:
        slopes(block, count, dots, None)
    if len(target):
        places = PLANE, rows.each, *_locations(job, queries, first)
        join_pairs(dots, bare(target, 0), places, rows, PLANE)


@inlined
def _write_weights(job, shares, found, target, queries):
    """From gradients of factors that depend on each other to those of the weights."""
    points, count = job.points, queries.count
    for at in range(0, count * points, points):
        total = found.dtype.type(0)
        for k in range(at, at + points):
            total += element(shares, k) * element(found, k)
        for k in range(at, at + points):
            put(found, k, element(shares, k) * (element(found, k) - total))
    write_rows(found, target, (np.int64(0), points, *_weights(job, queries)), (count, points))
