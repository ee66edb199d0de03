"""Attention to points of several levels, by the kernels of ``aggregate.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from cudeform.arrays import DTYPES, dtype_name, offset_dtypes, sum_dtype
from cudeform.cuda import sort
from cudeform.cuda.compile import SCALARS, Unit, pack
from cudeform.cuda.device import Device, address, device_of
from cudeform.plans.attention import AttentionPlan

__all__ = ["POINT_BYTES", "backward", "forward", "units"]

MOST_LEVELS = 16  # whose sizes a launch passes by value; those of more are copied to the device
PARAMS = np.dtype(
    [(name, "i4", MOST_LEVELS) for name in ("heights", "widths", "ends")]
    + [(name, "i4") for name in (
        "levels", "wide_sizes", "pixels", "points",
        "queries", "heads", "channels",
        "first_image", "images", "first_head", "some_heads",
        "nearest", "softmax", "lane_bits",
    )],
    align=True,
)  # fmt: skip
THREADS, WARP, VECTOR_BYTES = 256, 32, 16
LEVEL_BYTES = 16  # of shared memory, for each level
POINT_BYTES = 64 << 20  # what is kept of points, and where those of each pixel begin
_MOST_TASKS = 2**31 - 2**10
_SIZES = (("THREADS", THREADS), ("MOST_LEVELS", MOST_LEVELS))


@lru_cache(maxsize=512)
def _unit(dtype: str, location: str, weight: str, vector: int) -> Unit:
    types = {"SCALAR": dtype, "LOCATION": location, "WEIGHT": weight}
    defines = [(name, SCALARS[of]) for name, of in types.items()]
    return Unit("aggregate.cu", (*defines, ("VEC", str(vector))), PARAMS, _SIZES)


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    yield from sort.units()
    for dtype in DTYPES:
        widest = VECTOR_BYTES // (2 if "16" in dtype else int(dtype[-2:]) // 8)
        finer = offset_dtypes(dtype)
        for location, weight, power in product(finer, finer, range(widest.bit_length())):
            yield _unit(dtype, location, weight, 1 << power)


def _lane_bits(threads: int) -> int:
    """The logarithm of the threads that share a task, for so many threads or up to a warp."""
    return min(WARP.bit_length() - 1, (threads - 1).bit_length())


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
    """Launches the kernels of ``aggregate.cu`` for one call."""

    def __init__(
        self, device: Device, plan: AttentionPlan, value: Any, sizes: Any, points: tuple[Any, Any]
    ) -> None:
        self.device = device
        self.plan = plan
        self.value = value
        self.points = points  # locations and weights
        self.sums = sum_dtype(value.dtype)
        self.vector = gcd(VECTOR_BYTES // np.dtype(value.dtype).itemsize, plan.channels)
        self.lane_bits = _lane_bits(plan.channels // self.vector)
        names = [dtype_name(array.dtype) for array in (value, *points)]
        self._unit = _unit(*names, self.vector)
        self._levels, self._ends = self._level_table(sizes)
        self._params = {
            **_level_fields(plan),
            "levels": plan.levels,
            "wide_sizes": int(self._levels is not None and self._levels.dtype.itemsize == 8),
            "pixels": plan.values,
            "points": plan.samples,
            "queries": plan.queries,
            "heads": plan.heads,
            "channels": plan.channels,
            "nearest": int(plan.method == "nearest"),
            "softmax": int(plan.softmax),
        }

    def _level_table(self, sizes: Any) -> tuple[Any, Any]:
        """Arrays of the sizes of the levels and the ends of their points; None: by value."""
        plan = self.plan
        if plan.levels <= MOST_LEVELS:
            return sizes, None
        if sizes is None:
            sizes = self.device.to_device(np.array(plan.shapes, np.int32))
        return sizes, self.device.to_device(np.cumsum(plan.points, dtype=np.int32))

    def _launch(
        self, kernel: str, part: Part, threads: int, arrays: tuple[Any, ...], lane_bits: int
    ) -> None:
        params = pack(PARAMS, {**self._params, **part._asdict(), "lane_bits": lane_bits})
        grid, shared = -(-threads // THREADS), LEVEL_BYTES * self.plan.levels
        self.device.launch(self._unit, kernel, grid, THREADS, arrays, params, shared)

    def _named(self, kernel: str) -> str:
        return kernel + "_nearest" if self.plan.method == "nearest" else kernel

    def aggregate(self, part: Part, output: Any) -> None:
        """Set the output of some images."""
        arrays = (self.value, self._levels, self._ends, *self.points, output)
        threads = part.count * self.plan.queries << self.lane_bits
        self._launch(self._named("aggregate"), part, threads, arrays, self.lane_bits)

    def differentiate(
        self, part: Part, grad_output: Any, grad_locations: Any, grad_weights: Any
    ) -> None:
        """Set the gradients of locations and weights of some images; each may be None."""
        tasks, samples = part.count * self.plan.queries, None
        if self.plan.softmax and grad_weights is not None:
            samples = self.device.empty((tasks, self.plan.samples), self.sums)
        arrays = (self.value, self._levels, self._ends, *self.points, grad_output)
        arrays = (*arrays, grad_locations, grad_weights, samples)
        kernel = self._named("point_gradients")
        self._launch(kernel, part, tasks << self.lane_bits, arrays, self.lane_bits)

    def gather(self, part: Part, grad_output: Any, grad_value: Any) -> None:
        """Set the gradient of the values of some heads of images."""
        tasks, points = part.count * self.plan.queries, self.plan.samples
        keys = self.device.empty((tasks * points,), np.int32)
        ways = self.device.empty((tasks * points, 4), self.sums)
        arrays = (self._levels, self._ends, *self.points, keys, ways)
        lane_bits = _lane_bits(points)
        self._launch("point_keys", part, tasks << lane_bits, arrays, lane_bits)
        pixels = part.count * self.plan.values
        buckets = sort.sort_points(self.device, keys, pixels)
        sorted_points = (buckets.starts, buckets.order, ways)
        arrays = (grad_output, self._levels, self._ends, *sorted_points, grad_value)
        self._launch("gather_value", part, pixels * WARP, arrays, self.lane_bits)


@lru_cache(maxsize=512)
def _level_fields(plan: AttentionPlan) -> dict[str, bytes]:
    """The fields of a Params that have a number for each level."""
    fields = np.zeros((3, MOST_LEVELS), np.int32)
    if plan.levels <= MOST_LEVELS:
        fields[2, : plan.levels] = np.cumsum(plan.points)
        if plan.shapes is not None:
            fields[:2, : plan.levels] = np.transpose(plan.shapes)
    return {name: row.tobytes() for name, row in zip(("heights", "widths", "ends"), fields)}


def _whole_images(plan: AttentionPlan, most_tasks: int = _MOST_TASKS) -> Iterator[Part]:
    """All heads of as many images as have so many heads of queries together."""
    at_once = max(1, most_tasks // (plan.queries * plan.heads))
    for first in range(0, plan.batch, at_once):
        yield Part(first, min(at_once, plan.batch - first), 0, plan.heads)


def _parts(plan: AttentionPlan, sums: np.dtype) -> Iterator[Part]:
    """Images whose points fit the workspace, or heads of an image: these have points apart."""
    per_point = 16 + 4 * sums.itemsize  # keys and orders twice; ways
    per_head = plan.queries * plan.samples * per_point + 4 * plan.values
    at_once = max(1, POINT_BYTES // per_head)
    if at_once >= plan.heads:
        images = at_once // plan.heads
        for first in range(0, plan.batch, images):
            yield Part(first, min(images, plan.batch - first), 0, plan.heads)
        return
    heads = -(-plan.heads // -(-plan.heads // at_once))
    for image, first in product(range(plan.batch), range(0, plan.heads, heads)):
        yield Part(image, 1, first, min(heads, plan.heads - first))


def _on_grid(array: Any) -> Any:
    """The array, or a copy where it starts off the grid of vectors.

    Narrower vectors would add in another order, and equal arguments give equal bytes wherever
    they are.
    """
    return array.copy() if address(array) % VECTOR_BYTES else array


def forward(
    plan: AttentionPlan,
    value: Any,
    spatial_shapes: Any,
    sampling_locations: Any,
    attention_weights: Any,
) -> tuple[Any]:
    """Weighted sums of the samples of each head of each query."""
    with device_of(value) as device:
        output = device.empty(plan.results[0].shape, value.dtype)
        if plan.batch == 0 or plan.queries == 0:
            return (output,)
        points = (_on_grid(sampling_locations), attention_weights)
        call = Aggregator(device, plan, _on_grid(value), spatial_shapes, points)
        for part in _whole_images(plan):
            call.aggregate(part, output)
    return (output,)


def backward(
    plan: AttentionPlan,
    grad_output: Any,
    value: Any,
    spatial_shapes: Any,
    sampling_locations: Any,
    attention_weights: Any,
    *,
    needs: frozenset[str],
) -> dict[str, Any]:
    """Gradients with respect to values, locations and weights."""
    given = {
        "value": value,
        "sampling_locations": sampling_locations,
        "attention_weights": attention_weights,
    }
    with device_of(value) as device:
        grads = {n: device.empty(a.shape, a.dtype) for n, a in given.items() if n in needs}
        if plan.batch == 0 or plan.queries == 0:
            for grad in grads.values():
                grad.fill(0)
            return grads
        points = (_on_grid(sampling_locations), attention_weights)
        call = Aggregator(device, plan, _on_grid(value), spatial_shapes, points)
        grad_output = _on_grid(grad_output)
        of_points = [grads.get(name) for name in ("sampling_locations", "attention_weights")]
        if needs - {"value"}:
            for part in _whole_images(plan, POINT_BYTES // (plan.samples * call.sums.itemsize)):
                call.differentiate(part, grad_output, *of_points)
        if "value" in needs:
            for part in _parts(plan, call.sums):
                call.gather(part, grad_output, grads["value"])
    return grads
