"""Attention to points of several levels."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.aggregator import Aggregator, Room
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.portions import Portion, differentiate_all, portions
from cudeform.cpu.queries import Extent
from cudeform.cpu.sizes import Sizes, sized
from cudeform.plans.attention import AttentionPlan

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
            _aggregator(plan, part, value, *map(part.of, points)).aggregate(part.of(output))
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
    room = None
    if "value" in needs:
        room = Room.like(value, _sizes(plan, plan.batch, plan.queries, value.dtype))
        grads["value"] = room.array
    parts = portions(grad_output.shape, (grad_output, *points.values()))

    def prepare(part: Portion) -> tuple[Aggregator, np.ndarray]:
        call = _aggregator(plan, part, value, *map(part.of, points.values()))
        return call, part.of(grad_output)

    def of_points(part: Portion) -> tuple[np.ndarray | None, ...]:
        return tuple(part.of(grads.get(name)) for name in points)

    differentiate_all(parts, prepare, of_points if needs & points.keys() else None, room)
    return grads


def _aggregator(
    plan: AttentionPlan,
    part: Portion,
    value: np.ndarray,
    locations: np.ndarray,
    weights: np.ndarray,
) -> Aggregator:
    (first_image, last_image), (first, last), _ = part
    sizes = _sizes(plan, last_image - first_image, last - first, value.dtype)
    return Aggregator(sizes, part.values(value), locations, weights)


@remembered
def _sizes(plan: AttentionPlan, images: int, queries: int, dtype: np.dtype) -> Sizes:
    extent = Extent(
        pixels=plan.values,
        heads=plan.heads,
        channels=plan.channels,
        queries=queries,
        points=plan.samples,
        **plan.steps,
    )
    rows = [(*size, start) for size, start in zip(plan.shapes, plan.starts, strict=True)]
    levels = np.repeat(np.array(rows, np.int64), plan.points, 0).T.ravel()
    shape = images, 1, plan.values, plan.heads, plan.channels
    rules = plan.method == "nearest", plan.softmax
    return sized(shape, extent, levels, None, 1.0, dtype, *rules)
