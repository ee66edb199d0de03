"""Slices of regions, one after the other, wherever their pixels lie.

What `find` says of a slice of a region is where its group 0 begins, how far the groups are from
each other, and of how many channels there are pixels.
"""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.bare import bare, cleared, give_back, lent, seen_as
from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.regions.blocking import group_rows, place_of, unpacked
from cudeform.cpu.regions.patches import (
    ELSEWHERE,
    bins_of,
    blend_tile,
    locate_bins,
    locate_region,
    locate_tile,
    measure_tile,
    patch_of,
    reached,
    return_tile,
    spread_tile,
    tile_of,
)
from cudeform.cpu.regions.results import add_elements, read_gradients, result_at, write_results
from cudeform.cpu.regions.staging import (
    copy_groups,
    lay_back,
    lay_out,
    room_for_rows,
    slice_of,
)

_group_rows = inlined(group_rows)


@inlined
def in_frames(work, staged, t, c, s):
    """`find` of frames that are laid out."""
    start, of_group = slice_of(
        work.job, work.part, work.regions.origin, work.regions.place[t], c, s
    )
    return start, of_group, work.job.pitch


@inlined
def average_slices(given, staged, output, split, first, last):
    """Tasks `first` to `last` of a round, each a slice of some rows of the bins of a region, of
    which there are `split` times as many as regions: weighted sums.
    """
    tasks = split, first, last
    visit_slices(given, bare(staged, 0), in_frames, (bare(output, 0),), tasks, _blend)


@inlined
def choose_slices(given, staged, output, argmax, split, first, last):
    """The same: the largest pixels, and which they are."""
    job = unpacked(given).job
    pixels = cleared(job.tile * job.pitch, np.int32)
    results = bare(output, 0), bare(argmax, 0), bare(pixels, 0)
    visit_slices(given, bare(staged, 0), in_frames, results, (split, first, last), _largest)
    give_back(pixels)


@inlined
def rows_of(work, tasks, task):
    """(region, slice, from one row of bins up to another) of a task."""
    job, part, _, piece = work
    split = tasks[0]
    slices = part.slice_end - part.slice_begin
    rows = task // slices
    s = part.slice_begin + task - rows * slices
    t = rows // split
    rows -= t * split
    begin, end = job.bins_y * rows // split, job.bins_y * (rows + 1) // split
    return piece.span.begin + t, s, begin, end


@inlined
def visit_slices(given, source, find, results, tasks, use):
    """Call `use` for every tile of the tasks, with where its results begin."""
    work = unpacked(given)
    job, part, regions, _ = work
    tile, values, memory = tile_of(job, results[0])
    high = job.tile // job.bins_x
    for task in range(tasks[1], tasks[2]):
        t, s, begin, end = rows_of(work, tasks, task)
        locate_region(job, regions, t, begin, end, tile)
        for c in range(part.class_begin, part.class_end):
            starts = find(work, source, t, c, s)
            for top in range(begin, end, high):
                bottom = min(top + high, end)
                count = (bottom - top) * job.bins_x
                locate_tile(work, (t, c, s), starts, (top, bottom), (0, job.bins_x), tile)
                to = result_at(work, t, c, s) + top * job.bins_x
                use(job, tile, (count, starts[2], s, to), source, values, results)
                write_results(job, tile, count, s, values, results[0], to)
    return_tile(memory)


@inlined
def _blend(job, tile, place, staged, values, results):
    blend_tile(tile, place[0], staged, job.pitch, job.columns * job.pitch, values)


@inlined
def _largest(job, tile, place, staged, values, results):
    count, _, s, to = place
    _largest_of_tile(tile, count, staged, job.pitch, job.width, values, results[2])
    pixels, argmax = seen_as(results[2], values), seen_as(results[1], values)
    write_results(job, tile, count, s, pixels, argmax, to)


@inner
def _largest_of_tile(tile, count, source, pitch, width, best, chosen):
    """Write the largest values of the bins of a tile, and the first pixels that have them.

    An empty bin has 0 and no pixel, -1. NaN is larger than any number.
    """
    pixel = tile.pixel
    for n in range(count):
        start = tile.start[n]
        y0, y1, x0, x1 = patch_of(tile, n)
        values, pixels = bare(best, n * pitch), bare(chosen, n * pitch)
        if start == ELSEWHERE or y0 == y1 or x0 == x1:
            for c in range(pitch):
                values[c] = 0
                pixels[c] = -1
            continue
        first = pixel[y0] * width + pixel[x0]
        given = bare(source, start + first * pitch)
        for c in range(pitch):
            values[c] = given[c]
            pixels[c] = first
        for a in range(y0, y1):
            for b in range(x0, x1):
                p = np.int32(pixel[a] * width + pixel[b])
                given = bare(source, start + p * pitch)
                for c in range(pitch):
                    value, before = given[c], values[c]
                    larger = (value > before) | ((value != value) & (before == before))
                    values[c] = value if larger else before
                    pixels[c] = p if larger else pixels[c]


