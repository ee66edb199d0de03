"""Sums of samples around the pixels of an output."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.aggregator import Aggregator
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.queries import Extent
from cudeform.plans.aggregation import AggregationPlan

__all__ = ["backward", "forward"]


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
        _aggregator(plan, input, *plan.apart(offset, mask, offset_mask)).aggregate(output)
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
    given = {"input": input, "offset": offset, "mask": mask, "offset_mask": offset_mask}
    # Zeros stay where nothing is written: behind the last point of a packed array.
    grads = {name: np.zeros_like(given[name]) for name in needs}
    if grad_output.size == 0:
        return grads
    call = _aggregator(plan, input, *plan.apart(offset, mask, offset_mask))
    if needs - {"input"}:
        of_points = map(grads.get, ("offset", "mask", "offset_mask"))
        call.differentiate(grad_output, *plan.apart(*of_points))
    if "input" in needs:
        call.spread(grad_output, grads["input"])
    return grads


def _aggregator(
    plan: AggregationPlan, input: np.ndarray, offset: np.ndarray, mask: np.ndarray
) -> Aggregator:
    origin_y, origin_x = (c - p for c, p in zip(plan.center, plan.padding, strict=True))
    extent = Extent(
        pixels=plan.height * plan.width,
        heads=plan.groups,
        channels=plan.group_channels,
        queries=plan.out_height * plan.out_width,
        points=plan.points,
        nearest=0,
        softmax=int(plan.softmax),
        **plan.steps,
        out_width=plan.out_width,
        stride_y=plan.stride[0],
        stride_x=plan.stride[1],
        origin_y=origin_y,
        origin_x=origin_x,
    )
    return Aggregator(plan.batch, extent, _levels(plan), input, offset, mask, plan.scale)


@remembered
def _levels(plan: AggregationPlan) -> np.ndarray:
    """Of each point the size of the image, its first pixel, and the tap's place from the center."""
    taps = np.array(plan.taps, np.int64) - plan.center
    image = np.tile([plan.height, plan.width, 0], (plan.points, 1))
    return np.concatenate([image, taps], 1).T.ravel()
