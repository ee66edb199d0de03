"""float16 and bfloat16: computed in float32, a few images at a time, and rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.conv.convolve import convolve
from cudeform.cpu.conv.gradients import gradients
from cudeform.cpu.conv.parts import reads_little
from cudeform.cpu.language import workspace
from cudeform.plans.convolution import ConvPlan

__all__ = ["backward", "forward"]


def forward(
    plan: ConvPlan,
    input: np.ndarray,
    offset: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray]:
    """The convolution, or without a weight the samples, in the dtype of `input`."""
    output = np.empty(plan.out_shape, input.dtype)
    if output.size == 0:
        return (output,)
    wide = sum_dtype(input.dtype)
    if input.dtype == wide:
        convolve(plan, input, offset, weight, bias, mask, output)
        return (output,)
    weight, bias = _widened((weight, bias), wide)
    little = reads_little(plan.points)
    for part, images in _parts(plan, wide, 0 if little else _pixels(plan)):
        offsets, masks = _widened((offset, mask), wide, images)
        source = input[images] if little else input[images].astype(wide)
        sums = np.empty(part.out_shape, wide)
        convolve(part, source, offsets, weight, bias, masks, sums)
        _round(sums, output[images])
    return (output,)


def backward(
    plan: ConvPlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    offset: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, each in the dtype of its argument."""
    per_image = {"input": input, "offset": offset, "mask": mask}
    if grad_output.size == 0:
        given = {**per_image, "weight": weight, "bias": weight}
        shapes = plan.gradients
        return {n: np.zeros(shapes[n].shape, given[n].dtype) for n in needs}
    wide = sum_dtype(input.dtype)
    if input.dtype == wide:
        return gradients(plan, grad_output, input, offset, weight, mask, needs)
    result = {name: np.empty_like(per_image[name]) for name in needs & per_image.keys()}
    shapes = {"weight": plan.weight_shape, "bias": plan.out_channels}
    sums = {name: np.zeros(shapes[name], wide) for name in needs & shapes.keys()}
    (weight,) = _widened((weight,), wide)
    for part, images in _parts(plan, wide, _pixels(plan)):
        grad, *given = _widened((grad_output, input, offset, mask), wide, images)
        found = gradients(part, grad, given[0], given[1], weight, given[2], needs)
        for name, gradient in found.items():
            if name in sums:
                sums[name] += gradient
            else:
                _round(gradient, result[name][images])
    for name, gradient in sums.items():
        result[name] = np.empty(gradient.shape, input.dtype)
        _round(gradient, result[name])
    return result


def _widened(arrays: tuple, dtype: np.dtype, images: slice = slice(None)) -> list:
    return [None if array is None else array[images].astype(dtype, copy=False) for array in arrays]


def _round(values: np.ndarray, output: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        output[...] = values


def _pixels(plan: ConvPlan) -> int:
    """Elements of an image."""
    return plan.points.channels * plan.points.height * plan.points.width


def _parts(plan: ConvPlan, dtype: np.dtype, copied: int) -> Iterator[tuple[ConvPlan, slice]]:
    """The batch in parts small enough to keep copies in a wider dtype, `copied` elements of each
    image and all that belongs to its output.
    """
    points = plan.points
    per_image = copied + points.pixels * (
        plan.out_channels + plan.offset_channels + plan.mask_channels
    )
    images = max(workspace.SCRATCH_BYTES // 2 // (per_image * dtype.itemsize), 1)
    for first in range(0, points.batch, images):
        last = min(first + images, points.batch)
        part = replace(plan, points=replace(points, batch=last - first))
        yield part, slice(first, last)
