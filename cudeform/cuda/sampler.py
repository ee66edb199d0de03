"""Columns of samples and their transposes, by the kernels of ``sampling.cu``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import product
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from cudeform.arrays import DTYPES, dtype_name, offset_dtypes, sum_dtype
from cudeform.cuda import layout, sort
from cudeform.cuda.chunks import Chunk, chunks
from cudeform.cuda.compile import SCALARS, Unit, pack
from cudeform.cuda.device import Device, address
from cudeform.plans.points import BORDERS, Points

__all__ = [
    "COLUMN_BYTES",
    "Block",
    "Gradients",
    "PointSums",
    "Sampler",
    "backpropagate",
    "channels_last",
    "most_backward_pixels",
    "units",
]

PARAMS = np.dtype(
    [(name, "i4") for name in (
        "height", "width", "input_channels",
        "out_width", "first_pixel", "chunk_pixels", "images",
        "kernel_width", "taps",
        "stride_y", "stride_x", "origin_y", "origin_x", "dilation_y", "dilation_x",
        "border", "plain",
        "offset_groups", "group_channels",
        "first_channel", "channels", "block_channels", "blocks",
    )]
    + [("blocks_per_channel", "f4"), ("lane_bits", "i4"), ("accumulate", "i4")]
    + [(name, "i8") for name in (
        "offset_image", "offset_channel", "offset_pixel",
        "mask_image", "mask_channel", "mask_pixel",
    )],
    align=True,
)  # fmt: skip
THREADS, GATHER_THREADS, TILE, WARP = 256, 64, 64, 32
VECTOR_BYTES = 16
_SIZES = (("THREADS", THREADS), ("GATHER_THREADS", GATHER_THREADS), ("TILE", TILE))
COLUMN_BYTES = 64 << 20  # gradients of columns, and what is kept of every point


@lru_cache(maxsize=512)
def _unit(dtype: str, offset: str, vector: int, index: str) -> Unit:
    types = (("SCALAR", SCALARS[dtype]), ("OFFSET", SCALARS[offset]))
    return Unit("sampling.cu", (*types, ("VEC", str(vector)), ("INDEX", index)), PARAMS, _SIZES)


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from layout.units()
    yield from sort.units()
    for dtype, index in product(DTYPES, ("int", "long long")):
        widest = VECTOR_BYTES // (2 if "16" in dtype else int(dtype[-2:]) // 8)
        for offset, power in product(offset_dtypes(dtype), range(widest.bit_length())):
            yield _unit(dtype, offset, 1 << power, index)


def channels_last(device: Device, points: Points, array: Any, images: range) -> Any:
    """Some images of an array in the layout of `points`, as (images, pixels, channels).

    The array itself if it has that layout, unless it starts off the grid of vectors: narrower
    vectors would add in another order, and equal arguments give equal bytes wherever they are.
    """
    part = array[images.start : images.stop]
    if points.channels_last:
        if address(array) % VECTOR_BYTES:
            part = part.copy()
        return part.reshape(len(images), -1, part.shape[-1])
    channels, pixels = part.shape[1], part.shape[2] * part.shape[3]
    copy = device.empty((len(images), pixels, channels), part.dtype)
    layout.transpose(device, part, copy, (len(images), channels, pixels))
    return copy


class Block(NamedTuple):
    """Channels that a launch works on; its columns are [pixel][channels / width][tap][width]."""

    first: int
    channels: int
    width: int


class PointSums(NamedTuple):
    """What the gradients of the points of a chunk are made of, summed over channels in steps."""

    dots: Any  # (points, 4)
    buckets: sort.Buckets | None  # with the fractions of the points, (points, 4)


def _named(names: tuple[str, ...], values: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(names, values, strict=True))


class Sampler:
    """Launches the kernels of ``sampling.cu`` for the calls on one set of sampling points."""

    def __init__(self, device: Device, points: Points, dtype: Any, offset: Any) -> None:
        self.device = device
        self.points = points
        self.dtype = np.dtype(dtype)
        plain = offset is None
        self.sums = sum_dtype(self.dtype)
        self._dtype_name = dtype_name(self.dtype)
        self._offset_name = self._dtype_name if plain else dtype_name(offset.dtype)
        per_pixel = points.offset_groups * points.taps
        offset_strides = points.offset_strides(2 * per_pixel)
        mask_strides = points.offset_strides(per_pixel)
        self._params = {
            "height": points.height,
            "width": points.width,
            "input_channels": points.channels,
            "out_width": points.out_width,
            "kernel_width": points.kernel[1],
            "taps": points.taps,
            "border": BORDERS.index(points.border),
            "plain": int(plain),
            "offset_groups": points.offset_groups,
            "group_channels": points.group_channels,
            **_named(("stride_y", "stride_x"), points.stride),
            **_named(("origin_y", "origin_x"), points.origin),
            **_named(("dilation_y", "dilation_x"), points.dilation),
            **_named(("offset_image", "offset_channel", "offset_pixel"), offset_strides),
            **_named(("mask_image", "mask_channel", "mask_pixel"), mask_strides),
        }

    def point_count(self, chunk: Chunk) -> int:
        return chunk.size * self.points.offset_groups * self.points.taps

    def _vector(self, block: Block) -> int:
        """Channels that move at once: up to 16 bytes, and a divisor of the groups."""
        most = VECTOR_BYTES // self.dtype.itemsize
        return gcd(most, self.points.group_channels, block.first, block.width)

    def _launch(self, kernel: str, chunk: Chunk, block: Block, arrays: tuple[Any, ...], **how: Any):
        """`how`: tasks (groups of lanes, or points), per_block of them, vector, and more."""
        points, vector = self.points, how["vector"]
        params = {
            **self._params,
            "first_pixel": chunk.pixel,
            "chunk_pixels": chunk.pixels,
            "images": chunk.images,
            "first_channel": block.first,
            "channels": block.channels,
            "block_channels": block.width,
            "blocks": block.channels // block.width,
            "blocks_per_channel": 1.0 / block.width,
            "accumulate": int(how.get("accumulate", False)),
            "lane_bits": self._lane_bits(block, vector),
        }
        largest = max(
            chunk.images * points.height * points.width * points.channels,
            chunk.size * points.taps * block.channels,
            4 * self.point_count(chunk),
        )
        index = layout.index_type(largest)
        unit = _unit(self._dtype_name, self._offset_name, vector, index)
        grid = -(-how["tasks"] // how["per_block"])
        threads = how.get("threads", THREADS)
        self.device.launch(unit, kernel, grid, threads, arrays, pack(PARAMS, params))

    def _lane_bits(self, block: Block, vector: int) -> int:
        """The logarithm of the threads that share a point, one for each pack of channels."""
        packs = -(-min(self.points.group_channels, block.channels) // vector)
        return min(WARP.bit_length() - 1, (packs - 1).bit_length())

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
        self._launch(
            "sample",
            chunk,
            block,
            (input, offset, mask, columns),
            tasks=self.point_count(chunk),
            per_block=TILE,
            vector=self._vector(block),
        )

    def prepare(self, chunk: Chunk, offset: Any, mask: Any, needs: frozenset[str]) -> PointSums:
        """A place for the dots, and the points sorted by the pixels they touch."""
        count = self.point_count(chunk)
        dots = buckets = None
        if "input" in needs:
            points = self.points
            keys = self.device.empty((count,), np.int32)
            fractions = self.device.empty((count, 4), self.sums)
            self._per_point("point_keys", chunk, (offset, mask, keys, fractions))
            cells = (points.height + 1) * (points.width + 1)
            buckets = sort.sort_points(
                self.device, keys, chunk.images * points.offset_groups * cells, fractions
            )
        if needs - {"input"}:  # after what only the sort needs, whose memory may be reused
            dots = self.device.empty((count, 4), self.sums)
        return PointSums(dots, buckets)

    def _per_point(self, kernel: str, chunk: Chunk, arrays: tuple[Any, ...]) -> None:
        one = Block(0, self.points.channels, self.points.channels)
        tasks = self.point_count(chunk)
        self._launch(kernel, chunk, one, arrays, tasks=tasks, per_block=THREADS, vector=1)

    def add_dots(
        self, chunk: Chunk, block: Block, sums: PointSums, input: Any, offset: Any, columns: Any
    ) -> None:
        """Add this block's channels to the corner dots; the first block sets them."""
        self._launch(
            "corner_dots",
            chunk,
            block,
            (input, offset, columns, sums.dots),
            tasks=self.point_count(chunk),
            per_block=TILE,
            vector=self._vector(block),
            accumulate=block.first > 0,
        )

    def gather(
        self, chunk: Chunk, block: Block, sums: PointSums, columns: Any, grad_input: Any
    ) -> None:
        """Set this block's channels of grad_input (channels last); later chunks of an image add."""
        vector, buckets = self._vector(block), sums.buckets
        kernel = "gather_input" if chunk.whole(self.points) else "gather_input_sums"
        self._launch(
            kernel,
            chunk,
            block,
            (columns, buckets.starts, buckets.records, grad_input),
            tasks=chunk.images * self.points.height * self.points.width * self.points.offset_groups,
            per_block=GATHER_THREADS >> self._lane_bits(block, vector),
            threads=GATHER_THREADS,
            vector=vector,
            accumulate=chunk.pixel > 0,
        )

    def point_gradients(
        self,
        chunk: Chunk,
        sums: PointSums,
        offset: Any,
        mask: Any,
        grad_offset: Any,
        grad_mask: Any,
    ) -> None:
        """Finish the gradients of offset and mask; each may be None."""
        arrays = (offset, mask, sums.dots, grad_offset, grad_mask)
        self._per_point("point_gradients", chunk, arrays)


