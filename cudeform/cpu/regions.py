"""Regions of interest on the CPU: where they lie, and how their pooling is cut up.

Boxes are put in the order of their images. A slice is some channels of one class and one group of
an image: the channels that the same bins read, side by side in memory. Slices follow from shapes
alone; what is laid out at a time, a round, follows from the images that have boxes as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.blocking import SCRATCH_BYTES
from cudeform.cpu.layout import frozen
from cudeform.geometry import RoiPlan

__all__ = [
    "NUMBERS",
    "Job",
    "Piece",
    "Regions",
    "Round",
    "Work",
    "job_of",
    "locate_regions",
    "pieces",
    "rounds",
]

NUMBERS = 9  # of a region in `Regions.numbers`
_LANES = 16  # slices are multiples of so many channels
_PADDED = 8  # channels that are worth a slice of `_LANES`
_WIDEST = 256  # channels of a slice
_NARROW = 32  # channels of a slice that are worth locating its bins
_ENOUGH_TASKS = 8
_TILE = 128  # bins, or one row of them
_COUNTABLE = 2.0**40  # samples


class Regions(NamedTuple):
    """The regions of a call in the order of their images, for kernels."""

    # (R, 9) flat: start, size, spacing of samples and pixels per unit of offset along y, the same
    # along x, one over the number of samples
    numbers: np.ndarray
    counts: np.ndarray  # (R, 2) flat: samples of a bin along y and x
    place: np.ndarray  # (R,): which of `images`
    order: np.ndarray  # (R,): which of the boxes
    images: np.ndarray  # (U,): those that have boxes
    first: np.ndarray  # (U + 1,): the first region of each


class Job(NamedTuple):
    """What kernels need to know of a `RoiPlan`."""

    height: int
    width: int
    bins_y: int
    bins_x: int
    groups_y: int
    groups_x: int
    classes: int
    channels: int  # of a class in a group
    part_y: int
    part_x: int
    deformable: int
    modulated: int
    corners: int  # 1: reads "corners"
    covers: int  # 1: reads "mean" or "max"
    largest: int  # 1: reads "max"
    whole: int  # 1: regions start at whole pixels
    slice_channels: int
    pitch: int  # from one pixel's channels of a slice to the next
    tile: int  # bins, in whole rows
    slot: int  # numbers for what a bin reads along an axis


class Round(NamedTuple):
    """What is worked on at a time: ranges of images with boxes, classes, groups, slices."""

    image_begin: int
    image_end: int
    class_begin: int
    class_end: int
    group_begin: int
    group_end: int
    slice_begin: int
    slice_end: int

    @property
    def images(self) -> slice:
        return slice(self.image_begin, self.image_end)

    @property
    def classes(self) -> slice:
        return slice(self.class_begin, self.class_end)

    @property
    def groups(self) -> slice:
        return slice(self.group_begin, self.group_end)

    def channels(self, job: Job) -> slice:
        """Of a class in a group."""
        last = min(self.slice_end * job.slice_channels, job.channels)
        return slice(self.slice_begin * job.slice_channels, last)

    def shape(self, job: Job) -> tuple[int, ...]:
        """Images, classes, channels of one, groups and pixels: how the input lies in memory."""
        spans = (self.images, self.classes, self.channels(job), self.groups)
        return (*(span.stop - span.start for span in spans), job.height * job.width)


class Piece(NamedTuple):
    """A range of regions with what kernels read and write of them, in the dtype of sums."""

    begin: int
    end: int
    rows: np.ndarray  # (R,): where each region is in the arrays that follow
    offset: np.ndarray
    mask: np.ndarray
    # Strides of results (regions, classes, channels, bins), and where (0, 0, 0, 0) would be
    region: int
    of_class: int
    start: int


class Work(NamedTuple):
    """All that a task needs to know."""

    job: Job
    part: Round
    regions: Regions
    piece: Piece


def locate_regions(plan: RoiPlan, boxes: np.ndarray) -> Regions:
    """All that is known of a region before its offsets are."""
    image = boxes[:, 0].astype(np.int64)
    order = np.argsort(image, kind="stable")
    images, first = np.unique(image[order], return_index=True)
    real = boxes.dtype.type
    bins = np.array(plan.bins, real)
    with np.errstate(all="ignore"):  # boxes may be anything
        start, size = _extent(plan, boxes[order, 1:].reshape(-1, 2, 2)[..., ::-1])
        nowhere = ~np.isfinite(start + size).all(1)
        start[nowhere], size[nowhere] = np.nan, 0  # nothing is inside, and nothing moves it
        bin_size = size / bins
        counts = np.ceil(bin_size) if plan.samples == 0 else np.full_like(size, plan.samples)
        counts = np.clip(np.nan_to_num(counts), 0, _COUNTABLE)
        spacing = bin_size / np.maximum(counts, 1)
        numbers = np.empty((plan.regions, NUMBERS), real)
        numbers[:, :8].reshape(-1, 2, 4)[...] = np.stack(
            [start, size, spacing, real(plan.offset_scale) * size], -1
        )
        numbers[:, 8] = 1 / np.maximum(counts.astype(np.float64).prod(1), 1)
    return Regions(
        numbers.reshape(-1),
        counts.astype(np.int64).reshape(-1),
        np.searchsorted(images, image[order]),
        order,
        images.astype(np.int64),
        np.append(first, plan.regions).astype(np.int64),
    )


def _extent(plan: RoiPlan, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and size along y and x of boxes (R, 2, 2): upper left and lower right corner."""
    scale = corners.dtype.type(plan.scale)
    half = corners.dtype.type(0.5)
    first, last = corners[:, 0], corners[:, 1]
    if plan.region in ("corner", "center"):
        shift = half if plan.region == "center" else 0 * half
        start = first * scale - shift
        size = last * scale - shift - start
        return start, np.maximum(size, 1) if plan.region == "corner" else size
    if plan.region in ("pixel", "half_open"):
        start = _rounded(first * scale)
        size = _rounded(last * scale) - start + (plan.region == "pixel")
        return start, np.maximum(size, 1)
    shift = half if plan.region == "msra_center" else 0 * half
    start = _rounded(first) * scale - shift
    size = (_rounded(last) + 1) * scale - shift - start
    return start, np.maximum(size, corners.dtype.type(0.1))


