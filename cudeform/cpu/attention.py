"""Attention to points of several levels."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.aggregator import Aggregator
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.queries import Extent
from cudeform.plans.attention import AttentionPlan

__all__ = ["backward", "forward"]


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
        _aggregator(plan, value, sampling_locations, attention_weights).aggregate(output)
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
        return {name: np.zeros_like(given[name]) for name in needs}
    grads = {name: np.empty_like(given[name]) for name in needs}
    call = _aggregator(plan, value, *points.values())
    if needs & points.keys():
        call.differentiate(grad_output, *map(grads.get, points))
    if "value" in needs:
        call.spread(grad_output, grads["value"])
    return grads


def _aggregator(
    plan: AttentionPlan, value: np.ndarray, locations: np.ndarray, weights: np.ndarray
) -> Aggregator:
    extent = Extent(
        pixels=plan.values,
        heads=plan.heads,
        channels=plan.channels,
        queries=plan.queries,
        points=plan.samples,
        nearest=int(plan.method == "nearest"),
        softmax=int(plan.softmax),
        **plan.steps,
    )
    return Aggregator(plan.batch, extent, _levels(plan), value, locations, weights)


@remembered
def _levels(plan: AttentionPlan) -> np.ndarray:
    """Height, width and first value of the level of each point, one after the other."""
    rows = [(*size, start) for size, start in zip(plan.shapes, plan.starts, strict=True)]
    return np.repeat(np.array(rows, np.int64), plan.points, 0).T.ravel()
