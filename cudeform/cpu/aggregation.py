"""Sums of samples around the pixels of an output."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.aggregator import Aggregator, Room
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.portions import Portion, differentiate_all, portions
from cudeform.cpu.queries import Extent
from cudeform.cpu.sizes import Sizes, Taps, sized
from cudeform.plans.aggregation import AggregationPlan

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
            call.aggregate(part.of(output))
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
    if grad_output.size == 0:
        return {name: np.zeros(given[name].shape, given[name].dtype) for name in needs}
    grads = {n: np.empty(given[n].shape, given[n].dtype) for n in needs & points.keys()}
    if "offset_mask" in grads:
        grads["offset_mask"][..., 3 * plan.groups * plan.points :] = 0  # behind the last point
    room = None
    if "input" in needs:
        room = Room.like(input, _sizes(plan, (0, plan.batch), (0, plan.out_height), input.dtype))
        grads["input"] = room.array
    parts = portions(grad_output.shape, (grad_output, *points.values()))

    def prepare(part: Portion) -> tuple[Aggregator, np.ndarray]:
        call = _aggregator(plan, part, input, *plan.apart(*map(part.of, points.values())))
        return call, part.of(grad_output)

    def of_points(part: Portion) -> tuple[np.ndarray | None, ...]:
        return plan.apart(*(part.of(grads.get(name)) for name in points))

    differentiate_all(parts, prepare, of_points if needs - {"input"} else None, room)
    return grads


def _aggregator(
    plan: AggregationPlan, part: Portion, input: np.ndarray, offset: np.ndarray, mask: np.ndarray
) -> Aggregator:
    sizes = _sizes(plan, part.images, part.rows, input.dtype)
    return Aggregator(sizes, part.values(input), offset, mask)


@remembered
def _sizes(
    plan: AggregationPlan, images: tuple[int, int], rows: tuple[int, int], dtype: np.dtype
) -> Sizes:
    origin_y, origin_x = (c - p for c, p in zip(plan.center, plan.padding, strict=True))
    extent = Extent(
        pixels=plan.height * plan.width,
        heads=plan.groups,
        channels=plan.group_channels,
        queries=(rows[1] - rows[0]) * plan.out_width,
        points=plan.points,
        **plan.steps,
        out_width=plan.out_width,
        stride_y=plan.stride[0],
        stride_x=plan.stride[1],
        origin_y=origin_y + rows[0] * plan.stride[0],
        origin_x=origin_x,
    )
    levels = np.array([plan.height, plan.width, 0])
    removed = plan.removed if plan.remove_center else plan.points
    taps = Taps(plan.kernel[0], removed, *plan.dilation, *plan.center)
    shape = images[1] - images[0], plan.height, plan.width, plan.groups, plan.group_channels
    return sized(shape, extent, levels, taps, plan.scale, dtype, softmax=plan.softmax)
