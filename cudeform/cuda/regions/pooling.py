"""Pooling of regions of interest: forward and backward, some regions at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from cudeform.cuda import layout
from cudeform.cuda.device import device_of, gradients
from cudeform.cuda.regions.rows import ROW_ITEMS, Launcher, Part, units
from cudeform.plans.regions import RoiPlan

__all__ = ["backward", "forward", "units"]

WORKSPACE_BYTES = 64 << 20  # rows and their gradients, what is kept of samples, buckets: each


def forward(
    plan: RoiPlan, input: Any, boxes: Any, offset: Any = None, mask: Any = None
) -> tuple[Any, ...]:
    """The output; for the largest also argmax, see `RoiPlan`."""
    with device_of(input) as device:
        output = device.empty(plan.out_shape, input.dtype)
        found = (output,)
        if plan.largest:
            found = output, device.empty(plan.argmax_shape, plan.argmax_dtype(input.dtype))
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
    yield from _slices(launcher.plan.regions, at_once)


def _slices(count: int, at_once: int) -> Iterator[slice]:
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
        if needs - {"input"}:
            _point_gradients(launcher, groups, grad_output, input, boxes, offset, mask, grads)
        if "input" in needs and plan.largest and plan.reads == "grid_centers":
            _chosen_gradient(launcher, boxes, grad_output, argmax, grads["input"])
        elif "input" in needs and plan.largest:
            launcher.spread(grad_output, argmax, boxes, grads["input"])
        elif "input" in needs:
            for images in _image_groups(launcher):
                gather = _Gather(launcher, images, grads["input"])
                for regions in groups:
                    gather.add(regions, boxes, offset, mask, grad_output)
                gather.finish()
    return grads


def _point_gradients(
    launcher: Launcher,
    groups: list[slice],
    grad_output: Any,
    input: Any,
    boxes: Any,
    offset: Any,
    mask: Any,
    grads: dict[str, Any],
) -> None:
    """Set the gradients of offset and mask."""
    staged = launcher.stage(input)
    for regions in groups:
        some_boxes, some_offset, some_mask = _cut(regions, boxes, offset, mask)
        launcher.point_gradients(
            staged,
            some_boxes,
            some_mask,
            launcher.rows(some_boxes, some_offset, None),
            launcher.rows_last(grad_output, regions),
            *_cut(regions, grads.get("offset"), grads.get("mask")),
        )


def _chosen_gradient(
    launcher: Launcher, boxes: Any, grad_output: Any, argmax: Any, grad_input: Any
) -> None:
    """Set the gradient of the input of the largest samples: each is a row of its own."""
    plan = launcher.plan
    channels, count = plan.channels, plan.regions * plan.channels
    single = replace(
        plan, batch=plan.batch * channels, channels=1, regions=count, samples=1, largest=False
    )
    lone = Launcher(launcher.device, single, launcher.dtype)
    target = grad_input.reshape(single.batch, 1, plan.height, plan.width)
    per_region = channels * lone.region_rows * ROW_ITEMS * lone.sums.itemsize
    at_once = max(1, WORKSPACE_BYTES // per_region)
    for images in _image_groups(lone):
        gather = _Gather(lone, images, target)
        for regions in _slices(plan.regions, at_once):
            rows = lone.chosen_rows(boxes[regions], argmax[regions], channels)
            grad_values = grad_output[regions].reshape(-1, 1)
            gather.add_rows(rows, grad_values, None)
        gather.finish()


def _image_groups(launcher: Launcher) -> Iterator[range]:
    """Divide the batch into groups of images whose buckets of samples fit the workspace.

    Each group visits all samples, so one is best; many classes and groups with few channels each
    have more buckets than pixels.
    """
    plan = launcher.plan
    cells = plan.classes * launcher.groups * (plan.height + 1) * (plan.width + 1)
    at_once = max(1, WORKSPACE_BYTES // (4 * cells))
    for first in range(0, plan.batch, at_once):
        yield range(first, min(first + at_once, plan.batch))


class _Gather:
    """The gradient of the input for some images, summed over groups of regions."""

    def __init__(self, launcher: Launcher, images: range, target: Any) -> None:
        self.launcher = launcher
        self.images = images
        self.target = target[images.start : images.stop]
        self.sum: Any = None  # (images, pixels, channels), or where nothing is moved the target's

    def add(self, regions: slice, boxes: Any, offset: Any, mask: Any, grad_output: Any) -> None:
        """Add what some regions give."""
        launcher = self.launcher
        grad_values = launcher.rows_last(grad_output, regions)
        counts = None
        if _has_own_counts(launcher.plan):
            counts = launcher.device.empty((grad_values.shape[0],), np.int32)
        rows = launcher.rows(*_cut(regions, boxes, offset, mask), counts)
        self.add_rows(rows, grad_values, counts)

    def add_rows(self, rows: Any, grad_values: Any, counts: Any) -> None:
        """Add what some rows give, with the gradients of their values."""
        launcher = self.launcher
        parts = list(_parts(launcher, rows.shape[0], counts))
        for part in parts:
            samples = launcher.samples(rows, part, self.images)
            first = self.sum is None
            if first:
                only = (
                    len(parts) == 1
                    and rows.shape[0] == launcher.plan.regions * launcher.region_rows
                )
                self.sum = self._place(only)
            launcher.gather(samples, self.images, grad_values, self.sum, not first)

    def _place(self, only: bool) -> Any:
        """Where the gradient is summed, of the final dtype if there is `only` one summand."""
        launcher, plan = self.launcher, self.launcher.plan
        images = len(self.images) * plan.classes * launcher.groups
        shape = (images, plan.height * plan.width, launcher.channels)
        dtype = launcher.dtype if only else launcher.sums
        if not launcher.moves and dtype == launcher.dtype:
            return self.target
        return launcher.device.empty(shape, dtype)

    def finish(self) -> None:
        """Bring the sum into the caller's layout and dtype."""
        launcher = self.launcher
        if self.sum is None:
            self.target.fill(0)
        elif launcher.moves:
            launcher.unstage(self.sum, self.target)
        elif self.sum.dtype != launcher.dtype:
            layout.fill(launcher.device, self.sum, self.target)


def _has_own_counts(plan: RoiPlan) -> bool:
    """Whether the number of samples of a row depends on its box."""
    return plan.samples == 0


def _parts(launcher: Launcher, rows: int, counts: Any) -> Iterator[Part]:
    """Divide rows into parts whose samples fit the workspace.

    With `counts` this waits for the device: how many samples there are is not known before.
    """
    per_sample = 16 + 8 * launcher.sums.itemsize  # keys, ranks and places; fractions twice
    most = WORKSPACE_BYTES // per_sample
    if counts is None:
        places = launcher.plan.samples**2
        at_once = max(1, most // places)
        for first in range(0, rows, at_once):
            here = min(at_once, rows - first)
            yield Part(first, here, here * places, None)
        return
    ends = np.cumsum(launcher.device.to_host(counts), dtype=np.int64)
    first = before = 0
    while first < rows:
        stop = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        total = int(ends[stop - 1]) - before
        if total:
            starts = np.concatenate([[0], ends[first : stop - 1] - before]).astype(np.int32)
            yield Part(first, stop - first, total, launcher.device.to_device(starts))
        first, before = stop, before + total
