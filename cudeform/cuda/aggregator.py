"""Weighted sums of samples and their transposes, by the kernels of ``aggregate.cu``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from cudeform.arrays import DTYPES, dtype_name, sum_dtype
from cudeform.cuda import sort
from cudeform.cuda.compile import DIVISOR, SCALARS, Unit, pack
from cudeform.cuda.device import Device
from cudeform.cuda.lanes import (
    BLOCKS,
    LANES,
    THREADS,
    WARP,
    Choice,
    aligned,
    choose,
    vector_of,
    vectors,
)

MOST_LEVELS = 16  # whose sizes a launch passes by value
PARAMS = np.dtype(
    [("offset_scale", "f8")]
    + [(name, "i4", MOST_LEVELS) for name in ("heights", "widths", "ends")]
    + [(name, "i4") for name in ("levels", "wide_sizes", "pixels", "points")]
    + [("queries", DIVISOR)]
    + [(name, "i4") for name in (
        "heads", "channels", "first_image", "images", "first_head", "some_heads",
    )]
    + [("band", DIVISOR), ("bands", DIVISOR)]
    + [(name, "i4") for name in (
        "location_query", "location_head", "location_is_wide",
        "weight_query", "weight_head", "weight_is_wide",
        "nearest", "softmax", "lane_bits", "slice_bits",
    )]
    + [("kernel_height", DIVISOR), ("out_width", "i4")]
    + [(name, DIVISOR) for name in ("strip_pixels", "strip_width", "last_width")]
    + [(name, "i4") for name in (
        "full_strips",
        "stride_y", "stride_x", "origin_y", "origin_x",
        "dilation_y", "dilation_x", "center_y", "center_x", "removed",
    )]
    + [("narrow_scale", "f4")],
    align=True,
)  # fmt: skip
LEVEL_BYTES = 16  # of shared memory, for each level
POINT_BYTES = 64 << 20  # what is kept of points, and where those of each pixel begin
FETCHED = 4  # points that a thread fetches at a time for all that share its pixel
# Points of a pixel from which on a warp takes it, in a launch of its own; and from which on a block
CROWD, LARGE_CROWD = 128, 2048
_MOST_TASKS = 2**31 - 2**10
_CORNERS = 4  # pixels that a point touches at most
_WARPS = THREADS // WARP  # of a block
_PARTS = 32 << 10  # bytes of shared memory for parts of dot products, at most
_LINE = 128  # bytes, of the cache
_SIZES = (
    ("THREADS", THREADS),
    ("MOST_LEVELS", MOST_LEVELS),
    ("PARTS_BYTES", _PARTS),
    ("FETCHED", FETCHED),
    ("CROWD", CROWD),
    ("LARGE_CROWD", LARGE_CROWD),
)
_STRIP = 8  # columns of an output that tasks go down
_OF_VALUES = ("point_keys", "gather_value", "gather_crowded")  # gather_values.cu
_NO_GRID = dict.fromkeys(PARAMS.names[PARAMS.names.index("kernel_height") :], 0)
_NO_GRID |= {"offset_scale": 0, "kernel_height": 1, "out_width": 1}  # the last are divisors


@lru_cache(maxsize=512)
def _unit(file: str, dtype: str, vector: int, grid: bool, mixed: bool = False) -> Unit:
    numbers = (("VEC", vector), ("GRID", grid), ("MIXED", mixed))
    defines = (("SCALAR", SCALARS[dtype]), *((name, str(int(n))) for name, n in numbers))
    return Unit(file, defines, PARAMS, _SIZES)


def units(grid: bool) -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from sort.units()
    files = ("aggregate.cu", "gather_values.cu")
    for file, dtype, mixed in product(files, DTYPES, (False, True)):
        if "16" in dtype or not mixed:
            yield from (_unit(file, dtype, vector, grid, mixed) for vector in vectors(dtype))


class Extent(NamedTuple):
    """How many there are: images, pixels of one, points of a head of a query, and so on."""

    batch: int
    pixels: int
    heads: int
    channels: int
    queries: int
    points: int


class Part(NamedTuple):
    """Heads of images that are worked on at once."""

    first_image: int
    images: int
    first_head: int
    some_heads: int

    @property
    def count(self) -> int:
        return self.images * self.some_heads


class Aggregator:
    """Launches the kernels of ``aggregate.cu`` for one call.

    `levels` are arrays of the sizes of the levels and of the ends of their points, or None;
    `locations` and `weights` belong to the points, and `fields` is the rest of a Params; those of
    a grid are left out where points are parts of levels.
    """

    def __init__(
        self,
        device: Device,
        extent: Extent,
        fields: Mapping[str, Any],
        levels: tuple[Any, Any],
        value: Any,
        locations: Any,
        weights: Any,
    ) -> None:
        self.device = device
        self.extent = extent
        self.value = aligned(value)
        self.sums = sum_dtype(value.dtype)
        vector = vector_of(value.dtype, extent.channels)
        grid = "out_width" in fields  # others read x and y at once
        self._points = (*levels, locations if grid else aligned(locations), weights)
        self._packs = extent.channels // vector, vector
        mixed = {locations.dtype, weights.dtype} != {value.dtype}
        of = dtype_name(value.dtype), vector, grid, mixed
        self._unit, self._of_values = _unit("aggregate.cu", *of), _unit("gather_values.cu", *of)
        counts = extent._asdict()
        del counts["batch"]
        self._params = {
            **_NO_GRID,
            **counts,
            "location_is_wide": int(locations.dtype == self.sums),
            "weight_is_wide": int(weights.dtype == self.sums),
            **fields,
        }
        self._nearest = "_nearest" if fields["nearest"] else ""

    def _launch(
        self,
        choice: Choice,
        part: Part,
        arrays: tuple[Any, ...],
        order: dict[str, int],
        shared: int = 0,
    ) -> None:
        """`shared`: bytes besides those of levels."""
        how = {**part._asdict(), **order}
        how |= {"lane_bits": choice.shares.lanes, "slice_bits": choice.shares.slices}
        params = pack(PARAMS, {**self._params, **how})
        shared += LEVEL_BYTES * self._params["levels"]
        blocks = choice.grid, choice.threads
        unit = self._of_values if choice.kernel in _OF_VALUES else self._unit
        self.device.launch(unit, choice.kernel, *blocks, arrays, params, shared)

    def _tasks(self, part: Part) -> int:
        """Heads of queries."""
        return part.count * self.extent.queries

    def _order(
        self, part: Part, band: int | None = None, strip: int | None = None
    ) -> dict[str, int]:
        """Of tasks: `band` heads of a query are neighbours, `strip` columns of a grid; or all."""
        band, width = band or part.some_heads, self._params["out_width"]
        strip = min(strip or width, width)
        return {
            "band": band,
            "bands": part.some_heads // band,
            "strip_pixels": strip * (self.extent.queries // width),
            "strip_width": strip,
            "last_width": width % strip or strip,
            "full_strips": width // strip,
        }

    def _near_order(self, part: Part) -> dict[str, int]:
        """Tasks that are at work at once read few heads, and pixels near each other.

        Heads whose values fill a line of the cache, if that many are a part of all: caches hold
        more pixels of them.
        """
        line = max(1, _LINE // (self.extent.channels * self.value.itemsize))
        return self._order(part, gcd(line, self.extent.heads), _STRIP)

    def aggregate(self, output: Any) -> None:
        """Set the output."""
        # The logarithm of how many warps share the channels of a task.
        slices = (-(-self._packs[0] // WARP) - 1).bit_length()
        for part in _whole_images(self.extent, _MOST_TASKS >> slices):
            choice = choose("aggregate" + self._nearest, self._tasks(part), *self._packs)
            shares = choice.shares._replace(slices=slices)
            choice = choice._replace(tasks=choice.tasks << slices, shares=shares)
            self._launch(choice, part, (self.value, *self._points, output), self._near_order(part))

    def backpropagate(
        self, grad_output: Any, grad_value: Any, grad_locations: Any, grad_weights: Any
    ) -> None:
        """Set the gradients; each may be None."""
        grad_output = aligned(grad_output)
        if grad_locations is not None or grad_weights is not None:
            self._differentiate(grad_output, grad_locations, grad_weights)
        if grad_value is not None:
            self._gather(grad_output, grad_value)

    def _differentiate(self, grad_output: Any, grad_locations: Any, grad_weights: Any) -> None:
        """Set the gradients of locations and weights; each may be None."""
        samples, extent = None, self.extent
        most_tasks = POINT_BYTES // (extent.points * self.sums.itemsize)
        for part in _whole_images(extent, most_tasks):
            if self._params["softmax"] and grad_weights is not None:
                samples = self.device.empty((self._tasks(part), extent.points), self.sums)
            arrays = (self.value, *self._points, grad_output)
            arrays = (*arrays, grad_locations, grad_weights, samples)
            choice = choose("point_gradients" + self._nearest, self._tasks(part), *self._packs)
            dots = 4 * self.sums.itemsize * THREADS << choice.shares.lanes
            self._launch(choice, part, arrays, self._near_order(part), min(dots, _PARTS))

    def _gather(self, grad_output: Any, grad_value: Any) -> None:
        """Set the gradient of the values."""
        for part in _parts(self.extent, self.sums):
            buckets = self._sort(part)
            pixels, points = part.count * self.extent.pixels, buckets.records.shape[0]
            many, very_many = (
                self.device.empty((_CORNERS * points // least + 1,), np.int32)
                for least in (CROWD, LARGE_CROWD)
            )
            found = buckets.starts, buckets.records, buckets.counters, many, very_many
            arrays = (grad_output, *self._points[:2], *found, grad_value)
            choice = choose("gather_value", pixels, *self._packs)
            self._launch(choice, part, arrays, self._order(part))
            if points > CROWD // _CORNERS:
                tasks = min(many.shape[0], 4 * BLOCKS * _WARPS)
                choice = choice._replace(kernel="gather_crowded", tasks=tasks, per_block=_WARPS)
                self._launch(choice, part, arrays, self._order(part))

    def _sort(self, part: Part) -> sort.Buckets:
        """What is to be known of the points of a part, by the pixels that they touch."""
        tasks, each = self._tasks(part), self.extent.points
        keys = self.device.empty((tasks * each,), np.int32)
        ways = self.device.empty((tasks * each, 4), self.sums)
        sorting = sort.Sorting(self.device, tasks * each, part.count * self.extent.pixels)
        arrays = (*self._points, keys, sorting.counts, sorting.ranks, ways)
        choice = choose("point_keys", tasks, _point_lanes(each))
        self._launch(choice, part, arrays, self._order(part))
        return sorting.order(keys, ways)


def _point_lanes(points: int) -> int:
    """Threads that share the points of a task: of them at most a quarter has none in the end."""
    lanes = LANES
    while 3 * -(-points // lanes) * lanes > 4 * points:
        lanes //= 2
    return lanes


def _whole_images(extent: Extent, most_tasks: int) -> Iterator[Part]:
    """All heads of as many images as have so many heads of queries together."""
    at_once = max(1, min(most_tasks, _MOST_TASKS) // (extent.queries * extent.heads))
    for first in range(0, extent.batch, at_once):
        yield Part(first, min(at_once, extent.batch - first), 0, extent.heads)


def _parts(extent: Extent, sums: np.dtype) -> Iterator[Part]:
    """Images whose points fit the workspace, or heads of an image: these have points apart."""
    per_point = 12 + 8 * sums.itemsize  # key, rank and number; ways twice
    per_head = extent.queries * extent.points * per_point + 4 * extent.pixels
    at_once = max(1, POINT_BYTES // per_head)
    if at_once >= extent.heads:
        yield from _whole_images(extent, at_once * extent.queries)
        return
    heads = -(-extent.heads // -(-extent.heads // at_once))
    for image, first in product(range(extent.batch), range(0, extent.heads, heads)):
        yield Part(image, 1, first, min(heads, extent.heads - first))
