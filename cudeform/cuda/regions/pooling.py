"""Pooling of regions of interest: forward and backward, some regions at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cudeform.cuda import layout
from cudeform.cuda.device import device_of, gradients
from cudeform.cuda.regions.rows import ROW_ITEMS, Launcher
from cudeform.plans.regions import RoiPlan

WORKSPACE_BYTES = 64 << 20  # of rows and their gradients


def forward(
    plan: RoiPlan, input: Any, boxes: Any, offset: Any = None, mask: Any = None
) -> tuple[Any, ...]:
    """The output; for the largest also argmax, see `RoiPlan`."""
    with device_of(input) as device:
        output = device.empty(plan.out_shape, input.dtype)
        found = (output,)
        if plan.largest:
            found = output, device.empty(plan.results[1].shape, plan.argmax_dtype(input.dtype))
        if plan.regions == 0:
            return found
        launcher = Launcher(device, plan, input.dtype, offset)
        staged = launcher.stage(input)
        for regions in _region_groups(launcher):
            rows = launcher.rows(*_cut(regions, boxes, offset, mask))
            launcher.pool(staged, rows, *_cut(regions, *found))
    return found


def _cut(regions: slice, *arrays: Any) -> Iterator[Any]:
    """A part of each array; None stays None."""
    return (None if array is None else array[regions] for array in arrays)


def _region_groups(launcher: Launcher, copied: int = 0) -> Iterator[slice]:
    """Divide the regions into groups whose rows, with `copied` bytes each, fit the workspace."""
    per_row = copied + ROW_ITEMS * launcher.sums.itemsize
    at_once = max(1, WORKSPACE_BYTES // (launcher.region_rows * per_row))
    count = launcher.plan.regions
    for first in range(0, count, at_once):
        yield slice(first, min(first + at_once, count))


def backward(
    plan: RoiPlan,
    grad_output: Any,
    input: Any,
    boxes: Any,
    offset: Any = None,
    mask: Any = None,
    argmax: Any = None,
    *,
    needs: frozenset[str],
) -> dict[str, Any]:
    """The gradients that are needed. Plans that read whole pixels have no offset and no mask."""
    with device_of(input) as device:
        given = {"input": input, "offset": offset, "mask": mask}
        grads = gradients(device, plan, given, needs, zero=plan.regions == 0)
        if plan.regions == 0:
            return grads
        launcher = Launcher(device, plan, input.dtype, offset)
        groups = list(_region_groups(launcher, launcher.moves * launcher.row_bytes))
        moved = boxes, offset, mask
        if needs - {"input"}:
            _point_gradients(launcher, groups, grad_output, input, moved, grads)
        if "input" in needs and plan.largest:
            launcher.spread(grad_output, argmax, boxes, grads["input"])
        elif "input" in needs:
            _input_gradient(launcher, groups, grad_output, moved, grads["input"])
    return grads


def _point_gradients(
    launcher: Launcher, groups: list[slice], grad_output: Any, input: Any, moved: Any, grads: Any
) -> None:
    """Set the gradients of offset and mask; `moved` are the boxes and these."""
    staged = launcher.stage(input)
    for regions in groups:
        boxes, offset, mask = _cut(regions, *moved)
        rows = launcher.rows(boxes, offset, None)
        grad_values = launcher.rows_last(grad_output, regions)
        found = _cut(regions, grads.get("offset"), grads.get("mask"))
        launcher.point_gradients(staged, boxes, mask, rows, grad_values, *found)


def _input_gradient(
    launcher: Launcher, groups: list[slice], grad_output: Any, moved: Any, target: Any
) -> None:
    """Set the gradient of the input, of several groups of regions from sums without rounding."""
    plan, total = launcher.plan, target
    dtype = launcher.dtype if len(groups) == 1 else launcher.sums
    if launcher.moves or dtype != launcher.dtype:
        shape = (launcher.images, plan.height * plan.width, launcher.channels)
        total = launcher.device.empty(shape, dtype)
    for regions in groups:
        rows = launcher.rows(*_cut(regions, *moved))
        grad_values = launcher.rows_last(grad_output, regions)
        launcher.gather(rows, grad_values, total, accumulate=regions.start > 0)
    if launcher.moves:
        launcher.unstage(total, target)
    elif total is not target:
        layout.fill(launcher.device, total, target)