class Gradients(NamedTuple):
    """Where the gradients of a call go: arrays of the whole batch, or None where not needed."""

    input: Any = None
    offset: Any = None
    mask: Any = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(name for name in self._fields if getattr(self, name) is not None)


def most_backward_pixels(points: Points, channels: int, dtype: np.dtype) -> int:
    """Output pixels whose gradients of columns, for so many channels, fit the workspace."""
    # Keys, ranks and places, and fractions twice; after that dots instead of all but the fractions
    per_point = 16 + 8 * sum_dtype(dtype).itemsize
    bytes_per_pixel = points.taps * (channels * dtype.itemsize + points.offset_groups * per_point)
    return max(1, COLUMN_BYTES // bytes_per_pixel)


def backpropagate(
    sampler: Sampler,
    images: range,
    most_pixels: int,
    blocks: Iterable[Block],
    grad_columns: Callable[[Chunk, Block], Any],
    input: Any,
    offset: Any,
    mask: Any,
    gradients: Gradients,
) -> None:
    """The gradients of some images from those of their columns, a block of channels at a time.

    `input` holds these images only, channels last; the other arrays hold the whole batch.
    """
    device, points, needs = sampler.device, sampler.points, gradients.needs
    parts = list(chunks(points, images, most_pixels))
    batch = slice(images.start, images.stop)
    grad_input = None
    if "input" in needs:
        in_place = points.channels_last and parts[0].whole(points)
        dtype = sampler.dtype if parts[0].whole(points) else sampler.sums
        grad_input = gradients.input[batch] if in_place else device.empty(input.shape, dtype)
    for chunk in parts:
        local = chunk.within(images)
        offsets = None if offset is None else offset[chunk.batch]
        masks = None if mask is None else mask[chunk.batch]
        sums = sampler.prepare(chunk, offsets, masks, needs)
        for block in blocks:
            columns = grad_columns(chunk, block)
            if sums.dots is not None:
                sampler.add_dots(chunk, block, sums, input[local], offsets, columns)
            if sums.buckets is not None:
                sampler.gather(chunk, block, sums, columns, grad_input[local])
        if sums.dots is not None:
            grads = (g if g is None else g[chunk.batch] for g in (gradients.offset, gradients.mask))
            sampler.point_gradients(chunk, sums, offsets, masks, *grads)
    if grad_input is None or in_place:
        return
    if points.channels_last:
        layout.fill(device, grad_input, gradients.input[batch])
    else:
        shape = (len(images), points.height * points.width, points.channels)
        layout.transpose(device, grad_input, gradients.input[batch], shape)