@inlined
def measure_slices(given, staged, grad, grad_offset, grad_mask, first, last):
    """Tasks `first` to `last` of a round, each a region: gradients of its offsets and masks."""
    sums, tasks = (grad_offset, grad_mask), (first, last)
    measure_regions(given, bare(staged, 0), in_frames, grad, sums, grad, tasks, _measure)


@inlined
def measure_regions(given, source, find, grad, sums, room, tasks, measure):
    """Add what `measure` finds of every tile of some regions, with some room."""
    work = unpacked(given)
    job, part, regions, piece = work
    tile, values, memory = tile_of(job, grad)
    numbers = lent(3 * job.tile, grad.dtype)
    grad, found, more = bare(grad, 0), bare(numbers, 0), bare(room, 0)
    targets = bare(sums[0], 0), bare(sums[1], 0), sums[0].size > 0, sums[1].size > 0
    high = job.tile // job.bins_x
    for t in range(piece.span.begin + tasks[0], piece.span.begin + tasks[1]):
        locate_region(job, regions, t, 0, job.bins_y, tile)
        for c in range(part.class_begin, part.class_end):
            for s in range(part.slice_begin, part.slice_end):
                starts = find(work, source, t, c, s)
                for top in range(0, job.bins_y, high):
                    bottom = min(top + high, job.bins_y)
                    count = (bottom - top) * job.bins_x
                    locate_tile(work, (t, c, s), starts, (top, bottom), (0, job.bins_x), tile)
                    read_gradients(work, (t, c, s), grad, top, count, values)
                    measure(job, tile, (count, starts[2]), source, more, values, found)
                    add_elements(job, regions, (t, c, top), count, tile.factor, found, targets)
    return_tile(memory)
    give_back(numbers)


@inlined
def _measure(job, tile, place, staged, room, values, found):
    line = job.columns * job.pitch
    measure_tile(tile, place[0], staged, job.pitch, line, values, found)


@inlined
def spread_slices(given, starts, view, target, grad, split, first, last):
    """Tasks `first` to `last` of a round, each a slice of a row of groups of a frame, or of some
    columns of it, of which there are `split` times as many: gradients.

    They are summed up with the channels last, and then written to planes.
    """
    work = unpacked(given)
    job, part, regions, piece = work
    tile, values, memory = tile_of(job, target)
    area = job.rows * job.columns * job.pitch
    wide = min(-(-job.groups_x // split), part.group_end - part.group_begin)
    laid_out, rows = lent(wide * area, target.dtype), cleared(room_for_rows(job), target.dtype)
    staged, room = bare(laid_out, 0), bare(rows, 0)
    views, target, grad = (
        (job, view, regions.origin, bare(starts, 0)),
        bare(target, 0),
        bare(grad, 0),
    )
    line = job.columns * job.pitch
    high = job.tile // job.bins_x
    begins = piece.span.begin == regions.first[part.image_begin]  # the first of the round
    for task in range(first, last):
        u, c, gy, s = place_of(part, _group_rows(job, part), task // split)
        nth, of_row = task % split, gy * job.groups_x
        own = job.groups_x * nth // split, job.groups_x * (nth + 1) // split
        begin, _ = bins_of(job.bins_x, job.groups_x, own[0])
        _, end = bins_of(job.bins_x, job.groups_x, own[1] - 1)
        bins = bins_of(job.bins_y, job.groups_y, gy), (begin, end)
        group = max(of_row + own[0], part.group_begin)
        groups = group, max(min(of_row + own[1], part.group_end), group)
        if begins:
            for k in range((groups[1] - group) * area):
                staged[k] = 0
        else:
            copy_groups(views, (u, c, s), groups, staged, target, lay_out, room)
        corner = (regions.origin[2 * u] * job.columns + regions.origin[2 * u + 1]) * job.pitch
        pixels = -corner - group * area, area
        since, until = regions.first[u], regions.first[u + 1]
        for t in range(max(since, piece.span.begin), min(until, piece.span.end)):
            locate_bins(job, regions, t, bins[0], bins[1], tile)
            first_row, last_row, left, right = reached(job, tile, bins[0], bins[1])
            for top in range(first_row, last_row, high):
                bottom = min(top + high, last_row)
                count = (bottom - top) * job.bins_x
                locate_tile(work, (t, c, s), pixels, (top, bottom), (left, right), tile)
                # Bins that follow each other: all of whole rows, or some of one
                step = bottom - top if split == 1 else 1
                columns = (0, step * job.bins_x) if split == 1 else (left, right)
                for row in range(top, bottom, step):
                    to = bare(values, ((row - top) * job.bins_x + columns[0]) * job.pitch)
                    along = bare(grad, columns[0])
                    read_gradients(work, (t, c, s), along, row, columns[1] - columns[0], to)
                spread_tile(tile, count, values, job.pitch, line, staged)
        copy_groups(views, (u, c, s), groups, staged, target, lay_back, room)
    return_tile(memory)
    give_back(laid_out)
    give_back(rows)
