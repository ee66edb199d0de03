"""Sums of samples around the pixels of an output."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.aggregator import Aggregator, Portion, portions, spread_all, unfilled
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.queries import Extent
from cudeform.plans.aggregation import AggregationPlan

__all__ = ["STRIDED", "backward", "forward"]

STRIDED = ("grad_output", "input", "offset", "mask", "offset_mask")  # need not be contiguous


def forward(
    plan: AggregationPlan,
    input: np.ndarray,
    offset: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    offset_mask: np.ndarray | None = None,
) -> tuple[np.ndarray]:
    """Sums of samples, for offset and mask or for both in one array."""
    output = np.empty(plan.results[0].shape, input.dtype)
    if output.size:
        points = offset, mask, offset_mask
        for part in portions(output.shape, points):
            call = _aggregator(plan, part, input, *plan.apart(*map(part.of, points)))
            call.aggregate(output[part])
    return (output,)


def backward(
    plan: AggregationPlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    offset: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    offset_mask: np.ndarray | None = None,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, each in the dtype of its argument."""
    points = {"offset": offset, "mask": mask, "offset_mask": offset_mask}
    given = {"input": input, **points}
    # Zeros stay behind the last point of a packed array.
    grads = {n: np.zeros(given[n].shape, given[n].dtype) for n in needs & points.keys()}
    if grad_output.size == 0:
        return grads | {n: np.zeros(input.shape, input.dtype) for n in needs & {"input"}}
    if "input" in needs:
        grads["input"] = unfilled(input)
    parts = portions(grad_output.shape, (grad_output, *points.values()))

    def prepare(part: Portion) -> tuple[Aggregator, np.ndarray]:
        call = _aggregator(plan, part, input, *plan.apart(*map(part.of, points.values())))
        return call, part.of(grad_output)

    if needs - {"input"}:
        for part in parts:
            call, grad = prepare(part)
            of_points = (part.of(grads.get(name)) for name in points)
            call.differentiate(grad, *plan.apart(*of_points))
    if "input" in needs:
        spread_all(parts, prepare, grads["input"])
    return grads


def _aggregator(
    plan: AggregationPlan, part: Portion, input: np.ndarray, offset: np.ndarray, mask: np.ndarray
) -> Aggregator:
    first, last, _ = part.rows.indices(plan.out_height)
    origin_y, origin_x = (c - p for c, p in zip(plan.center, plan.padding, strict=True))
    extent = Extent(
        pixels=plan.height * plan.width,
        heads=plan.groups,
        channels=plan.group_channels,
        queries=(last - first) * plan.out_width,
        points=plan.points,
        nearest=0,
        softmax=int(plan.softmax),
        **plan.steps,
        out_width=plan.out_width,
        stride_y=plan.stride[0],
        stride_x=plan.stride[1],
        origin_y=origin_y + first * plan.stride[0],
        origin_x=origin_x,
    )
    input = input[part.images]
    input = input.reshape(*input.shape[:3], plan.groups, plan.group_channels)
    return Aggregator(len(input), extent, _levels(plan), input, offset, mask, plan.scale)


@remembered
def _levels(plan: AggregationPlan) -> np.ndarray:
    """Of each point the size of the image, its first pixel, and the tap's place from the center."""
    taps = np.array(plan.taps, np.int64) - plan.center
    image = np.tile([plan.height, plan.width, 0], (plan.points, 1))
    return np.concatenate([image, taps], 1).T.ravel()
