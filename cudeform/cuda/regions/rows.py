"""Regions of interest as rows of samples, by the kernels of ``region_rows.cu`` and ``regions.cu``.

A row is a bin of one class in one region. Its values are the output channels of that class; the
channels of the input are brought side by side first. Where each bin has channels of its own, and
reads little of each, all stays as the caller has it: in planes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cudeform.arrays import DTYPES, dtype_name, offset_dtypes, sum_dtype
from cudeform.cuda import layout, sort
from cudeform.cuda.box_rows import units as box_units
from cudeform.cuda.compile import DIVISOR, SCALARS, Unit, pack
from cudeform.cuda.device import Device
from cudeform.cuda.lanes import (
    GATHER_THREADS,
    THREADS,
    WARP,
    Choice,
    choose,
    choose_gather,
    vector_of,
    vectors,
)
from cudeform.plans.regions import RoiPlan

__all__ = ["ROW_ITEMS", "Launcher", "Part", "units"]

PARAMS = np.dtype(
    [(name, "f8") for name in ("scale", "origin", "least", "offset_scale")]
    + [(name, "i4") for name in (
        "round_box", "round_scaled", "box_more", "scaled_more",
        "reads", "samples", "largest", "unread",
        "height", "width", "channels",
        "classes", "groups_y", "groups_x", "bins_y", "bins_x", "part_y", "part_x",
    )]
    + [("bins", DIVISOR)]
    + [(name, "i4") for name in (
        "planes", "parts", "first_row", "rows", "first_image", "images", "lane_bits", "accumulate",
    )],
    align=True,
)  # fmt: skip
READS = ("grid_centers", "grid_corners", "pixels")
# By region: what is rounded, the box or that times the scale; what is added before and after the
# scale to the end, and taken from both ends; the size at least.
REGIONS = {
    "unaligned": (0, 0, 0, 0, 0.0, 1.0),
    "aligned": (0, 0, 0, 0, 0.5, -np.inf),
    "closed": (0, 1, 0, 1, 0.0, 1.0),
    "half_open": (0, 1, 0, 0, 0.0, 1.0),
    "msra": (1, 0, 1, 0, 0.0, 0.1),
    "msra_aligned": (1, 0, 1, 0, 0.5, 0.1),
}
_REGION_FIELDS = ("round_box", "round_scaled", "box_more", "scaled_more", "origin", "least")
PLANES = 8  # channels of a pixel that a thread gathers, at most
PART_BYTES = 8 << 10  # of sums of a plane that a warp has
ENOUGH_WARPS = 4096  # for each scheduler of a large GPU eight
LEAST_PART = 256  # pixels that are worth a warp of their own
SHARERS = 2  # threads that share one channel of a row
_SIZES = (("THREADS", THREADS), ("GATHER_THREADS", GATHER_THREADS), ("SHARERS", SHARERS))
ROW_ITEMS = 8  # elements of the dtype of sums that a row takes


@lru_cache(maxsize=512)
def _rows_unit(dtype: str, offset: str) -> Unit:
    types = (("SCALAR", SCALARS[dtype]), ("OFFSET", SCALARS[offset]))
    return Unit("region_rows.cu", types, PARAMS, _SIZES)


@lru_cache(maxsize=512)
def _unit(dtype: str, vector: int, index: str) -> Unit:
    defines = (("SCALAR", SCALARS[dtype]), ("VEC", str(vector)), ("INDEX", index))
    return Unit("regions.cu", defines, PARAMS, _SIZES)


@lru_cache(maxsize=512)
def _planes_unit(dtype: str, index: str) -> Unit:
    part = PART_BYTES // sum_dtype(dtype).itemsize
    sizes = (("GATHER_THREADS", GATHER_THREADS), ("PLANES", PLANES), ("PART", part))
    return Unit("region_planes.cu", (("SCALAR", SCALARS[dtype]), ("INDEX", index)), PARAMS, sizes)


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from layout.units()
    yield from sort.units()
    yield from box_units()
    for dtype in DTYPES:
        yield from (_rows_unit(dtype, offset) for offset in offset_dtypes(dtype))
    for dtype, index in product(DTYPES, ("int", "long long")):
        yield from (_unit(dtype, vector, index) for vector in vectors(dtype))
        yield _planes_unit(dtype, index)


class Part(NamedTuple):
    """Some rows of a launch, and the samples that they have together."""

    first: int
    rows: int
    samples: int
    starts: Any  # of each row, counted from the first, or None where all have the same number


class Launcher:
    """Launches the kernels for the calls on one plan."""

    def __init__(self, device: Device, plan: RoiPlan, dtype: Any, offset: Any = None) -> None:
        self.device = device
        self.plan = plan
        self.dtype = np.dtype(dtype)
        self.sums = sum_dtype(self.dtype)
        self.channels = plan.out_channels // plan.classes  # of a row
        self.groups = plan.groups[0] * plan.groups[1]
        self.images = plan.batch * plan.classes * self.groups  # of a row's channels each
        self.region_rows = plan.classes * plan.bins[0] * plan.bins[1]
        self.planes = self.channels > 1 and self.groups > 1
        self.vector = 1 if self.planes else vector_of(self.dtype, self.channels)
        self.row_bytes = self.channels * self.dtype.itemsize
        self._copied: slice | None = None  # regions whose gradients are copied
        self._copy: Any = None
        self._packs = self.channels // self.vector, self.vector
        # Of a kernel that adds up what it reads
        sharers = SHARERS if self.vector == 1 else 1
        self._shared_packs = sharers * self._packs[0], self.vector
        self._dtype_name = dtype_name(self.dtype)
        offset_name = self._dtype_name if offset is None else dtype_name(offset.dtype)
        self._rows_unit = _rows_unit(self._dtype_name, offset_name)
        self._params = {
            "scale": plan.scale,
            "offset_scale": plan.offset_scale,
            **dict(zip(_REGION_FIELDS, REGIONS[plan.region], strict=True)),
            "reads": READS.index(plan.reads),
            "samples": plan.samples,
            "largest": int(plan.largest),
            "unread": plan.unread,
            "height": plan.height,
            "width": plan.width,
            "channels": self.channels,
            "classes": plan.classes,
            **_axes("groups", plan.groups),
            **_axes("bins", plan.bins),
            **_axes("part", plan.part_size),
            "bins": self._bins,
            "planes": int(self.planes),
            "parts": 1,
            "first_row": 0,
            "first_image": 0,
            "images": self.images,
            "accumulate": 0,
        }

    def _launch(self, unit: Unit, choice: Choice, arrays: tuple[Any, ...], **how: int) -> None:
        """`how` are values of Params."""
        params = pack(PARAMS, {**self._params, "lane_bits": choice.shares.bits, **how})
        self.device.launch(unit, choice.kernel, choice.grid, choice.threads, arrays, params)

    def _wide(self, choice: Choice, rows: int, arrays: tuple[Any, ...], **how: int) -> None:
        """A kernel of ``regions.cu``, where the lanes of a task are its channels."""
        unit = _unit(self._dtype_name, choice.vector, self._index(rows))
        self._launch(unit, choice, arrays, rows=rows, **how)

    def _in_planes(self, choice: Choice, rows: int, arrays: tuple[Any, ...], **how: int) -> None:
        """A kernel of ``region_planes.cu``."""
        unit = _planes_unit(self._dtype_name, self._index(rows))
        self._launch(unit, choice, arrays, rows=rows, **how)

    def _index(self, rows: int) -> str:
        plan = self.plan
        elements = self.images * plan.height * plan.width * self.channels
        return layout.index_type(max(elements, rows * max(self.channels, 4)))

    @property
    def moves(self) -> bool:
        """Whether arrays are copied, channels last; rows of one channel have them so already."""
        return self.channels > 1 and not self.planes

    def stage(self, input: Any) -> Any:
        """(N, C, H, W) -> (images, pixels, channels), where arrays are moved."""
        if not self.moves:
            return input
        plan, channels = self.plan, self.channels
        pixels = plan.height * plan.width
        staged = self.device.empty((self.images, pixels, channels), self.dtype)
        layout.transpose(self.device, input, staged, (self.images, channels, pixels))
        return staged

    def unstage(self, staged: Any, target: Any) -> None:
        """(images, pixels, channels) -> (N, C, H, W)."""
        layout.transpose(self.device, staged, target, staged.shape)

    def rows_last(self, values: Any, regions: slice) -> Any:
        """(R, out channels, ph, pw) -> (rows, channels) of some regions, where arrays are moved.

        A copy is kept for the next call that wants it.
        """
        rows = (regions.stop - regions.start) * self.region_rows
        if not self.moves:
            return values[regions].reshape(rows, self.channels)
        if self._copied != regions:
            self._copied = regions
            self._copy = self.device.empty((rows, self.channels), values.dtype)
            shape = (rows // self._bins, self.channels, self._bins)
            layout.transpose(self.device, values[regions], self._copy, shape)
        return self._copy

    @property
    def _bins(self) -> int:
        return self.plan.bins[0] * self.plan.bins[1]

    def rows(self, boxes: Any, offset: Any, mask: Any, counts: Any = None) -> Any:
        """Where the rows of some regions read; `counts` is filled with their samples."""
        count = boxes.shape[0] * self.region_rows
        rows = self.device.empty((count, ROW_ITEMS), self.sums)
        arrays = (boxes, offset, mask, rows, counts)
        self._launch(self._rows_unit, choose("locate_rows", count), arrays, rows=count)
        return rows

    def chosen_rows(self, boxes: Any, argmax: Any, channels: int) -> Any:
        """A row for each sample that is the largest, in images of one channel."""
        count = argmax.size // 2
        rows = self.device.empty((count, ROW_ITEMS), self.sums)
        how = {"rows": count, "classes": channels}
        choice = choose("locate_chosen", count)
        self._launch(self._rows_unit, choice, (boxes, argmax, rows), **how)
        return rows

    def pool(self, input: Any, rows: Any, *results: Any) -> None:
        """Set the values of some rows, and which pixel or sample each is where it is one."""
        kernel = "pool_largest" if self.plan.largest else "pool"
        if self.plan.reads == "pixels":
            kernel = "pool_max" if self.plan.largest else "pool_mean"
        packs = self._packs if self.plan.largest else self._shared_packs
        choice = choose(kernel, rows.shape[0], *packs)
        self._wide(choice, rows.shape[0], (input, rows, *results))

    def point_gradients(
        self,
        input: Any,
        boxes: Any,
        mask: Any,
        rows: Any,
        grad_values: Any,
        grad_offset: Any,
        grad_mask: Any,
    ) -> None:
        """Set the gradients of offset and mask, each may be None; `rows` are those without mask."""
        count = rows.shape[0]
        sums = self.device.empty((count, 4), self.sums)
        choice = choose("row_gradients", count, *self._packs)
        self._wide(choice, count, (input, rows, grad_values, sums))
        elements = boxes.shape[0] * prod(self.plan.mask_shape[1:])
        arrays = (boxes, mask, sums, grad_offset, grad_mask)
        self._launch(self._rows_unit, choose("offset_gradients", elements), arrays, rows=count)

    def samples(self, rows: Any, part: Part, images: range) -> sort.Buckets:
        """The samples of a part of the rows in some images of the batch, with their fractions."""
        keys, each = self.device.empty((part.samples,), np.int32), -(-part.samples // part.rows)
        fractions = self.device.empty((part.samples, 4), self.sums)
        choice, how = choose("sample_keys", part.rows, each), self._images(images)
        arrays = (rows, part.starts, keys, fractions)
        self._launch(self._rows_unit, choice, arrays, first_row=part.first, rows=part.rows, **how)
        cells = (self.plan.height + 1) * (self.plan.width + 1)
        return sort.sort_points(self.device, keys, how["images"] * cells, fractions)

    def _images(self, images: range) -> dict[str, int]:
        per_image = self.plan.classes * self.groups
        return {"first_image": images.start * per_image, "images": len(images) * per_image}

    def gather(
        self,
        samples: sort.Buckets,
        images: range,
        grad_values: Any,
        grad_input: Any,
        accumulate: bool,
    ) -> None:
        """Set grad_input (images, pixels, channels) of some images of the batch, or add to it."""
        how = {"accumulate": int(accumulate), **self._images(images)}
        tasks = how["images"] * self.plan.height * self.plan.width
        arrays = (grad_values, samples.starts, samples.records, grad_input)
        rows, at_once = grad_values.shape[0], grad_input.dtype == self.dtype
        if self.planes:
            kernel = "gather_planes" if at_once else "gather_planes_sums"
            blocks = -(-tasks // GATHER_THREADS) * -(-self.channels // PLANES)
            choice = Choice(kernel, blocks, 1, GATHER_THREADS)
            self._in_planes(choice, rows, arrays, **how)
            return
        corners = 1 if self.plan.reads == "pixels" else 4
        points = corners * samples.records.shape[0] if at_once else None
        choice = choose_gather("gather_rows", tasks, *self._packs, points)
        self._wide(choice, rows, arrays, **how)

    def spread(self, grad_output: Any, argmax: Any, boxes: Any, grad_input: Any) -> None:
        """Set grad_input (N, C, H, W) from the gradients of the pixels that are the largest."""
        plan, planes = self.plan, self.images * self.channels
        pixels = plan.height * plan.width
        parts = max(
            -(-pixels * self.sums.itemsize // PART_BYTES),
            min(-(-ENOUGH_WARPS // planes), -(-pixels // LEAST_PART)),
        )
        choice = Choice("spread_largest", planes * parts, 1, WARP)
        arrays = (grad_output, argmax, boxes, grad_input)
        self._in_planes(choice, plan.regions * self.region_rows, arrays, parts=parts)


def _axes(name: str, pair: tuple[int, int]) -> dict[str, int]:
    return {f"{name}_y": pair[0], f"{name}_x": pair[1]}
