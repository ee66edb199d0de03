"""Slices of regions, one after the other."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.scratch import zeroed
from cudeform.cpu.regions.patches import (
    blend_tile,
    largest_of_tile,
    locate_region,
    locate_tile,
    tile_of,
)
from cudeform.cpu.regions.results import result_at, write_results
from cudeform.cpu.regions.staging import slice_of

__all__ = ["pool_slices"]


@inlined
def pool_slices(work, staged, output, argmax, first, last):
    """Tasks `first` to `last` of a round, each a slice of a region."""
    job, part, regions, piece = work
    tile = tile_of(job, staged)
    values = zeroed(job.tile * job.pitch, staged.dtype)
    pixels = zeroed(job.tile * job.pitch if job.largest else 0, np.int32)
    slices = part.slice_end - part.slice_begin
    line = job.columns * job.pitch
    high = job.tile // job.bins_x
    for task in range(first, last):
        t = task // slices
        s = part.slice_begin + task - t * slices
        t += piece.begin
        locate_region(job, regions, t, 0, job.bins_y, tile)
        for c in range(part.class_begin, part.class_end):
            starts = slice_of(job, part, regions.origin, regions.place[t], c, s)
            for top in range(0, job.bins_y, high):
                bottom = min(top + high, job.bins_y)
                count = (bottom - top) * job.bins_x
                locate_tile(work, (t, c, s), starts, top, bottom, tile)
                to = result_at(work, t, c, s) + top * job.bins_x
                if job.largest:
                    largest_of_tile(tile, count, staged, job.pitch, job.width, values, pixels)
                    write_results(job, tile, count, s, pixels, argmax, to)
                else:
                    blend_tile(tile, count, staged, job.pitch, line, values)
                write_results(job, tile, count, s, values, output, to)
