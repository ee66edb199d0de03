"""Boxes of regions of interest: rows whose first column says which image they are of."""

from __future__ import annotations

from typing import Any

import numpy as np

from cudeform import arrays, checks
from cudeform.arrays import Kind
from cudeform.plans import Outline

_EXACT = 2**24  # pixels: beyond, float32 does not tell one from the next
_FEW = 64
_WHY = "(R, 5) rows (image, x1, y1, x2, y2), or for each image an array (L, 4)"


def box_outline(op: str, boxes: Any, input: Any, kind: Kind) -> Outline:
    """What `box_rows` would return, for boxes whose values are not known yet.

    Raises
    ------
    TypeError, ValueError
        Boxes of another kind, device, dtype or shape.
    """
    if input.ndim != 4:
        checks.rank(op, "input", input, "(N, C, H, W)")
    _check_sides(op, input.shape[2:], kind.dtype_name(input.dtype))
    if not isinstance(boxes, (list, tuple)):
        _check(op, "boxes", boxes, input, kind, 5)
        return Outline(tuple(boxes.shape))
    batch = input.shape[0]
    if len(boxes) != batch:
        checks.fail(op, "boxes", f"of length {batch}, one array per image", len(boxes), _WHY)
    for image, array in enumerate(boxes):
        _check(op, f"boxes[{image}]", array, input, kind, 4)
    return Outline((sum(array.shape[0] for array in boxes), 5))


def box_rows(op: str, boxes: Any, input: Any, kind: Kind) -> Any:
    """Boxes that have an outline as one C-contiguous array (R, 5), of the dtype of coordinates.

    Raises
    ------
    ValueError
        An image index that is no image of `input`, on the CPU. On a GPU nobody waits to see one:
        the kernels make NaN of such a region.

    Notes
    -----
    On the CPU always an array of its own: what is checked is what is computed with, whoever writes
    to the caller's.
    """
    dtype = arrays.sum_dtype(input.dtype)
    if isinstance(boxes, (list, tuple)):
        shape = sum(len(array) for array in boxes), 5
        rows = arrays.namespace(kind).empty(shape, dtype)
        start = 0
        for image, array in enumerate(boxes):
            rows[start : start + len(array), 0] = image
            rows[start : start + len(array), 1:] = array
            start += len(array)
        return rows
    if kind.backend == "cuda":
        return boxes.astype(dtype, "C", copy=False)
    batch = input.shape[0]
    rows = boxes.astype(dtype, "C")
    images = rows[:, 0]
    row = _first_wrong(images, batch)
    if row is not None:
        checks.fail(
            op,
            "boxes",
            f"with whole image indices from 0 to {batch - 1} in the first column",
            f"{float(images[row]):g} in row {row}",
        )
    return rows


def _first_wrong(images: np.ndarray, batch: int) -> int | None:
    """The first row whose index is that of no image; NaN is none."""
    if len(images) <= _FEW:  # each step of NumPy takes a microsecond
        for row, image in enumerate(images.tolist()):
            if not (0 <= image < batch and image == int(image)):
                return row
        return None
    wrong = ~((images >= 0) & (images < batch) & (images == np.floor(images)))
    return int(np.argmax(wrong)) if wrong.any() else None


def _check_sides(op: str, sides: tuple[int, ...], dtype: str) -> None:
    """Refuse images whose pixels the coordinates of regions do not tell apart.

    A symbol of a tracer is not compared: it would take that for a bound of the program.
    """
    for size in sides:
        if dtype != "float64" and isinstance(size, int) and size > _EXACT:
            why = "boxes and samples are float32, which skips pixels beyond; float64 does not"
            checks.fail(op, "input", f"of at most {_EXACT} pixels along an axis", size, why)


def _check(op: str, name: str, boxes: Any, input: Any, kind: Kind, columns: int) -> None:
    given = {name: boxes}
    if not hasattr(boxes, "dtype"):
        checks.fail(op, name, "to be an array", checks.type_name(boxes), _WHY, TypeError)
    own = arrays.known(op, name, boxes)
    finer = arrays.sum_dtype_name(kind.dtype_name(input.dtype))  # which boxes of 16 bits may be
    if (
        own is not kind
        or kind.device(boxes) != kind.device(input)
        or kind.dtype_name(boxes.dtype) != finer
    ):
        arrays.kind_of(op, {"input": input, **given})
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        symbols = "(R, 5)" if columns == 5 else "(L, 4)"
        checks.fail(op, name, f"of shape {symbols}", tuple(boxes.shape), _WHY)
