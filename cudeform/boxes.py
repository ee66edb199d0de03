"""Boxes of regions of interest, and the arguments that all poolings of regions share."""

from __future__ import annotations

from typing import Any

import numpy as np

from cudeform import arrays, checks
from cudeform.arrays import Kind
from cudeform.geometry import RoiPlan

__all__ = ["box_rows", "groups_of", "pool_plan", "positive", "sampling", "shift_cells"]

_MOST_SAMPLES = 2**15  # along an axis: the kernels count those of a bin in 32 bits
_EXACT = 2**24  # pixels: beyond, float32 does not tell one from the next
_MOST_OF_ARGMAX = 2**31  # pixels: y*W + x is int32
_WHY = "(R, 5) rows (image, x1, y1, x2, y2), or for each image an array (L, 4)"


def box_rows(op: str, boxes: Any, input: Any, kind: Kind) -> Any:
    """Boxes as one C-contiguous array (R, 5), of the dtype that coordinates have.

    Raises
    ------
    TypeError, ValueError
        Boxes of another kind, device, dtype or shape, or an image index that is no image of
        `input`. To see the indices, those of an array on a GPU are copied to the host.
    """
    dtype = arrays.sum_dtype(input.dtype)
    batch = input.shape[0]
    _check_sides(op, input.shape[2:], dtype)
    if isinstance(boxes, (list, tuple)):
        if len(boxes) != batch:
            checks.fail(op, "boxes", f"of length {batch}, one array per image", len(boxes), _WHY)
        for image, array in enumerate(boxes):
            _check(op, f"boxes[{image}]", array, input, kind, 4)
        xp = arrays.namespace(kind)
        rows = xp.empty((sum(len(array) for array in boxes), 5), dtype)
        start = 0
        for image, array in enumerate(boxes):
            rows[start : start + len(array), 0] = image
            rows[start : start + len(array), 1:] = array
            start += len(array)
        return rows
    _check(op, "boxes", boxes, input, kind, 5)
    images = kind.to_host(boxes[:, 0]).astype(np.float64)
    wrong = ~((images >= 0) & (images < batch) & (images == np.floor(images)))  # NaN is wrong
    if wrong.any():
        row = int(np.argmax(wrong))
        checks.fail(
            op,
            "boxes",
            f"with whole image indices from 0 to {batch - 1} in the first column",
            f"{images[row]:g} in row {row}",
        )
    return arrays.contiguous(boxes if boxes.dtype == dtype else boxes.astype(dtype))


def _check_sides(op: str, sides: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse images whose pixels the coordinates of regions do not tell apart.

    A symbol of a tracer is not compared: it would take that for a bound of the program.
    """
    for size in sides:
        if dtype == np.float32 and isinstance(size, int) and size > _EXACT:
            why = "boxes and samples are float32, which skips pixels beyond; float64 does not"
            checks.fail(op, "input", f"of at most {_EXACT} pixels along an axis", size, why)


def _check(op: str, name: str, boxes: Any, input: Any, kind: Kind, columns: int) -> None:
    given = {name: boxes}
    if not hasattr(boxes, "dtype"):
        checks.fail(op, name, "to be an array", arrays.type_name(boxes), _WHY, TypeError)
    if boxes.dtype == arrays.sum_dtype(input.dtype):  # 16-bit images may have finer boxes
        found = arrays.kind_of(op, given)
        if found is not kind or kind.device(boxes) != kind.device(input):
            arrays.kind_of(op, {"input": input, **given})
    else:
        arrays.kind_of(op, {"input": input, **given})
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        symbols = "(R, 5)" if columns == 5 else "(L, 4)"
        checks.fail(op, name, f"of shape {symbols}", tuple(boxes.shape), _WHY)


def positive(op: str, argument: str, value: Any) -> float:
    """A finite number above 0."""
    number = checks.number(op, argument, value)
    if number <= 0:
        checks.fail(op, argument, "to be above 0", repr(value))
    return number


def sampling(op: str, value: Any, argument: str = "sampling_ratio", minimum: int = -1) -> int:
    """Samples of a bin along each axis: 0 for as many as follow from its size."""
    samples = checks.integer(op, argument, value, minimum)
    if samples > _MOST_SAMPLES:
        checks.fail(op, argument, f"to be at most {_MOST_SAMPLES}", repr(value))
    return max(samples, 0)


def groups_of(op: str, channels: int, groups: tuple[int, int], what: str) -> tuple[int, int]:
    """Position-sensitive groups, which divide the channels."""
    if channels % (groups[0] * groups[1]):
        checks.fail(
            op,
            "input",
            f"with a number of channels divisible by {groups[0]} * {groups[1]} = {what}",
            channels,
        )
    return groups


def pool_plan(
    op: str,
    input: Any,
    rows: Any,
    output_size: Any,
    spatial_scale: Any,
    grad_output: Any = None,
    *,
    region: str,
    reads: str,
    **more: Any,
) -> RoiPlan:
    """The plan of a pooling; `more` are further fields of it."""
    axes = "(N, C, H, W)"
    checks.rank(op, "input", input, axes)
    checks.non_empty(op, "input", input, axes, may_be_empty=1)
    batch, channels, height, width = input.shape
    pixels = height * width
    if reads == "max" and isinstance(pixels, int) and pixels > _MOST_OF_ARGMAX:
        most, why = f"of at most {_MOST_OF_ARGMAX} pixels", "argmax, y*W + x, is int32"
        checks.fail(op, "input", most, pixels, why)
    plan = RoiPlan(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        regions=rows.shape[0],
        bins=checks.pair(op, "output_size", output_size, 1),
        scale=positive(op, "spatial_scale", spatial_scale),
        region=region,
        reads=reads,
        **more,
    )
    if grad_output is not None:
        checks.shape(op, "grad_output", grad_output, plan.out_shape, "(R, C, ph, pw)")
    return plan


def shift_cells(op: str, plan: RoiPlan, offset: Any, mask: Any) -> None:
    """Check the shapes of what moves and weighs the bins."""
    for array, name, want, channels in (
        (offset, "offset", plan.offset_shape, "2*classes" if plan.classes > 1 else "2"),
        (mask, "mask", plan.mask_shape, "classes" if plan.classes > 1 else "1"),
    ):
        if array is not None:
            checks.shape(op, name, array, want, f"(R, {channels}, part_h, part_w)")
