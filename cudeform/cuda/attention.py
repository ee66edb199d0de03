"""Attention to points of several levels, by the kernels of ``aggregate.cu``."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from cudeform.cuda import aggregator
from cudeform.cuda.aggregator import MOST_LEVELS, Aggregator, Extent
from cudeform.cuda.device import Device, device_of, gradients
from cudeform.plans.attention import AttentionPlan

units = partial(aggregator.units, grid=False)


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
        if plan.batch and plan.queries:
            points = (sampling_locations, attention_weights)
            _aggregator(device, plan, value, spatial_shapes, *points).aggregate(output)
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
    points = {"sampling_locations": sampling_locations, "attention_weights": attention_weights}
    given = {"value": value, **points}
    with device_of(value) as device:
        nothing = not plan.batch or not plan.queries
        grads = gradients(device, plan, given, needs, zero=nothing)
        if nothing:
            return grads
        call = _aggregator(device, plan, value, spatial_shapes, *points.values())
        call.backpropagate(grad_output, *map(grads.get, given))
    return grads


def _aggregator(
    device: Device, plan: AttentionPlan, value: Any, sizes: Any, locations: Any, weights: Any
) -> Aggregator:
    extent = Extent(plan.batch, plan.values, plan.heads, plan.channels, plan.queries, plan.samples)
    fields, levels = _fields(plan), (sizes, None)
    if plan.levels > MOST_LEVELS:
        if sizes is None:
            sizes = device.to_device(np.array(plan.shapes, np.int32))
        levels = sizes, device.to_device(np.cumsum(plan.points, dtype=np.int32))
    wide = int(sizes is not None and sizes.dtype.itemsize == 8)
    return Aggregator(
        device, extent, {**fields, "wide_sizes": wide}, levels, value, locations, weights
    )


@lru_cache(maxsize=512)
def _fields(plan: AttentionPlan) -> dict[str, Any]:
    """What of a Params follows from the levels and the method."""
    numbers = np.zeros((3, MOST_LEVELS), np.int32)
    if plan.levels <= MOST_LEVELS:
        numbers[2, : plan.levels] = np.cumsum(plan.points)
        if plan.shapes is not None:
            numbers[:2, : plan.levels] = np.transpose(plan.shapes)
    heights, widths, ends = (row.tobytes() for row in numbers)
    return {
        "heights": heights,
        "widths": widths,
        "ends": ends,
        "levels": plan.levels,
        **plan.steps,
        "nearest": int(plan.method == "nearest"),
        "softmax": int(plan.softmax),
    }
