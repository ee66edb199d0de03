"""The pooling of regions: every bin is a weighted sum over the patch of pixels that it reads.

The input is laid out with its channels last, a few images or slices of channels at a time. A task
takes one slice of one region: it finds the patches of the bins, and sums them up for vectors of
channels.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu import threads
from cudeform.cpu.compiler import inlined, kernel
from cudeform.cpu.layout import transpose
from cudeform.cpu.patches import (
    axes_of,
    bins_of,
    blend_patch,
    cell_of,
    largest_of_patch,
    locate_bins,
    patch_at,
    scale_of,
)
from cudeform.cpu.precision import rounded
from cudeform.cpu.regions import Job, Round, Work, job_of, locate_regions, pieces, rounds
from cudeform.cpu.roi_gradients import backward
from cudeform.cpu.staging import image_of, room, stage
from cudeform.geometry import RoiPlan

__all__ = ["backward", "forward"]


def forward(
    plan: RoiPlan,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None,
    mask: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """What `plan` pools, (R, C, ph, pw), and for "max" which pixels those are."""
    output = np.empty(plan.out_shape, input.dtype)
    largest = plan.reads == "max"
    argmax = np.empty(plan.out_shape if largest else 0, np.int32)
    if output.size:
        _pool_rounds(plan, input, boxes, offset, mask, (output, argmax))
    return output, argmax if largest else None


def _pool_rounds(
    plan: RoiPlan,
    input: np.ndarray,
    boxes: np.ndarray,
    offset: np.ndarray | None,
    mask: np.ndarray | None,
    results: tuple[np.ndarray, np.ndarray],
) -> None:
    """Fill `results`: output and argmax."""
    wide = sum_dtype(input.dtype)
    regions = locate_regions(plan, boxes)
    job = job_of(plan, wide.itemsize, plan.regions)
    parts = list(rounds(job, len(regions.images), wide.itemsize))
    staged = np.empty(max(room(job, part) for part in parts), wide)
    for part in parts:
        stage(job, regions, part, input, staged)
        slices = part.slice_end - part.slice_begin
        for piece, chosen in pieces(job, regions, part, offset, mask, input):
            written = results
            if chosen is not None:
                size = len(chosen) * piece.region
                written = np.empty(size, wide), np.empty(size if job.largest else 0, np.int32)
            task = partial(
                _pool,
                Work(job, part, regions, piece),
                staged,
                *(array.reshape(-1) for array in written),
            )
            threads.share(task, (piece.end - piece.begin) * slices)
            if chosen is not None:
                _keep(job, part, chosen, written, results)


def _keep(
    job: Job,
    part: Round,
    chosen: np.ndarray,
    written: tuple[np.ndarray, np.ndarray],
    results: tuple[np.ndarray, np.ndarray],
) -> None:
    """Copy what was computed of some regions to where it belongs."""
    groups_y = np.arange(job.bins_y) * job.groups_y // job.bins_y
    groups_x = np.arange(job.bins_x) * job.groups_x // job.bins_x
    groups = (groups_y[:, None] * job.groups_x + groups_x).reshape(-1)
    bins = np.flatnonzero((groups >= part.group_begin) & (groups < part.group_end))
    place = chosen, part.classes, part.channels(job)
    for values, result in zip(written, results, strict=True):
        if result.size == 0:
            continue
        result = result.reshape(-1, job.classes, job.channels, len(groups))
        shape = (len(chosen), *(span.stop - span.start for span in place[1:]), len(groups))
        values = rounded(values.reshape(shape), result.dtype)
        if len(bins) == len(groups):
            result[place] = values
        else:
            for b in bins:
                result[(*place, b)] = values[..., b]


@kernel
def _pool(work, staged, output, argmax, first, last):
    """Tasks `first` to `last` of a round, each a slice of a region."""
    job, part, regions, piece = work
    axes = axes_of(job, staged)
    tile = np.empty(job.tile * job.pitch, staged.dtype)
    chosen = np.empty(job.tile * job.pitch if job.largest else 0, np.int32)
    slices = part.slice_end - part.slice_begin
    for task in range(first, last):
        t = task // slices
        s = part.slice_begin + task - t * slices
        t += piece.begin
        if not job.deformable:
            locate_bins(job, regions, t, (0, job.bins_y, 0, job.bins_x), axes)
        for c in range(part.class_begin, part.class_end):
            for g in range(part.group_begin, part.group_end):
                image = image_of(job, part, regions.place[t], c, g, s)
                _pool_group(
                    work, (t, c, g, s), axes, (staged, image), (tile, chosen), (output, argmax)
                )


@inlined
def _pool_group(work, place, axes, source, tiles, results):
    """The bins of a region that read one group: a tile with the channels last, then written."""
    job, _, _, piece = work
    t, c, g, s = place
    tile, chosen = tiles
    start = np.int64(0)  # a literal would compile `transpose` once more
    top, bottom, left, right = bins_of(job, g)
    channels = min(job.slice_channels, job.channels - s * job.slice_channels)
    bins = job.bins_y * job.bins_x
    at = piece.start + piece.rows[t] * piece.region + c * piece.of_class
    at += s * job.slice_channels * bins
    high = job.tile // job.bins_x if right - left == job.bins_x else 1  # so that bins follow
    for i0 in range(top, bottom, high):
        i1 = min(i0 + high, bottom)
        count = (i1 - i0) * (right - left)
        for n in range(count):
            i = n // (right - left)
            j = left + n - i * (right - left)
            _pool_bin(work, (t, c, i0 + i, j), axes, source, tiles, n * job.pitch)
        to = at + i0 * job.bins_x + left
        transpose(tile, start, job.pitch, count, channels, results[0], to, bins)
        if job.largest:
            transpose(chosen, start, job.pitch, count, channels, results[1], to, bins)


@inlined
def _pool_bin(work, place, axes, source, tiles, at):
    """The result of a bin for the channels of a slice."""
    job, _, regions, piece = work
    t, c, i, j = place
    staged, image = source
    patch = patch_at(work, t, c, i, j, axes)
    if job.largest:
        largest_of_patch(patch, staged, image, job.width, tiles[0], tiles[1], at)
        return
    scale = scale_of(job, regions, t, patch)
    if job.modulated:
        scale *= piece.mask[cell_of(job, piece.rows[t], c, job.classes, i, j)]
    blend_patch(patch, scale, staged, image, job.width * job.pitch, tiles[0], at)
