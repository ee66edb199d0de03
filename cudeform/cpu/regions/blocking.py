"""How a pooling of regions is cut up on the CPU.

A slice is some channels of one class and one group of
an image: the channels that the same bins read, side by side in memory. Slices follow from shapes
alone; what is laid out at a time, a round, follows from the images that have boxes as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product, repeat
from math import prod
from operator import add
from typing import NamedTuple

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.language import workspace
from cudeform.cpu.language.bare import bare, records
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.regions.extents import Regions, count_covered, count_pixels, regions_in
from cudeform.plans.regions import RoiPlan

_LANES = 16  # slices are multiples of so many channels
_PADDED = 8  # channels that are worth a slice of `_LANES`
_WIDEST = 256  # channels of a slice
_NARROW = 32  # channels of a slice that are worth locating its bins
_ENOUGH_TASKS = 8
_PLANES = 12  # channels of a slice whose planes are used as they lie, for the cache
_PIXELS = 8  # that a bin reads, about
_TILE = 128  # bins, or one row of them
_TILE_SLOTS = 2**17  # numbers for what the bins of a tile read, if it has more than one row
_GATHERED = 4  # times what a pixel that is laid out takes, one that is read where it lies takes
_WORTH_COUNTING = 2**20  # elements to lay out


class Job(NamedTuple):
    """What kernels need to know of a `RoiPlan`."""

    height: int
    width: int
    rows: int  # of a frame: how much of an image is laid out
    columns: int
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
    corners: int  # 1: reads "grid_corners"
    covers: int  # 1: reads "pixels"
    largest: int
    whole: int  # 1: regions start at whole pixels
    unread: int  # rows and columns at the far edges that no bin covers
    slice_channels: int
    pitch: int  # from one pixel's channels of a slice to the next
    tile: int  # bins, in whole rows
    slot: int  # numbers for what a bin reads along an axis


class Round(NamedTuple):
    """What is worked on at a time: ranges of frames, classes, groups, slices."""

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
        """Frames, classes, channels of one, groups and pixels of a frame."""
        spans = (self.images, self.classes, self.channels(job), self.groups)
        return (*(span.stop - span.start for span in spans), job.rows * job.columns)


class Span(NamedTuple):
    """A range of regions, and where their results are."""

    begin: int
    end: int
    # Strides of results (regions, classes, channels, bins), and where (0, 0, 0, 0) would be
    region: int
    of_class: int
    start: int
    row: int  # the region that is the first of the arrays of the piece; -1: these are of all boxes
    # All regions of a call, and frames that there is room for
    regions: int
    frames: int
    cleared: int = 0  # elements of each plane, before what regions spread is added


def whole_span(job: Job, begin: int, end: int, regions: int, frames: int) -> Span:
    """The span of a piece whose arrays are of all boxes."""
    of_class = job.channels * job.bins_y * job.bins_x
    return Span(begin, end, job.classes * of_class, of_class, 0, -1, regions, frames)


class Piece(NamedTuple):
    """What kernels read and write of some regions, in the dtype of sums."""

    span: Span
    offset: np.ndarray
    mask: np.ndarray


class Work(NamedTuple):
    """All that a task needs to know."""

    job: Job
    part: Round
    regions: Regions
    piece: Piece


# The integers of the work, then arrays: numbers and integers of regions, offset, mask
Packed = tuple[np.ndarray, ...]


def packed(work: Work, clears: bool = False) -> Packed:
    """The work as kernels take it; planes of images that are added to are zeros, or are cleared."""
    job, part, regions, (span, offset, mask) = work
    if clears:
        span = span._replace(cleared=job.height * job.width)
    return numbers_of(job, part, span), regions.numbers, regions.integers, offset, mask


_read = records(Job, Round, Span)


@inlined
def unpacked(given):
    """The inverse of `packed`, for kernels."""
    integers, numbers, places, offset, mask = given
    job, part, span = _read(integers)
    regions = regions_in(numbers, places, span.regions, span.frames)
    return Work(job, part, regions, Piece(span, bare(offset, 0), bare(mask, 0)))


def averages_planes(plan: RoiPlan) -> bool:
    """Whether the plan averages pixels of planes as they lie: with few channels for each bin."""
    return plan.reads == "pixels" and not plan.largest and plan.groups != (1, 1)


def effort(plan: RoiPlan) -> int:
    """Multiplications of a pooling, about."""
    samples = plan.samples**2 or _PIXELS
    return plan.regions * plan.out_channels * plan.bins[0] * plan.bins[1] * samples * 4


def effort_of(plan: RoiPlan, regions: Regions) -> int:
    """The same, more exactly where each region says how many pixels it reads."""
    if plan.samples or averages_planes(plan):
        return effort(plan)
    return max(int(count_covered(plan, regions) * plan.out_channels * 4), 1)


def count_groups(plan: RoiPlan, regions: Regions) -> int:
    """Tasks that go through all regions of an image, if each had all channels of a group."""
    return len(regions.images) * plan.classes * plan.groups[0] * plan.groups[1]


@lru_cache(maxsize=256)
def job_of(
    plan: RoiPlan,
    itemsize: int,
    tasks: int,
    planes: bool = False,
    frame: tuple[int, int] | None = None,
    enough: int = 1,
) -> Job:
    """How to cut a pooling up; with `planes` into slices that are not laid out.

    A frame has so many rows and columns; None is a whole image.

    `tasks` is how many there would be if a slice had all channels of a class in a group. Where they
    are not `enough`, slices are narrower: for sums of each channel alone that changes no bit.
    """
    channels = plan.out_channels // plan.classes
    rows, columns = frame or (plan.height, plan.width)
    most = workspace.SCRATCH_BYTES // (rows * columns * itemsize)
    widest = max(min(_WIDEST, most // _LANES * _LANES), _LANES)
    while widest > _NARROW and tasks * -(-channels // widest) < max(_ENOUGH_TASKS, enough):
        widest = max(widest // 2 // _LANES * _LANES, _NARROW)
    pitch = channels
    if planes:
        pitch = -(-channels // max(-(-channels // _PLANES), min(-(-enough // tasks), channels)))
    elif channels >= _PADDED:
        pitch = -(-channels // -(-channels // widest))  # slices about equal
        pitch = -(-pitch // _LANES) * _LANES
    slot = 2 * max(plan.height, plan.width) + 2
    high = min(_TILE, _TILE_SLOTS // slot) // plan.bins[1]
    high = min(max(high, 1), plan.bins[0])
    return Job(
        plan.height,
        plan.width,
        rows,
        columns,
        *plan.bins,
        *plan.groups,
        plan.classes,
        channels,
        *plan.part_size,
        int(plan.deformable),
        int(plan.modulated),
        int(plan.reads == "grid_corners"),
        int(plan.reads == "pixels"),
        int(plan.largest),
        int(plan.region in ("closed", "half_open")),
        plan.unread,
        min(pitch, channels),
        pitch,
        high * plan.bins[1],
        slot,
    )


def reads_planes(plan: RoiPlan, job: Job, regions: Regions, itemsize: int) -> bool:
    """Whether planes are read as they lie, because little of them is read, or a slice of an image
    is too large to be laid out.
    """
    area = job.height * job.width
    if area * job.pitch * itemsize > workspace.SCRATCH_BYTES:
        return True
    pixels = len(regions.images) * area
    if pixels * plan.channels < _WORTH_COUNTING:
        return False
    return _GATHERED * count_pixels(plan, regions) < pixels


@lru_cache(maxsize=256)
def count_slices(part: Round) -> int:
    """Slices in the frames of a round, each of one class and one group."""
    return prod(end - begin for begin, end in zip(part[::2], part[1::2], strict=True))


def group_rows(job: Job, part: Round) -> tuple[int, int]:
    """The rows of groups that a round has groups of, from the first up to the last."""
    return part.group_begin // job.groups_x, (part.group_end - 1) // job.groups_x + 1


@lru_cache(maxsize=256)
def count_rows(job: Job, part: Round) -> int:
    """As `count_slices`, with all groups of a row together."""
    begin, end = group_rows(job, part)
    return count_slices(part._replace(group_begin=begin, group_end=end))


@inlined
def place_of(part, groups, task):
    """(frame, class, group, slice) of a task of a round, which has groups, or rows of these, from
    one up to another.
    """
    slices = part.slice_end - part.slice_begin
    count, classes = groups[1] - groups[0], part.class_end - part.class_begin
    s = part.slice_begin + task % slices
    g = groups[0] + task // slices % count
    c = part.class_begin + task // (slices * count) % classes
    return part.image_begin + task // (slices * count * classes), c, g, s


def one_round(job: Job, frames: int) -> Round:
    """All at once."""
    slices = -(-job.channels // job.slice_channels)
    return Round(0, frames, 0, job.classes, 0, job.groups_y * job.groups_x, 0, slices)


@remembered
def rounds(job: Job, images: int, itemsize: int) -> list[Round]:
    """Rounds whose slices take at most `SCRATCH_BYTES`, but one slice at least."""
    counts = [images, job.classes, job.groups_y * job.groups_x]
    counts.append(-(-job.channels // job.slice_channels))
    most = workspace.SCRATCH_BYTES // (job.rows * job.columns * job.pitch * itemsize)
    steps = []
    for count in reversed(counts):  # all of what is inside before more than one of what is outside
        step = max(min(most, count), 1)
        steps.insert(0, step)
        most = most // count if step == count else 1
    result = []
    for begins in product(*map(range, repeat(0), counts, steps)):
        ends = map(min, map(add, begins, steps), counts)
        result.append(Round(*(n for pair in zip(begins, ends, strict=True) for n in pair)))
    return result


def taken_whole(dtype: np.dtype, *arrays: np.ndarray | None) -> bool:
    """Whether kernels get arrays whole: in the dtype of sums, and copied only if that is little."""
    given = [array for array in arrays if array is not None]
    copied = sum(array.nbytes for array in given if not array.flags.c_contiguous)
    return dtype == sum_dtype(dtype) and copied <= workspace.SCRATCH_BYTES // 2


def pieces(
    job: Job,
    regions: Regions,
    part: Round,
    offset: np.ndarray | None,
    mask: np.ndarray | None,
    wide: np.dtype,
    whole: bool,
) -> Iterator[tuple[Piece, np.ndarray | None]]:
    """The regions of a round: all at once, or a few in a wider dtype, and contiguous.

    With those comes which regions they are.
    """
    begin, end = int(regions.first[part.image_begin]), int(regions.first[part.image_end])
    bins = job.bins_y * job.bins_x
    like, count = np.empty(0, wide), (len(regions.order), regions.frames)
    if whole:
        span = whole_span(job, begin, end, *count)
        yield Piece(span, frozen(offset, like), frozen(mask, like)), None
        return
    channels = part.channels(job)
    of_class = (channels.stop - channels.start) * bins
    size = (part.class_end - part.class_begin) * of_class
    start = -part.class_begin * of_class - channels.start * bins
    most = max(workspace.SCRATCH_BYTES // 2 // (size * wide.itemsize), 1)
    for first in range(begin, end, most):
        last = min(first + most, end)
        chosen = regions.order[first:last]
        flat = [
            frozen(None if array is None else array[chosen].astype(wide), like)
            for array in (offset, mask)
        ]
        yield Piece(Span(first, last, size, of_class, start, first, *count), *flat), chosen


def by_class(job: Job, results: np.ndarray) -> np.ndarray:
    """Results, or what belongs to them, as they lie.  # (R, classes, channels of one, ph, pw)"""
    return results.reshape(len(results), job.classes, job.channels, job.bins_y, job.bins_x)
