"""The gradients of values: of a range of the pixels of a slice at a time a thread has the sums."""

from __future__ import annotations

from typing import NamedTuple

from cudeform.cpu.gathered import CORNERS
from cudeform.cpu.language.bare import bare, give_back, lent, records
from cudeform.cpu.language.compiler import inlined, inner, kernel
from cudeform.cpu.language.halves import element
from cudeform.cpu.language.rows import read_rows, write_rows
from cudeform.cpu.language.simd import fma, lanes, load, load_some, splat, store, store_some
from cudeform.cpu.located import (
    DOWN,
    PIXEL,
    PLANE,
    RIGHT,
    SHARE,
    W00,
    View,
    block_in,
    block_memory,
    numbers_behind,
    return_memory,
)
from cudeform.cpu.queries import (
    Job,
    count_shares,
    fill_grads,
    fill_shares,
    locate,
    queries_of,
    share,
)

NOTHING, ZEROS, SUMS = range(3)  # that a target holds; to sums those of a call are added


class Spread(NamedTuple):
    """How the gradients of the values of so many slices are summed up."""

    begin: int  # the pixel that the target begins with
    holds: int  # what the target has before
    bundle: int  # queries of which is known which pixels they reach
    page: int  # pixels of which is known whether any is reached


_read = records(Job, Spread)


