"""Columns of samples and their transposes, by the kernels of ``sampling.cu``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from cudeform.arrays import DTYPES, dtype_name, offset_dtypes, sum_dtype
from cudeform.cuda import layout, sort
from cudeform.cuda.chunks import Chunk, chunks
from cudeform.cuda.compile import DIVISOR, SCALARS, Unit, along, pack
from cudeform.cuda.device import Device
from cudeform.cuda.lanes import (
    GATHER_THREADS,
    LANES,
    THREADS,
    Choice,
    aligned,
    choose,
    choose_gather,
    choose_tiles,
    vector_of,
    vectors,
)
from cudeform.plans.points import BORDERS, Points

PARAMS = np.dtype(
    [("height", "i4"), ("input_channels", "i4")]
    + [(name, DIVISOR) for name in (
        "width", "out_width", "chunk_pixels", "kernel_width", "taps", "offset_groups",
        "block_channels",
    )]
    + [(name, "i4") for name in (
        "first_pixel", "images",
        "stride_y", "stride_x", "origin_y", "origin_x", "dilation_y", "dilation_x",
        "border", "plain", "group_channels", "first_channel", "channels", "blocks", "even",
        "points", "tile", "lane_bits", "accumulate",
    )]
    + [(name, "i8") for name in (
        "offset_image", "offset_channel", "offset_pixel",
        "mask_image", "mask_channel", "mask_pixel",
    )],
    align=True,
)  # fmt: skip
_SIZES = (("THREADS", THREADS), ("GATHER_THREADS", GATHER_THREADS), ("LANES", LANES))
GRADIENT_BYTES = 192 << 20  # gradients of columns, and what is kept of every point


@lru_cache(maxsize=512)
def _unit(dtype: str, offset: str, vector: int, index: str) -> Unit:
    types = (("SCALAR", SCALARS[dtype]), ("OFFSET", SCALARS[offset]))
    return Unit("sampling.cu", (*types, ("VEC", str(vector)), ("INDEX", index)), PARAMS, _SIZES)


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from layout.units()
    yield from sort.units()
    for dtype, index in product(DTYPES, ("int", "long long")):
        for offset, vector in product(offset_dtypes(dtype), vectors(dtype)):
            yield _unit(dtype, offset, vector, index)


class Block(NamedTuple):
    """Channels that a launch works on; its columns are [pixel][channels / width][tap][width]."""

    first: int
    channels: int
    width: int


class PointSums(NamedTuple):
    """What the gradients of the points of a chunk are made of, or None where it is not needed."""

    dots: Any  # (points, 4), summed over blocks of channels if there are several
    keys: Any  # (points,)
    fractions: Any  # (points, 4)


class Gradients(NamedTuple):
    """Where the gradients of a call go: arrays of the whole batch, or None where not needed."""

    input: Any = None
    offset: Any = None
    mask: Any = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(name for name in self._fields if getattr(self, name) is not None)


def _strides(name: str, points: Points, channels: int) -> dict[str, int]:
    """Fields of a Params: elements of an array from an image, a channel, a pixel to the next."""
    strides = points.offset_strides(channels)
    return {f"{name}_{of}": n for of, n in zip(("image", "channel", "pixel"), strides, strict=True)}


class Sampler:
    """Launches the kernels of ``sampling.cu`` for the calls on one set of sampling points."""

    def __init__(self, device: Device, points: Points, dtype: Any, offset: Any) -> None:
        self.device = device
        self.points = points
        self.dtype = np.dtype(dtype)
        plain = offset is None
        self.sums = sum_dtype(self.dtype)
        per_pixel = points.offset_groups * points.taps
        self._offset_items = 0 if plain else 2 * per_pixel * points.pixels  # of an image
        self._dtype_name = dtype_name(self.dtype)
        self._offset_name = self._dtype_name if plain else dtype_name(offset.dtype)
        self._params = {
            "height": points.height,
            "width": points.width,
            "input_channels": points.channels,
            "out_width": points.out_width,
            "kernel_width": points.kernel[1],
            "taps": points.taps,
            # Without offsets no point is between the border and the image
            "border": BORDERS.index("clamp" if plain else points.border),
            "plain": int(plain),
            "offset_groups": points.offset_groups,
            "group_channels": points.group_channels,
            **along("stride", points.stride),
            **along("origin", points.origin),
            **along("dilation", points.dilation),
            **_strides("offset", points, 2 * per_pixel),
            **_strides("mask", points, per_pixel),
        }

    def channels_last(self, batch: layout.Batch, array: Any, images: range) -> Any:
        """Some images of an array in the layout of the points, as (images, pixels, channels).

        They are there when `batch` has run. The array itself if it has that layout, unless it
        starts off the grid of vectors: narrower vectors would add in another order, and equal
        arguments give equal bytes wherever they are.
        """
        part = array[images.start : images.stop]
        if self.points.channels_last:
            return aligned(part).reshape(len(images), -1, part.shape[-1])
        channels, pixels = part.shape[1], part.shape[2] * part.shape[3]
        copy = self.device.empty((len(images), pixels, channels), part.dtype)
        batch.transpose(part, copy, (len(images), channels, pixels))
        return copy

    def channels_first(self, chunk: Chunk, rows: Any, output: Any) -> None:
        """Bring a chunk of an output, as (pixels, channels), into its place in one of NCHW."""
        channels, pixels = output.shape[1], self.points.pixels
        image = channels * pixels
        first, stop = chunk.image * image + chunk.pixel, (chunk.image + chunk.images) * image
        layout.transpose(
            self.device,
            rows,
            output.reshape(-1)[first:stop],
            (chunk.images, chunk.pixels, channels),
            of_target=layout.Strides(pixels, step=image),
        )

    def most_backward_pixels(self, channels: int) -> int:
        """Output pixels whose gradients of columns, for so many channels, fit the workspace."""
        points = self.points
        per_point = 16 + 12 * self.sums.itemsize  # keys, ranks, places; dots, fractions twice
        bytes_per_tap = channels * self.dtype.itemsize + points.offset_groups * per_point
        return max(1, GRADIENT_BYTES // (points.taps * bytes_per_tap))

    def point_count(self, chunk: Chunk) -> int:
        return chunk.size * self.points.offset_groups * self.points.taps

    def _packs(self, block: Block) -> tuple[int, int]:
        """Of the channels of a point: how many, and how many channels each moves at once."""
        points = self.points
        vector = vector_of(self.dtype, points.group_channels, block.first, block.width)
        return -(-min(points.group_channels, block.channels) // vector), vector

    def _launch(
        self,
        choice: Choice,
        chunk: Chunk,
        block: Block,
        arrays: tuple[Any, ...],
        accumulate: bool = False,
    ) -> None:
        points = self.points
        params = {
            **self._params,
            "first_pixel": chunk.pixel,
            "chunk_pixels": chunk.pixels,
            "images": chunk.images,
            "first_channel": block.first,
            "channels": block.channels,
            "block_channels": block.width,
            "blocks": block.channels // block.width,
            "even": int(
                block.channels == block.width
                and (points.offset_groups == 1 or block.channels == points.channels)
            ),
            "points": self.point_count(chunk),
            "tile": choice.per_block,
            "lane_bits": choice.shares.bits,
            "accumulate": int(accumulate),
        }
        largest = max(
            chunk.images * points.height * points.width * points.channels,
            chunk.size * points.taps * block.channels,
            self._offset_items * chunk.images,
            4 * self.point_count(chunk),
        )
        index = layout.index_type(largest)
        unit = _unit(self._dtype_name, self._offset_name, choice.vector, index)
        params = pack(PARAMS, params)
        self.device.launch(unit, choice.kernel, choice.grid, choice.threads, arrays, params)

    def columns(self, chunk: Chunk, block: Block, input: Any, offset: Any, mask: Any) -> Any:
        """Samples of a chunk: (pixels, channels / width, taps, width), `input` channels last."""
        shape = (chunk.size, block.channels // block.width, self.points.taps, block.width)
        columns = self.device.empty(shape, self.dtype)
        self.sample(chunk, block, input, offset, mask, columns)
        return columns

    def sample(
        self, chunk: Chunk, block: Block, input: Any, offset: Any, mask: Any, columns: Any
    ) -> None:
        """Fill the columns of a chunk."""
        choice = choose_tiles("sample", self.point_count(chunk), *self._packs(block))
        self._launch(choice, chunk, block, (input, offset, mask, columns))

    def prepare(self, chunk: Chunk, blocks: int, needs: frozenset[str]) -> PointSums:
        """Places for what `add_dots` or `find_keys` write, for so many blocks of channels."""
        count = self.point_count(chunk)
        dots = keys = fractions = None
        if needs - {"input"} and blocks > 1:
            dots = self.device.empty((count, 4), self.sums)
        if "input" in needs:
            keys = self.device.empty((count,), np.int32)
            fractions = self.device.empty((count, 4), self.sums)
        return PointSums(dots, keys, fractions)

    def find_keys(self, chunk: Chunk, sums: PointSums, offset: Any, mask: Any) -> None:
        """Set keys and fractions, where `add_dots` does not."""
        one = Block(0, self.points.channels, self.points.channels)
        choice = choose("point_keys", self.point_count(chunk))
        self._launch(choice, chunk, one, (offset, mask, sums.keys, sums.fractions))

    def add_dots(
        self,
        chunk: Chunk,
        block: Block,
        sums: PointSums,
        input: Any,
        offset: Any,
        mask: Any,
        columns: Any,
        grad_offset: Any,
        grad_mask: Any,
    ) -> None:
        """Add this block's channels to the corner dots.

        The first block sets them, and keys and fractions; the last, with one gradient or both, sets
        those.
        """
        keys = (sums.keys, sums.fractions) if block.first == 0 else (None, None)
        arrays = (input, offset, mask, columns, sums.dots, *keys, grad_offset, grad_mask)
        choice = choose_tiles("corner_dots", self.point_count(chunk), *self._packs(block))
        self._launch(choice, chunk, block, arrays, accumulate=block.first > 0)

    def buckets(self, chunk: Chunk, sums: PointSums) -> sort.Buckets:
        """The fractions of the points by the pixels they touch, from their keys."""
        points = self.points
        cells = (points.height + 1) * (points.width + 1)
        number = chunk.images * points.offset_groups * cells
        return sort.sort_points(self.device, sums.keys, number, sums.fractions)

    def gather(
        self,
        chunk: Chunk,
        block: Block,
        buckets: sort.Buckets,
        columns: Any,
        grad_input: Any,
    ) -> None:
        """Set this block's channels of grad_input (channels last); later chunks of an image add."""
        points = self.points
        tasks = chunk.images * points.height * points.width * points.offset_groups
        corners = (1 if self._params["plain"] else 4) * self.point_count(chunk)
        together = corners if chunk.whole(points) else None
        choice = choose_gather("gather_input", tasks, *self._packs(block), together)
        arrays = (columns, buckets.starts, buckets.records, grad_input)
        self._launch(choice, chunk, block, arrays, accumulate=chunk.pixel > 0)

    def backpropagate(
        self,
        images: range,
        most_pixels: int,
        blocks: Sequence[Block],
        grad_columns: Callable[[Chunk, Block], Any],
        input: Any,
        offset: Any,
        mask: Any,
        gradients: Gradients,
        finish: layout.Batch,
    ) -> None:
        """The gradients of some images from those of their columns, a block of channels at a time.

        `input` holds these images only, channels last; the other arrays hold the whole batch. The
        gradient of the input is in its place when `finish` has run.
        """
        points, needs = self.points, gradients.needs
        parts = list(chunks(points, images, most_pixels))
        batch = slice(images.start, images.stop)
        grad_input = None
        if "input" in needs:
            in_place = points.channels_last and parts[0].whole(points)
            dtype = self.dtype if parts[0].whole(points) else self.sums
            place = gradients.input[batch]
            grad_input = place if in_place else self.device.empty(input.shape, dtype)
        for chunk in parts:
            local = chunk.within(images)
            offsets, masks, *grads = chunk.of(offset, mask, gradients.offset, gradients.mask)
            sums = self.prepare(chunk, len(blocks), needs)
            if needs == {"input"}:
                self.find_keys(chunk, sums, offsets, masks)
            buckets = None
            for block in blocks:
                columns = grad_columns(chunk, block)
                if needs - {"input"}:
                    given = input[local], offsets, masks, columns
                    at_last = grads if block == blocks[-1] else (None, None)
                    self.add_dots(chunk, block, sums, *given, *at_last)
                if "input" in needs:
                    buckets = buckets or self.buckets(chunk, sums)
                    self.gather(chunk, block, buckets, columns, grad_input[local])
        if grad_input is None or in_place:
            return
        if points.channels_last:
            finish.fill(grad_input, place)
        else:
            shape = (len(images), points.height * points.width, points.channels)
            finish.transpose(grad_input, place, shape)
