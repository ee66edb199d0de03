"""Slices of regions, one after the other."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.bare import bare, cleared, give_back, seen_as
from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.regions.blocking import unpacked
from cudeform.cpu.regions.patches import (
    ELSEWHERE,
    blend_tile,
    locate_region,
    locate_tile,
    patch_of,
    return_tile,
    tile_of,
)
from cudeform.cpu.regions.results import result_at, write_results
from cudeform.cpu.regions.staging import slice_of

__all__ = ["average_slices", "choose_slices"]


@inlined
def average_slices(given, staged, output, split, first, last):
    """Tasks `first` to `last` of a round, each a slice of some rows of the bins of a region, of
    which there are `split` times as many as regions: weighted sums.
    """
    _visit(given, bare(staged, 0), (bare(output, 0),), split, first, last, _blend)


@inlined
def choose_slices(given, staged, output, argmax, split, first, last):
    """The same: the largest pixels, and which they are."""
    job = unpacked(given).job
    pixels = cleared(job.tile * job.pitch, np.int32)
    results = bare(output, 0), bare(argmax, 0), bare(pixels, 0)
    _visit(given, bare(staged, 0), results, split, first, last, _largest)
    give_back(pixels)


@inlined
def _visit(given, staged, results, split, first, last, use):
    """Call `use` for every tile of the tasks, with where its results begin."""
    work = unpacked(given)
    job, part, regions, piece = work
    tile, values, memory = tile_of(job, staged)
    slices = part.slice_end - part.slice_begin
    high = job.tile // job.bins_x
    for task in range(first, last):
        rows, s = task // slices, part.slice_begin + task % slices
        t, rows = piece.span.begin + rows // split, rows % split
        begin, end = job.bins_y * rows // split, job.bins_y * (rows + 1) // split
        locate_region(job, regions, t, begin, end, tile)
        for c in range(part.class_begin, part.class_end):
            starts = slice_of(job, part, regions.origin, regions.place[t], c, s)
            for top in range(begin, end, high):
                bottom = min(top + high, end)
                count = (bottom - top) * job.bins_x
                locate_tile(work, (t, c, s), starts, (top, bottom), (0, job.bins_x), tile)
                to = result_at(work, t, c, s) + top * job.bins_x
                use(job, tile, (count, s, to), staged, values, results)
                write_results(job, tile, count, s, values, results[0], to)
    return_tile(memory)


@inlined
def _blend(job, tile, place, staged, values, results):
    blend_tile(tile, place[0], staged, job.pitch, job.columns * job.pitch, values)


@inlined
def _largest(job, tile, place, staged, values, results):
    count, s, to = place
    _, argmax, pixels = results
    _largest_of_tile(tile, count, staged, job.pitch, job.width, values, pixels)
    pixels, argmax = seen_as(pixels, values), seen_as(argmax, values)
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
