"""Pieces of a convolution that is too large at once, each a small convolution of its own.

A piece is some taps of a rectangle of output pixels, for some of the channels of one image. It
reads a box of pixels, which is a small image. Where its points lie too far apart for a box, there
are several boxes, and each is read by the points that lie in it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isqrt
from typing import NamedTuple

import numpy as np

from cudeform.plans.convolution import ConvPlan
from cudeform.plans.points import Points

MOST_TAPS = 2048  # of a piece: a thread has about 6 kB for each
MOST_WEIGHTS = 1 << 19  # elements of a piece
_WIDE = 16  # channels that are worth a piece
_SMALLER = 0.9  # times the box of a piece: halves of it are worth their while
_SPARSE = 64  # pixels of a box for each point: it is worth looking for smaller ones
_FAR = 2**40  # pixels: no image is as large

Range = tuple[int, int]


class Rectangle(NamedTuple):
    """Pixels of an image, of the input or of the output."""

    rows: Range
    columns: Range

    @property
    def place(self) -> tuple[slice, slice]:
        return slice(*self.rows), slice(*self.columns)

    def within(self, other: Rectangle) -> tuple[slice, slice]:
        """The place in a larger rectangle."""
        return tuple(
            slice(first - start, last - start)
            for (first, last), (start, _) in zip(self, other, strict=True)
        )

    def common(self, other: Rectangle) -> Rectangle:
        """The pixels that are in another one too."""
        spans = zip(self, other, strict=True)
        return Rectangle(*((max(a[0], b[0]), min(a[1], b[1])) for a, b in spans))

    def grown(self, points: Points) -> Rectangle:
        """With the pixels of an input around it."""
        sizes = zip(self, (points.height, points.width), strict=True)
        return Rectangle(*((max(a - 1, 0), min(b + 1, size)) for (a, b), size in sizes))

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]


class Piece(NamedTuple):
    """What is computed at a time."""

    image: int
    channels: Range  # of the input
    taps: Rectangle  # of the kernel
    pixels: Rectangle  # of the output

    @property
    def has_first_tap(self) -> bool:
        return self.taps.rows[0] == self.taps.columns[0] == 0

    def outputs(self, plan: ConvPlan, dense: bool) -> slice:
        """The channels of the output that it belongs to."""
        if not dense:
            return slice(*self.channels)
        each = plan.out_channels // plan.groups
        first = self.channels[0] // plan.in_channels
        last = -(-self.channels[1] // plan.in_channels)
        return slice(first * each, last * each)

    def offset_groups(self, plan: ConvPlan) -> slice:
        size = plan.points.group_channels
        return slice(self.channels[0] // size, -(-self.channels[1] // size))

    def weights(self, plan: ConvPlan) -> tuple[slice, ...]:
        """Where its weights are among all."""
        first, last = self.channels
        at = first % plan.in_channels
        inputs = slice(at, min(at + last - first, plan.in_channels))
        return self.outputs(plan, True), inputs, *self.taps.place


def single_taps(plan: ConvPlan, piece: Piece) -> Iterator[Piece]:
    """Cut a piece into those that have one point for each output pixel."""
    points, channels = plan.points, [piece.channels]
    if piece.channels == (0, points.channels):  # else it is of one offset group
        channels = channel_ranges(plan, points.group_channels)
    for some in channels:
        for tap in rectangles(piece.taps.height, piece.taps.width, 1):
            moved = (
                (first + start, last + start)
                for (first, last), (start, _) in zip(tap, piece.taps, strict=True)
            )
            yield piece._replace(channels=some, taps=Rectangle(*moved))


def plan_of(plan: ConvPlan, piece: Piece, box: Rectangle, dense: bool) -> ConvPlan:
    """The plan of a piece whose image is a box of pixels."""
    points = plan.points
    channels = piece.channels[1] - piece.channels[0]
    outputs = piece.outputs(plan, dense)
    groups = piece.offset_groups(plan)
    own = replace(
        points,
        batch=1,
        channels=channels,
        height=box.height,
        width=box.width,
        out_height=piece.pixels.height,
        out_width=piece.pixels.width,
        kernel=(piece.taps.height, piece.taps.width),
        origin=tuple(
            first - box[axis][0] for axis, (first, _) in enumerate(_whole_numbers(plan, piece))
        ),
        offset_groups=groups.stop - groups.start,
        layout="NCHW",
        offset_layout="NCHW",
    )
    return replace(
        plan,
        points=own,
        out_channels=outputs.stop - outputs.start,
        groups=max(channels // plan.in_channels, 1) if dense else 1,
    )


def _whole_numbers(plan: ConvPlan, piece: Piece) -> list[Range]:
    """The first and the last place along y and x where points would be without offsets."""
    points = plan.points
    found = []
    for axis in range(2):
        (tap, last_tap), (pixel, last_pixel) = piece.taps[axis], piece.pixels[axis]
        step, pace = points.stride[axis], points.dilation[axis]
        first = points.origin[axis] + pixel * step + tap * pace
        found.append((first, first + (last_pixel - 1 - pixel) * step + (last_tap - 1 - tap) * pace))
    return found


def rectangles(height: int, width: int, most: int) -> Iterator[Rectangle]:
    """Rectangles of at most so many pixels that make up an image, about as high as wide."""
    columns = _equal(width, min(max(isqrt(most), most // height), width))
    rows = _equal(height, min(max(most // columns, 1), height))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            bottom, right = min(top + rows, height), min(left + columns, width)
            yield Rectangle((top, bottom), (left, right))


def _equal(size: int, most: int) -> int:
    """The length of ranges, about equal ones, of at most so many that make up `size`."""
    return -(-size // -(-size // most))


def most_taps(plan: ConvPlan, dense: bool) -> int:
    """Of a piece, so that it has enough channels."""
    each = plan.out_channels // plan.groups if dense else 1
    return max(min(plan.points.taps, MOST_TAPS, MOST_WEIGHTS // (each * _WIDE)), 1)


def most_channels(plan: ConvPlan, dense: bool) -> int:
    """Of a piece, so that it does not have too many weights."""
    each = plan.out_channels // plan.groups if dense else 1
    return max(MOST_WEIGHTS // (each * most_taps(plan, dense)), 1)


def channel_ranges(plan: ConvPlan, most: int) -> Iterator[Range]:
    """Ranges of channels: all, or of one offset group, and whole weight groups or of one alone."""
    channels, own = plan.points.channels, plan.in_channels
    if channels <= most:
        yield 0, channels
        return
    size = plan.points.group_channels
    at = 0
    while at < channels:
        end = at + size - at % size
        if own <= most and at % own == 0 and at + own <= end:
            last = at + min(most, end - at) // own * own
        else:
            last = min(at + most, end, at + own - at % own)
        yield at, last
        at = last


def fitted(
    plan: ConvPlan, piece: Piece, offset: np.ndarray | None, room: int
) -> Iterator[tuple[Piece, Rectangle | None]]:
    """Cut a piece until the box that it reads has at most `room` elements.

    Where that does not make boxes smaller, as points lie anywhere, there is no box. The offset is
    of this piece alone.  # (offset_groups, kh, kw, 2, Ho, Wo)
    """
    box = _box(plan, piece, offset)
    fits = box.area * (piece.channels[1] - piece.channels[0]) <= room
    if fits and box.area <= _SPARSE * piece.pixels.area * piece.taps.area:
        yield piece, box
        return
    for name in ("pixels", "taps"):
        cut = [(part, inside(offset, piece, part)) for part in _halves(piece, name)]
        if cut and min(_box(plan, *part).area for part in cut) <= _SMALLER * box.area:
            for part in cut:
                yield from fitted(plan, *part, room)
            return
    yield piece, box if fits else None


def inside(array: np.ndarray | None, whole: Piece, part: Piece) -> np.ndarray | None:
    """What of the offset or the mask of a piece belongs to a part of it."""
    if array is None:
        return None
    taps, pixels = part.taps.within(whole.taps), part.pixels.within(whole.pixels)
    return array[(slice(None), *taps)][(..., *pixels)]


def _halves(piece: Piece, name: str) -> list[Piece]:
    """Cut the longer side of a piece's "taps" or "pixels"; none of one alone."""
    whole = getattr(piece, name)
    if whole.area == 1:
        return []
    side = "rows" if whole.height >= whole.width else "columns"
    first, last = getattr(whole, side)
    middle = (first + last) // 2
    cut = [whole._replace(**{side: span}) for span in ((first, middle), (middle, last))]
    return [piece._replace(**{name: half}) for half in cut]


