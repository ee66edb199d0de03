"""The gradients of values where slices are fewer than threads: by ranges of pixels, from lists.

Each point is located once, and its corners are listed by the range in which they lie, in the order
of the queries. So ranges may be many, and sums are what one range would make of them.
"""

from __future__ import annotations

import numpy as np

from cudeform.cpu.gathered import CORNERS
from cudeform.cpu.language.bare import bare, give_back, lent, records
from cudeform.cpu.language.compiler import inlined, inner, kernel
from cudeform.cpu.language.halves import element, load_wide, load_wide_some, put
from cudeform.cpu.language.simd import fma, lanes, load, load_some, splat, store, store_some
from cudeform.cpu.located import (
    PLANE,
    View,
    block_in,
    block_memory,
    numbers_behind,
    return_memory,
)
from cudeform.cpu.queries import Job, count_shares, fill_shares, locate, queries_of, share
from cudeform.cpu.spreading import (
    Spread,
    corner_of,
    each_page,
    page_begins,
    page_ends,
    sums_of_range,
)

GRAIN = 16  # pixels that are in one range together

_read = records(Job, Spread)


@kernel
def list_corners(
    numbers,
    levels,
    taps,
    nearest,
    softmax,
    owners,
    locations,
    weights,
    scale,
    starts,
    places,
    factors,
    first_task,
    last_task,
):
    """List the corners of bundles of queries by range: a task is a bundle of a slice.

    `owners` has the range of each `GRAIN` of pixels. An entry is a pixel and a query in `places`,
    and a weight in `factors`; `starts` tells where those of each range begin, and the end.
    """
    job, how = _read(numbers)
    points = job.points
    most = CORNERS * how.bundle * points
    memory = block_memory(scale, most + count_shares(job, softmax))
    block, found, shares = block_in(memory), numbers_behind(memory, 0), numbers_behind(memory, most)
    listed = lent(2 * most, np.int32)
    pixels, queried = bare(listed, 0), bare(listed, most)
    given = bare(levels, 0), bare(locations, 0), scale
    weights, owners, starts = bare(weights, 0), bare(owners, 0), bare(starts, 0)
    places, factors = bare(places, 0), bare(factors, 0)
    bundles = (job.queries + how.bundle - 1) // how.bundle
    for task in range(first_task, last_task):
        number, begin = job.first + task // bundles, task % bundles * how.bundle
        image, head = number // job.heads, number % job.heads
        end = min(begin + how.bundle, job.queries)
        own = bare(starts, task * (job.pieces + 1))
        for piece in range(job.pieces + 1):
            own[piece] = 0
        count = 0
        for q in range(begin, end, job.rows):
            queries = queries_of(job, image, head, q, end)
            fill_shares(job, softmax, weights, queries, shares)
            for k in range(0, points, PLANE):
                share(job, softmax, weights, shares, queries, k, block)
                rows = locate(job, taps, nearest, given, queries, k, block, q == begin)
                for r in range(rows.count):
                    for p in range(r * rows.each, (r + 1) * rows.each):
                        for corner in range(CORNERS if nearest is None else 1):
                            pixel, weight = corner_of(block, p, corner)
                            if pixel >= 0:
                                put(pixels, count, np.int32(pixel))
                                put(queried, count, np.int32(q + r))
                                put(found, count, weight)
                                owner = element(owners, np.uint32(pixel) // GRAIN)
                                put(own, owner, element(own, owner) + 1)
                                count += 1
        at = CORNERS * points * ((number - job.first) * job.queries + begin)
        for piece in range(job.pieces + 1):  # own[pieces] is 0
            own[piece], at = at, at + own[piece]
        _distribute(count, owners, (pixels, queried, found), own, places, factors)
        for piece in range(job.pieces, 0, -1):  # each is where the next begins
            own[piece] = own[piece - 1]
        own[0] = CORNERS * points * ((number - job.first) * job.queries + begin)
    give_back(listed)
    return_memory(memory)


@inlined
def _distribute(count, owners, given, ends, places, factors):
    """Append to the list of each range, in their order, the entries that belong there."""
    pixels, queried, found = given
    for i in range(count):
        pixel = element(pixels, i)
        owner = element(owners, np.uint32(pixel) // GRAIN)
        to = element(ends, owner)
        put(ends, owner, to + 1)
        put(places, 2 * to, pixel)
        put(places, 2 * to + 1, element(queried, i))
        put(factors, to, element(found, i))


@kernel
def add_corners(
    numbers,
    in_place,
    cuts,
    touched,
    starts,
    places,
    factors,
    grad_output,
    scale,
    target,
    first_task,
    last_task,
):
    """The gradients of ranges of pixels of slices, from the lists that `list_corners` makes."""
    job, how = _read(numbers)
    channels = job.channels
    step = job.heads * channels
    cuts, touched, starts = bare(cuts, 0), bare(touched, 0), bare(starts, 0)
    places, factors = bare(places, 0), bare(factors, 0)
    grad_output, target = bare(grad_output, 0), bare(target, 0)
    range_sums = sums_of_range(job, in_place, cuts, scale)
    sums = target if in_place is not None else bare(range_sums, 0)
    bundles = (job.queries + how.bundle - 1) // how.bundle
    for task in range(first_task, last_task):
        number, piece = job.first + task // job.pieces, task % job.pieces
        first, end = cuts[piece], cuts[piece + 1]
        image, head = number // job.heads, number % job.heads
        to = View(0, channels, channels)
        if in_place is not None:
            to = View((image * job.pixels + first - how.begin) * step + head * channels, step, 0)
        else:
            each_page(job, how, number, (first, end), touched, sums, target, page_begins)
        given = View(image * job.queries * step + head * channels, step, channels)
        for bundle in range(bundles):
            at = ((number - job.first) * bundles + bundle) * (job.pieces + 1) + piece
            listed = starts[at], starts[at + 1]
            add_listed(listed, places, factors, grad_output, given, sums, to, first)
        if in_place is None:
            each_page(job, how, number, (first, end), touched, sums, target, page_ends)
    give_back(range_sums)


@inner
def add_listed(listed, places, factors, grad, given, target, to, first):
    """Add the gradients of queries, times weights, to pixels: entries from one to another."""
    step = lanes(factors)
    tail = given.channels & (step - 1)
    whole = given.channels - tail
    pairs = whole - whole % (2 * step)
    for c in range(0, pairs, 2 * step):
        for e in range(listed[0], listed[1]):
            at, row, w = _entry(e, places, factors, given, to, first)
            g0, g1 = load_wide(grad, row + c), load_wide(grad, row + c + step)
            store(target, at + c, fma(w, g0, load(target, at + c)))
            store(target, at + c + step, fma(w, g1, load(target, at + c + step)))
    if pairs < whole:
        for e in range(listed[0], listed[1]):
            at, row, w = _entry(e, places, factors, given, to, first)
            g = load_wide(grad, row + pairs)
            store(target, at + pairs, fma(w, g, load(target, at + pairs)))
    if tail:
        for e in range(listed[0], listed[1]):
            at, row, w = _entry(e, places, factors, given, to, first)
            g = load_wide_some(grad, row + whole, tail)
            store_some(target, at + whole, fma(w, g, load_some(target, at + whole, tail)), tail)


@inlined
def _entry(e, places, factors, given, to, first):
    """Where the pixel of an entry and the gradient of its query begin, and the weight."""
    pixel, query = element(places, 2 * e), element(places, 2 * e + 1)
    at = to.start + (pixel - first) * to.pitch
    return at, given.start + query * given.pitch, splat(factors, element(factors, e))