@kernel
def survey(numbers, levels, taps, nearest, locations, scale, reach, touched, first_task, last_task):
    """Which pixels bundles of queries of slices reach: a task is a bundle.

    `reach` is told the first pixel and an end, and `touched` which pages have any.
    """
    job, sums = _read(numbers)
    memory = block_memory(scale, 0)
    block = block_in(memory)
    for p in range(SHARE, SHARE + PLANE):
        block[0][p] = 0  # which changes nothing
    given = bare(levels, 0), bare(locations, 0), scale
    reach, touched = bare(reach, 0), bare(touched, 0)
    bundles = (job.queries + sums.bundle - 1) // sums.bundle
    pages = (job.pixels + sums.page - 1) // sums.page
    for task in range(first_task, last_task):
        number, bundle = task // bundles, task % bundles
        image, head = number // job.heads, number % job.heads
        low, high = job.pixels, 0
        last = min((bundle + 1) * sums.bundle, job.queries)
        for q in range(bundle * sums.bundle, last, job.rows):
            queries = queries_of(job, image, head, q, last)
            for k in range(0, job.points, PLANE):
                rows = locate(job, taps, nearest, given, queries, k, block, True)
                for p in range(rows.count * rows.each):
                    for corner in range(CORNERS if nearest is None else 1):
                        pixel, _ = corner_of(block, p, corner)
                        if pixel >= 0:
                            low, high = min(low, pixel), max(high, pixel + 1)
                            touched[number * pages + pixel // sums.page] = 1
        reach[2 * task], reach[2 * task + 1] = low, high
    return_memory(memory)


@kernel
def value_gradients(
    numbers,
    levels,
    taps,
    nearest,
    softmax,
    in_place,
    cuts,
    reach,
    touched,
    locations,
    weights,
    grad_output,
    scale,
    target,
    first_task,
    last_task,
):
    """The gradients of ranges of pixels of slices: from each cut to the next.

    `reach` and `touched` are as `survey` fills them; what is not touched is left as it is. With
    `in_place` not None sums are made in the target, which holds zeros or sums, and nowhere else.
    """
    job, how = _read(numbers)
    channels, points = job.channels, job.points
    own = job.rows * channels
    memory = block_memory(scale, own + count_shares(job, softmax))
    block, grads, shares = block_in(memory), numbers_behind(memory, 0), numbers_behind(memory, own)
    given = bare(levels, 0), bare(locations, 0), scale
    cuts, reach, touched = bare(cuts, 0), bare(reach, 0), bare(touched, 0)
    weights, grad_output, target = bare(weights, 0), bare(grad_output, 0), bare(target, 0)
    range_sums = sums_of_range(job, in_place, cuts, scale)
    sums = target if in_place is not None else bare(range_sums, 0)
    view = View(0, channels, channels)
    step = job.heads * channels
    bundles = (job.queries + how.bundle - 1) // how.bundle
    for task in range(first_task, last_task):
        number, piece = task // job.pieces, task % job.pieces
        first, end = cuts[piece], cuts[piece + 1]
        image, head = number // job.heads, number % job.heads
        if in_place is not None:
            start = (image * job.pixels + first - how.begin) * step + head * channels
            view = View(start, step, channels)
        else:
            each_page(job, how, number, (first, end), touched, sums, target, page_begins)
        filled = False
        for q in range(0, job.queries, job.rows):
            bundle = 2 * (number * bundles + q // how.bundle)
            if reach[bundle] >= end or reach[bundle + 1] <= first:
                continue
            queries = queries_of(job, image, head, q, job.queries)
            fill_shares(job, softmax, weights, queries, shares)
            fill_grads(job, grad_output, queries, grads)
            for k in range(0, points, PLANE):
                share(job, softmax, weights, shares, queries, k, block)
                rows = locate(job, taps, nearest, given, queries, k, block, not filled)
                spread_points(block, rows, grads, sums, view, (first, end), nearest)
            filled = True
        if in_place is None:
            each_page(job, how, number, (first, end), touched, sums, target, page_ends)
    give_back(range_sums)
    return_memory(memory)


@inlined
def sums_of_range(job, in_place, cuts, like):
    """Room for the sums of the longest range."""
    longest = 0
    for piece in range(job.pieces):
        longest = max(longest, cuts[piece + 1] - cuts[piece])
    return lent(longest * job.channels if in_place is None else 0, like.dtype)


@inlined
def each_page(job, how, number, pixels, touched, sums, target, use):
    """Call `use` for the pages of a range of pixels that are touched."""
    first, end = pixels
    image, head = number // job.heads, number % job.heads
    pages = (job.pixels + how.page - 1) // how.page
    step = job.heads * job.channels
    at = first
    while at < end:
        page = at // how.page
        last = min((page + 1) * how.page, end)
        if touched[number * pages + page]:
            to = (image * job.pixels + at - how.begin) * step + head * job.channels
            places = (at - first) * job.channels, job.channels, to, step
            use(how, places, (last - at, job.channels), sums, target)
        at = last


@inlined
def page_begins(how, places, size, sums, target):
    at, pitch, to, step = places
    if how.holds == SUMS:
        read_rows(target, sums, (to, step, at, pitch), size)
    else:
        for i in range(at, at + size[0] * pitch):
            sums[i] = 0


@inlined
def page_ends(how, places, size, sums, target):
    write_rows(sums, target, places, size)


@inner
def spread_points(block, rows, grad, target, view, bounds, nearest):
    """Add a row's gradient, times their weights, to the corners that are within `bounds`.

    These are a first pixel and an end; `target` begins at the first.
    """
    step = lanes(grad)
    tail = view.channels & (step - 1)
    whole = view.channels - tail
    pairs = whole - whole % (2 * step)
    for c in range(0, pairs, 2 * step):
        _spread_two(block, rows, grad, target, view, bounds, nearest, c)
    if pairs < whole:
        _spread_one(block, rows, grad, target, view, bounds, nearest, pairs, step)
    if tail:
        _spread_one(block, rows, grad, target, view, bounds, nearest, whole, tail)


@inlined
def corner_of(block, p, corner):
    """The pixel of a corner of a point, and its weight; -1 where there is none."""
    reals, whole = block
    pixel, weight = element(whole, PIXEL + p), element(reals, W00 + p + corner * PLANE)
    beside = element(whole, RIGHT + p) if corner & 1 else 0
    below = element(whole, DOWN + p) if corner & 2 else 0
    return -1 if pixel < 0 else pixel + beside + below, weight


@inlined
def _misses(whole, p, bounds, nearest):
    """Whether no corner of a point is within bounds: most points of a range lie in another."""
    low = high = element(whole, PIXEL + p)
    if nearest is None:
        high += element(whole, RIGHT + p) + element(whole, DOWN + p)
    return (low < 0) | (low >= bounds[1]) | (high < bounds[0])


@inlined
def _spread_two(block, rows, grad, target, view, bounds, nearest, c):
    """Two vectors of channels from c on."""
    first, end = bounds
    step = lanes(grad)
    for r in range(rows.count):
        row = r * view.channels + c
        g0, g1 = load(grad, row), load(grad, row + step)
        for p in range(r * rows.each, (r + 1) * rows.each):
            if _misses(block[1], p, bounds, nearest):
                continue
            for corner in range(CORNERS if nearest is None else 1):
                pixel, weight = corner_of(block, p, corner)
                if pixel < first or pixel >= end:
                    continue
                to = view.start + (pixel - first) * view.pitch + c
                w = splat(grad, weight)
                store(target, to, fma(w, g0, load(target, to)))
                store(target, to + step, fma(w, g1, load(target, to + step)))


@inlined
def _spread_one(block, rows, grad, target, view, bounds, nearest, c, count):
    """One vector of `count` channels."""
    first, end = bounds
    for r in range(rows.count):
        g = load_some(grad, r * view.channels + c, count)
        for p in range(r * rows.each, (r + 1) * rows.each):
            if _misses(block[1], p, bounds, nearest):
                continue
            for corner in range(CORNERS if nearest is None else 1):
                pixel, weight = corner_of(block, p, corner)
                if pixel < first or pixel >= end:
                    continue
                to = view.start + (pixel - first) * view.pitch + c
                value = fma(splat(grad, weight), g, load_some(target, to, count))
                store_some(target, to, value, count)
