"""Sums of samples around the pixels of an output, by the kernels of ``aggregate.cu``."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from cudeform.cuda import aggregator
from cudeform.cuda.aggregator import MOST_LEVELS, Aggregator, Extent
from cudeform.cuda.compile import along
from cudeform.cuda.device import Device, device_of, gradients
from cudeform.plans.aggregation import AggregationPlan

units = partial(aggregator.units, grid=True)


def forward(
    plan: AggregationPlan,
    input: Any,
    offset: Any = None,
    mask: Any = None,
    offset_mask: Any = None,
) -> tuple[Any]:
    """Sums of samples, for offset and mask or for both in one array."""
    with device_of(input) as device:
        output = device.empty(plan.results[0].shape, input.dtype)
        if plan.batch:
            points = plan.apart(offset, mask, offset_mask)
            _aggregator(device, plan, input, *points).aggregate(output)
    return (output,)


def backward(
    plan: AggregationPlan,
    grad_output: Any,
    input: Any,
    offset: Any = None,
    mask: Any = None,
    offset_mask: Any = None,
    *,
    needs: frozenset[str],
) -> dict[str, Any]:
    """The gradients that are needed."""
    points = {"offset": offset, "mask": mask, "offset_mask": offset_mask}
    with device_of(input) as device:
        grads = gradients(device, plan, {"input": input, **points}, needs)
        if not plan.batch:
            return grads
        call = _aggregator(device, plan, input, *plan.apart(**points))
        if "offset_mask" in grads:
            grads["offset_mask"].fill(0)  # what is behind the last point
        of_points = plan.apart(**{name: grads.get(name) for name in points})
        call.backpropagate(grad_output, grads.get("input"), *of_points)
    return grads


def _aggregator(
    device: Device, plan: AggregationPlan, input: Any, offset: Any, mask: Any
) -> Aggregator:
    extent = Extent(
        batch=plan.batch,
        pixels=plan.height * plan.width,
        heads=plan.groups,
        channels=plan.group_channels,
        queries=plan.out_height * plan.out_width,
        points=plan.points,
    )
    return Aggregator(device, extent, _fields(plan), (None, None), input, offset, mask)


@lru_cache(maxsize=512)
def _fields(plan: AggregationPlan) -> dict[str, Any]:
    """What of a Params follows from the kernel and the layout of its points."""
    only = (plan.height, plan.width, plan.points)
    levels = zip(("heights", "widths", "ends"), only, strict=True)
    origin = [center - pad for center, pad in zip(plan.center, plan.padding, strict=True)]
    return {
        **{name: np.array([n] + [0] * (MOST_LEVELS - 1), "i4").tobytes() for name, n in levels},
        "levels": 1,
        "wide_sizes": 0,
        **plan.steps,
        "nearest": 0,
        "softmax": int(plan.softmax),
        "out_width": plan.out_width,
        **along("stride", plan.stride),
        **along("origin", origin),
        **along("center", plan.center),
        **along("dilation", plan.dilation),
        "kernel_height": plan.kernel[0],
        "removed": plan.removed if plan.remove_center else plan.points,
        "offset_scale": plan.scale,
        "narrow_scale": plan.scale,
    }
