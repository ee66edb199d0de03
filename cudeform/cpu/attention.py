"""Attention to points of several levels."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.aggregator import Aggregator, Portion, portions, spread_all, unfilled
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.queries import Extent
from cudeform.plans.attention import AttentionPlan

__all__ = ["STRIDED", "backward", "forward"]

# Need not be contiguous
STRIDED = ("grad_output", "value", "sampling_locations", "attention_weights")


def forward(
    plan: AttentionPlan,
    value: np.ndarray,
    spatial_shapes: None,
    sampling_locations: np.ndarray,
    attention_weights: np.ndarray,
) -> tuple[np.ndarray]:
    """The sums of samples, in the dtype of `value`."""
    output = np.empty(plan.results[0].shape, value.dtype)
    if output.size:
        points = sampling_locations, attention_weights
        for part in portions(output.shape, points):
            call = _aggregator(plan, part, value, *map(part.of, points))
            call.aggregate(output[part])
    return (output,)


def backward(
    plan: AttentionPlan,
    grad_output: np.ndarray,
    value: np.ndarray,
    spatial_shapes: None,
    sampling_locations: np.ndarray,
    attention_weights: np.ndarray,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, each in the dtype of its argument."""
    points = {"sampling_locations": sampling_locations, "attention_weights": attention_weights}
    given = {"value": value, **points}
    if grad_output.size == 0:
        return {name: np.zeros(given[name].shape, given[name].dtype) for name in needs}
    grads = {name: np.empty(given[name].shape, given[name].dtype) for name in needs & points.keys()}
    if "value" in needs:
        grads["value"] = unfilled(value)
    parts = portions(grad_output.shape, (grad_output, *points.values()))

    def prepare(part: Portion) -> tuple[Aggregator, np.ndarray]:
        call = _aggregator(plan, part, value, *map(part.of, points.values()))
        return call, part.of(grad_output)

    if needs & points.keys():
        for part in parts:
            call, grad = prepare(part)
            call.differentiate(grad, *(part.of(grads.get(name)) for name in points))
    if "value" in needs:
        spread_all(parts, prepare, grads["value"])
    return grads


def _aggregator(
    plan: AttentionPlan,
    part: Portion,
    value: np.ndarray,
    locations: np.ndarray,
    weights: np.ndarray,
) -> Aggregator:
    extent = Extent(
        pixels=plan.values,
        heads=plan.heads,
        channels=plan.channels,
        queries=part.rows.stop - part.rows.start,
        points=plan.samples,
        nearest=int(plan.method == "nearest"),
        softmax=int(plan.softmax),
        **plan.steps,
    )
    value = value[part.images, None]
    return Aggregator(len(value), extent, _levels(plan), value, locations, weights)


@remembered
def _levels(plan: AttentionPlan) -> np.ndarray:
    """Height, width and first value of the level of each point, one after the other."""
    rows = [(*size, start) for size, start in zip(plan.shapes, plan.starts, strict=True)]
    return np.repeat(np.array(rows, np.int64), plan.points, 0).T.ravel()
