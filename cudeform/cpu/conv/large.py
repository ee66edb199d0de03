"""Convolutions too large for a workspace, and of arrays that lie anyhow: one piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from cudeform.cpu.conv.convolve import convolve
from cudeform.cpu.conv.pieces import (
    Piece,
    Range,
    Rectangle,
    channel_ranges,
    fitted,
    inside,
    most_channels,
    most_taps,
    plan_of,
    rectangles,
    regions,
    single_taps,
)
from cudeform.cpu.language.dtypes import add, copied, copy
from cudeform.plans.convolution import ConvPlan

_ROOM = 3 << 20  # bytes of each array of a piece

OffsetOrMask = np.ndarray | None


class Box(NamedTuple):
    """Part of a piece, and what its points in some pixels of the input are computed from."""

    part: Piece
    pixels: Rectangle
    offset: OffsetOrMask
    mask: OffsetOrMask
    first: bool = True  # or the only one of these output pixels
    here: np.ndarray | None = None  # output pixels that it is for; None: all  # (Ho, Wo)

    def keep(self, values: np.ndarray) -> np.ndarray:
        """The values of the output pixels that it is for, and 0 in place of others."""
        if self.here is not None:
            np.copyto(values, 0, where=~self.here)
        return values


@dataclass(frozen=True)
class Arrays:
    """What a call reads, or writes, as views with the channels first."""

    plan: ConvPlan
    wide: np.dtype  # of what is computed
    input: np.ndarray | None = None  # (N, C, H, W)
    offset: np.ndarray | None = None  # (N, offset_groups, kh, kw, 2, Ho, Wo)
    mask: np.ndarray | None = None  # (N, offset_groups, kh, kw, Ho, Wo)
    weight: np.ndarray | None = None  # (O, C/groups, kh, kw)
    output: np.ndarray | None = None  # (N, O, Ho, Wo), or its gradient

    @property
    def dense(self) -> bool:
        return self.weight is not None

    @property
    def room(self) -> int:
        return _ROOM // self.wide.itemsize

    def image(self, piece: Piece, box: Rectangle) -> np.ndarray:
        """What of the input a piece reads, copied."""
        place = piece.image, slice(*piece.channels), *box.place
        return copied(self.input[place], self.wide)[None]

    def weights(self, piece: Piece) -> np.ndarray | None:
        """The weight of a piece, copied."""
        return copied(self.weight[piece.weights(self.plan)], self.wide) if self.dense else None

    def points(self, piece: Piece) -> tuple[OffsetOrMask, OffsetOrMask]:
        """Offset and mask of a piece, copied."""
        groups, kernel = piece.offset_groups(self.plan), piece.taps.place
        place = (piece.image, groups, *kernel)
        return tuple(
            None if array is None else copied(array[place][(..., *piece.pixels.place)], self.wide)
            for array in (self.offset, self.mask)
        )

    def outputs(self, piece: Piece) -> np.ndarray:
        """The output of a piece, copied."""
        place = piece.image, piece.outputs(self.plan, self.dense), *piece.pixels.place
        return copied(self.output[place], self.wide)

    def rectangles(self, times: int = 1) -> Iterator[Rectangle]:
        """Of output pixels, of which no array has more elements than there is room for."""
        points = self.plan.points
        taps = most_taps(self.plan, self.dense)
        taps = 6 * points.offset_groups * taps if self.plan.deformable else 1
        most = max(self.plan.out_channels, taps, 2 * points.channels) * times
        return rectangles(points.out_height, points.out_width, max(self.room // most, 1))

    def taps(self) -> Iterator[Rectangle]:
        """Of the kernel, as many as a piece has."""
        return rectangles(*self.plan.points.kernel, most_taps(self.plan, self.dense))

    def channels(self, most: int | None = None) -> Iterator[Range]:
        """As many as a piece has."""
        most = min(most or self.plan.points.channels, max(self.room // 64, 1))
        return channel_ranges(self.plan, min(most_channels(self.plan, self.dense), most))


def views(plan: ConvPlan, wide: np.dtype, weight: np.ndarray | None, **arrays) -> Arrays:
    """The arrays of a call, or of its gradients, as they lie."""
    points = plan.points
    shape = points.offset_groups, *points.kernel
    found = {}
    for name, array in arrays.items():
        if array is None:
            continue
        last = points.offset_layout if name in ("offset", "mask") else points.layout
        if name in ("offset", "mask"):
            pixels = points.out_height, points.out_width
            if last == "NHWC":
                array = np.moveaxis(array.reshape(points.batch, *pixels, -1), -1, 1)
            pair = (2,) if name == "offset" else ()
            array = array.reshape(points.batch, *shape, *pair, *pixels)
        elif last == "NHWC":
            array = np.moveaxis(array, -1, 1)
        found[name] = array
    return Arrays(plan, wide, weight=weight, **found)


def boxes(call: Arrays, piece: Piece, factors: Callable[[Piece], np.ndarray]) -> Iterator[Box]:
    """A piece in parts that fit, where the points of one lie too far apart box by box.

    A point reads 0 in the boxes that it does not lie in. Where the `factors` of the samples of a
    part are not finite, that 0 would make NaN of them: then a box has one point for each output
    pixel, and is for the pixels whose point lies in it.
    """
    offset, mask = call.points(piece)
    for part, box in fitted(call.plan, piece, offset, call.room):
        if box is not None:
            yield Box(part, box, *(flat(inside(array, piece, part)) for array in (offset, mask)))
            continue
        alone = call.dense and not np.isfinite(factors(part)).all()
        for own in single_taps(call.plan, part) if alone else [part]:
            points, first = call.points(own), True
            for box, here in regions(call.plan, own, points[0], call.room):
                pixels = here[0, 0, 0] if alone else None
                yield Box(own, box, *only(here, *points), first or alone, pixels)
                first = False


def only(
    here: np.ndarray, offset: np.ndarray, mask: OffsetOrMask
) -> tuple[OffsetOrMask, OffsetOrMask]:
    """Offset and mask with which the points that are not `here` read nothing."""
    offset = np.where(here[:, :, :, None], offset, offset.dtype.type(np.nan))
    mask = None if mask is None else np.where(here, mask, mask.dtype.type(0))
    return flat(offset), flat(mask)


def flat(array: OffsetOrMask) -> OffsetOrMask:
    """The offset or mask of a piece as a convolution takes it."""
    return None if array is None else array.reshape(1, -1, *array.shape[-2:])


def convolve_pieces(
    plan: ConvPlan, given: dict[str, np.ndarray | None], output: np.ndarray, wide: np.dtype
) -> None:
    """Fill `output`, in any dtype, from arrays of any strides."""
    images = {name: given[name] for name in ("input", "offset", "mask")}
    call = views(plan, wide, given["weight"], **images, output=output)
    for image in range(plan.points.batch):
        for pixels in call.rectangles():
            sums = np.zeros((plan.out_channels, pixels.height, pixels.width), wide)
            for channels, taps in product(call.channels(), call.taps()):
                piece = Piece(image, channels, taps, pixels)
                _convolve_piece(call, piece, given["bias"], sums)
            copy(sums, call.output[(image, slice(None), *pixels.place)])


def _convolve_piece(call: Arrays, piece: Piece, bias: np.ndarray | None, sums: np.ndarray) -> None:
    """Add what a piece adds to the output of its pixels; the first one begins with the bias."""
    plan, wide = call.plan, call.wide
    for box in boxes(call, piece, call.weights):
        part = box.part
        outputs = part.outputs(plan, call.dense)
        begins = not call.dense or part.channels[0] % plan.in_channels == 0
        own = plan_of(plan, part, box.pixels, call.dense)
        fresh = box.first and begins and part.has_first_tap
        start = copied(bias[outputs], wide) if fresh and bias is not None else None
        found, image = np.empty(own.out_shape, wide), call.image(part, box.pixels)
        convolve(own, image, box.offset, call.weights(part), start, box.mask, found)
        target = sums[(outputs, *part.pixels.within(piece.pixels))]
        if fresh and box.here is None:
            target[...] = found[0]
        else:
            add(box.keep(found[0]), target)