def _box(plan: ConvPlan, piece: Piece, offset: np.ndarray | None) -> Rectangle:
    """What holds all pixels that a piece reads."""
    points, sides = plan.points, []
    for axis, size in enumerate((points.height, points.width)):
        first, last = _whole_numbers(plan, piece)[axis]
        if offset is not None:
            own = offset[:, :, :, axis]
            low, high = float(np.fmin.reduce(own, None)), float(np.fmax.reduce(own, None))
            if low == low:  # else all are NaN, and read nothing
                # whole numbers are added, lest a bit less than 0 is lost
                first = int(min(max(first + np.floor(low), -1.0), size))
                last = int(min(max(last + np.floor(high), -1.0), size))
        first = min(max(first, 0), size - 1)
        sides.append((first, min(max(last + 2, first + 1), size)))
    return Rectangle(*sides)


def regions(
    plan: ConvPlan, piece: Piece, offset: np.ndarray, room: int
) -> Iterator[tuple[Rectangle, np.ndarray]]:
    """Boxes, each with which points lie in it, of a piece whose points lie anywhere.

    A point is in the box of its top left corner, and one that reads nothing in the first: each is
    in one box. There is one box at least.
    """
    points = plan.points
    side = max(isqrt(room // (piece.channels[1] - piece.channels[0])) - 1, 1)
    corner = corners_of(plan, piece, offset)
    sizes = points.height, points.width
    read = (corner[0] >= -1) & (corner[0] < sizes[0]) & (corner[1] >= -1) & (corner[1] < sizes[1])
    across = sizes[1] // side + 1
    number = (corner[0] + 1) // side * across + (corner[1] + 1) // side
    number[~read] = number[read].min() if read.any() else 0
    for each in np.unique(number):
        place = divmod(int(each), across)
        spans = [
            (max(at * side - 1, 0), min((at + 1) * side, size))
            for at, size in zip(place, sizes, strict=True)
        ]
        yield Rectangle(*spans), number == each


def corners_of(plan: ConvPlan, piece: Piece, offset: np.ndarray) -> list[np.ndarray]:
    """Rows and columns of the top left corners of points; far away where there is none."""
    points, found = plan.points, []
    for axis in range(2):
        (tap, last_tap), (pixel, last_pixel) = piece.taps[axis], piece.pixels[axis]
        taps = np.arange(tap, last_tap) * points.dilation[axis] + points.origin[axis]
        pixels = np.arange(pixel, last_pixel) * points.stride[axis]
        shape = [[-1, 1, 1, 1], [-1, 1, 1]][axis], [[-1, 1], [-1]][axis]
        offsets = np.floor(offset[:, :, :, axis])
        near = np.abs(offsets) < _FAR  # not NaN either
        offsets = np.where(near, offsets, _FAR).astype(np.int64)
        found.append(taps.reshape(shape[0]) + pixels.reshape(shape[1]) + offsets)
    return found