def _rounded(values: np.ndarray) -> np.ndarray:
    """To whole numbers, halves away from zero."""
    whole = np.trunc(values)
    return whole + np.copysign(np.abs(values - whole) >= 0.5, values)


def job_of(plan: RoiPlan, itemsize: int, tasks: int) -> Job:
    """`tasks` is how many there would be if a slice had all channels of a class in a group."""
    channels = plan.out_channels // plan.classes
    most = SCRATCH_BYTES // (plan.height * plan.width * itemsize)
    widest = max(min(_WIDEST, most // _LANES * _LANES), _LANES)
    while widest > _NARROW and tasks * -(-channels // widest) < _ENOUGH_TASKS:
        widest = max(widest // 2 // _LANES * _LANES, _NARROW)
    pitch = channels
    if channels >= _PADDED:
        pitch = -(-channels // -(-channels // widest))  # slices about equal
        pitch = -(-pitch // _LANES) * _LANES
    return Job(
        plan.height,
        plan.width,
        *plan.bins,
        *plan.groups,
        plan.classes,
        channels,
        *plan.part,
        int(plan.deformable),
        int(plan.modulated),
        int(plan.reads == "corners"),
        int(plan.reads in ("mean", "max")),
        int(plan.reads == "max"),
        int(plan.region in ("pixel", "half_open")),
        min(pitch, channels),
        pitch,
        min(max(_TILE // plan.bins[1], 1), plan.bins[0]) * plan.bins[1],
        max(plan.height, plan.width) + 2,
    )


def rounds(job: Job, images: int, itemsize: int) -> Iterator[Round]:
    """Rounds whose slices take at most `SCRATCH_BYTES`, but one slice at least."""
    counts = [images, job.classes, job.groups_y * job.groups_x]
    counts.append(-(-job.channels // job.slice_channels))
    most = SCRATCH_BYTES // (job.height * job.width * job.pitch * itemsize)
    steps = []
    for count in reversed(counts):  # all of what is inside before more than one of what is outside
        step = max(min(most, count), 1)
        steps.insert(0, step)
        most = most // count if step == count else 1
    for u in range(0, counts[0], steps[0]):
        for c in range(0, counts[1], steps[1]):
            for g in range(0, counts[2], steps[2]):
                for s in range(0, counts[3], steps[3]):
                    begins = (u, c, g, s)
                    ends = (
                        min(b + step, count)
                        for b, step, count in zip(begins, steps, counts, strict=True)
                    )
                    yield Round(*(n for pair in zip(begins, ends, strict=True) for n in pair))


def pieces(
    job: Job,
    regions: Regions,
    part: Round,
    offset: np.ndarray | None,
    mask: np.ndarray | None,
    like: np.ndarray,
) -> Iterator[tuple[Piece, np.ndarray | None]]:
    """The regions of a round: all at once, or if they have 16 bits, a few in a wider dtype.

    With those comes which regions they are.
    """
    begin, end = (int(regions.first[u]) for u in (part.image_begin, part.image_end))
    bins = job.bins_y * job.bins_x
    wide = sum_dtype(like.dtype)
    flat = [frozen(array, like) for array in (offset, mask)]
    if like.dtype == wide:
        of_class = job.channels * bins
        yield Piece(begin, end, regions.order, *flat, job.classes * of_class, of_class, 0), None
        return
    channels = part.channels(job)
    of_class = (channels.stop - channels.start) * bins
    size = (part.class_end - part.class_begin) * of_class
    start = -part.class_begin * of_class - channels.start * bins
    most = max(SCRATCH_BYTES // 2 // (size * wide.itemsize), 1)
    for first in range(begin, end, most):
        last = min(first + most, end)
        chosen = regions.order[first:last]
        flat = [
            frozen(None if array is None else array[chosen].astype(wide), np.empty(0, wide))
            for array in (offset, mask)
        ]
        rows = np.arange(len(regions.order)) - first
        yield Piece(first, last, rows, *flat, size, of_class, start), chosen
