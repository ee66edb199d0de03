"""Which way a convolution goes: at once, a few images at a time, or in pieces of an image.

What has 16 bits is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.conv.convolve import convolve
from cudeform.cpu.conv.gradients import gradients, workspace_bytes
from cudeform.cpu.conv.large import convolve_pieces
from cudeform.cpu.conv.large_gradients import piece_gradients
from cudeform.cpu.conv.parts import reads_little
from cudeform.cpu.conv.pieces import MOST_TAPS, MOST_WEIGHTS
from cudeform.cpu.language import workspace
from cudeform.cpu.language.dtypes import add, copied, copy
from cudeform.cpu.language.strided import aligned
from cudeform.plans.convolution import ConvPlan

STRIDED = ("grad_output", "input", "offset", "mask")  # need not be contiguous

_MOST_COPIES = 24 << 20  # bytes of copies of an image and what belongs to its output
_MOST = 56 << 20  # bytes of a backward


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
    if are_plain((input, offset, mask), wide) and _is_small(plan, weight):
        convolve(plan, input, offset, weight, bias, mask, output)
        return (output,)
    little = reads_little(plan.points)
    input = aligned(input) if little else input
    per_image = _copied((None if little else input, offset, mask, output), wide)
    if not _is_small(plan, weight) or per_image > _MOST_COPIES:
        arrays = {"input": input, "offset": offset, "mask": mask, "weight": weight, "bias": bias}
        convolve_pieces(plan, arrays, output, wide)
        return (output,)
    if per_image == 0:  # nothing is copied
        convolve(plan, input, offset, weight, bias, mask, output)
        return (output,)
    weight, bias = _widened((weight, bias), wide)
    for part, images in _parts(plan, per_image):
        offsets, masks = _widened((offset, mask), wide, images)
        source = input[images] if little else _widened((input,), wide, images)[0]
        sums = output[images] if output.dtype == wide else np.empty(part.out_shape, wide)
        convolve(part, source, offsets, weight, bias, masks, sums)
        if sums.dtype != output.dtype:
            copy(sums, output[images])
    return (output,)


def backward(
    plan: ConvPlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    offset: np.ndarray | None = None,
    weight: np.ndarray | None = None,  # there always is one
    mask: np.ndarray | None = None,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, each in the dtype of its argument."""
    given = {"input": input, "offset": offset, "mask": mask, "weight": weight}
    if grad_output.size == 0:
        return _zeros(plan, given, needs)
    wide = sum_dtype(input.dtype)
    per_image = _copied((grad_output, input, offset, mask), wide)
    images = _images(plan, per_image) if input.dtype != wide else plan.points.batch
    copies = 2 * images * per_image  # of what is given, and of gradients
    asked = _of_images(plan, images), wide, True, needs
    if not _is_small(plan, weight) or workspace_bytes(*asked) + copies > _MOST:
        result = _zeros(plan, given, needs)
        piece_gradients(plan, {**given, "grad_output": grad_output}, result, wide)
        return result
    if input.dtype == wide:
        return gradients(plan, grad_output, input, offset, weight, mask, needs)
    return _gradients_in_parts(plan, given, grad_output, needs, per_image)


def _zeros(
    plan: ConvPlan, given: dict[str, np.ndarray | None], needs: frozenset[str]
) -> dict[str, np.ndarray]:
    """The gradients, to be filled or added to."""
    found = {n: np.zeros(given[n].shape, given[n].dtype) for n in needs & given.keys()}
    if "bias" in needs:
        found["bias"] = np.zeros(plan.out_channels, given["weight"].dtype)
    return found


def _gradients_in_parts(
    plan: ConvPlan,
    given: dict[str, np.ndarray | None],
    grad_output: np.ndarray,
    needs: frozenset[str],
    per_image: int,
) -> dict[str, np.ndarray]:
    """From 16 bits, which are widened a few images at a time."""
    wide = sum_dtype(grad_output.dtype)
    result = _zeros(plan, given, needs)
    sums = {name: np.zeros(result[name].shape, wide) for name in needs & {"weight", "bias"}}
    (weight,) = _widened((given["weight"],), wide)
    arrays = grad_output, given["input"], given["offset"], given["mask"]
    for part, images in _parts(plan, per_image):
        grad, input, offset, mask = _widened(arrays, wide, images)
        copies = 2 * part.points.batch * per_image
        given = grad, input, offset, weight, mask
        for name, gradient in gradients(part, *given, needs, copies).items():
            if name in sums:
                add(gradient, sums[name])
            else:
                copy(gradient, result[name][images])
    for name, gradient in sums.items():
        copy(gradient, result[name])
    return result


def _widened(arrays: tuple, dtype: np.dtype, images: slice = slice(None)) -> list:
    return [None if array is None else _as(array[images], dtype) for array in arrays]


def _as(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Contiguous and of a dtype, copied only if it is not."""
    return array if array.dtype == dtype and array.flags.c_contiguous else copied(array, dtype)


def _is_small(plan: ConvPlan, weight: np.ndarray | None) -> bool:
    """Whether tiles and what is made of the weight are."""
    return plan.points.taps <= MOST_TAPS and (weight is None or weight.size <= 8 * MOST_WEIGHTS)


def are_plain(arrays: tuple[np.ndarray | None, ...], dtype: np.dtype) -> bool:
    """Whether kernels read all of them as they lie."""
    for array in arrays:
        if array is not None and not (array.dtype == dtype and array.flags.c_contiguous):
            return False
    return True


def _copied(arrays: tuple[np.ndarray | None, ...], dtype: np.dtype) -> int:
    """Bytes of the copies of an image and what belongs to it: in a dtype, and contiguous."""
    if are_plain(arrays, dtype):
        return 0
    elements, strided, mixed = 0, 0, False
    for array in arrays:
        if array is not None:
            count = array.size // array.shape[0]
            elements += count
            mixed |= array.dtype != dtype
            strided += 0 if array.flags.c_contiguous else count
    return (elements if mixed else strided) * dtype.itemsize


def _images(plan: ConvPlan, per_image: int) -> int:
    """How many are copied at a time."""
    most = plan.points.batch
    return min(max(workspace.SCRATCH_BYTES // 2 // per_image, 1), most) if per_image else most


def _of_images(plan: ConvPlan, images: int) -> ConvPlan:
    if images == plan.points.batch:
        return plan
    return replace(plan, points=replace(plan.points, batch=images))


def _parts(plan: ConvPlan, per_image: int) -> Iterator[tuple[ConvPlan, slice]]:
    """The batch in parts small enough to keep copies of."""
    images = _images(plan, per_image)
    for first in range(0, plan.points.batch, images):
        last = min(first + images, plan.points.batch)
        yield _of_images(plan, last - first), slice(first, last)
