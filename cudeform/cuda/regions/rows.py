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
from typing import Any

import numpy as np

from cudeform.arrays import DTYPES, dtype_name, offset_dtypes, sum_dtype
from cudeform.cuda import layout
from cudeform.cuda.box_rows import units as box_units
from cudeform.cuda.compile import DIVISOR, SCALARS, Unit, along, pack
from cudeform.cuda.device import Device
from cudeform.cuda.lanes import THREADS, WARP, Choice, Shares, choose, lane_bits, vector_of, vectors
from cudeform.plans.regions import RoiPlan

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
        "planes", "parts", "rows", "lane_bits", "accumulate",
        "tile_y", "tile_x", "tiles_y", "tiles_x", "batch",
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
PATCH = 4  # pixels side by side whose gradients a thread gathers
SIDES = 64  # lines and columns of a tile of pixels, at most
PLANE_TILE = (8, 32)  # lines and columns of one in planes, a thread for each pixel
PLANES = 8  # channels of a pixel that a thread gathers there, at most
PART_BYTES = 8 << 10  # of sums of a plane that a warp has
ENOUGH_WARPS = 4096  # for each scheduler of a large GPU eight
LEAST_PART = 256  # pixels that are worth a warp of their own
SHARERS = 2  # threads that share one channel of a row
_TILES = (("THREADS", THREADS), ("SIDES", SIDES))
ROW_ITEMS = 8  # elements of the dtype of sums that a row takes, and the bounds of a region


@lru_cache(maxsize=512)
def _rows_unit(dtype: str, offset: str) -> Unit:
    types = (("SCALAR", SCALARS[dtype]), ("OFFSET", SCALARS[offset]))
    return Unit("region_rows.cu", types, PARAMS, _TILES)


@lru_cache(maxsize=512)
def _unit(dtype: str, vector: int, index: str) -> Unit:
    defines = (("SCALAR", SCALARS[dtype]), ("VEC", str(vector)), ("INDEX", index))
    sizes = (*_TILES, ("SHARERS", SHARERS), ("PATCH", PATCH))
    return Unit("regions.cu", defines, PARAMS, sizes)


@lru_cache(maxsize=512)
def _planes_unit(dtype: str, index: str) -> Unit:
    part = PART_BYTES // sum_dtype(dtype).itemsize
    sizes = (*_TILES, ("PLANES", PLANES), ("PART", part))
    return Unit("region_planes.cu", (("SCALAR", SCALARS[dtype]), ("INDEX", index)), PARAMS, sizes)


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from layout.units()
    yield from box_units()
    for dtype in DTYPES:
        yield from (_rows_unit(dtype, offset) for offset in offset_dtypes(dtype))
    for dtype, index in product(DTYPES, ("int", "long long")):
        yield from (_unit(dtype, vector, index) for vector in vectors(dtype))
        yield _planes_unit(dtype, index)


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
            "batch": plan.batch,
            "height": plan.height,
            "width": plan.width,
            "channels": self.channels,
            "classes": plan.classes,
            **along("groups", plan.groups),
            **along("bins", plan.bins),
            **along("part", plan.part_size),
            "bins": self._bins,
            "planes": int(self.planes),
            "parts": 1,
            "accumulate": 0,
            **along("tile", (1, 1)),
            **along("tiles", (1, 1)),
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
        results = self.channels * (1 + plan.largest)  # argmax may have a y and an x
        return layout.index_type(max(elements, rows * max(results, 4)))

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

    def rows(self, boxes: Any, offset: Any, mask: Any) -> Any:
        """Where the rows of some regions read."""
        count = boxes.shape[0] * self.region_rows
        rows = self.device.empty((count, ROW_ITEMS), self.sums)
        arrays = (boxes, offset, mask, rows)
        self._launch(self._rows_unit, choose("locate_rows", count), arrays, rows=count)
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
        elements = boxes.shape[0] * self.plan.classes * prod(self.plan.part_size)
        arrays = (boxes, mask, sums, grad_offset, grad_mask)
        self._launch(self._rows_unit, choose("offset_gradients", elements), arrays, rows=count)

    def gather(self, rows: Any, grad_values: Any, grad_input: Any, accumulate: bool) -> None:
        """Set grad_input (images, pixels, channels), or add to it, from rows of some regions."""
        count = rows.shape[0]
        regions = count // self.region_rows
        bounds = self.device.empty((regions, ROW_ITEMS), self.sums)
        choice = choose("bound_regions", regions, WARP)
        self._launch(self._rows_unit, choice, (rows, bounds), rows=count)
        name = "gather_planes" if self.planes else "gather_rows"
        kernel = name if grad_input.dtype == self.dtype else name + "_sums"
        shares = Shares() if self.planes else Shares(lane_bits(self._packs[0]))
        tile = PLANE_TILE if self.planes else _tile(THREADS >> shares.lanes)
        tiles = -(-self.plan.height // tile[0]), -(-self.plan.width // tile[1])
        slices = -(-self.channels // (PLANES if self.planes else self.vector << shares.lanes))
        blocks = self.images * prod(tiles) * slices
        choice = Choice(kernel, blocks, 1, vector=self.vector, shares=shares)
        launch = self._in_planes if self.planes else self._wide
        how = {**along("tile", tile), **along("tiles", tiles), "accumulate": int(accumulate)}
        launch(choice, count, (bounds, rows, grad_values, grad_input), **how)

    def spread(self, grad_output: Any, argmax: Any, boxes: Any, grad_input: Any) -> None:
        """Set grad_input (N, C, H, W) from the gradients of the pixels or samples chosen."""
        plan, planes = self.plan, self.images * self.channels
        pixels = plan.height * plan.width
        parts = max(
            -(-pixels * self.sums.itemsize // PART_BYTES),
            min(-(-ENOUGH_WARPS // planes), -(-pixels // LEAST_PART)),
        )
        kernel = "spread_pixels" if plan.reads == "pixels" else "spread_samples"
        choice = Choice(kernel, planes * parts, 1, WARP)
        arrays = (grad_output, argmax, boxes, grad_input)
        self._in_planes(choice, plan.regions * self.region_rows, arrays, parts=parts)


def _tile(patches: int) -> tuple[int, int]:
    """Lines and columns of a tile of so many patches, a power of two: about a square."""
    in_line = 1 << (patches.bit_length() - 2) // 2
    return patches // in_line, in_line * PATCH
