"""Boxes that are given image by image, as one array, by the kernel of ``boxes.cu``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from cudeform.arrays import DTYPES, contiguous, dtype_name, sum_dtype
from cudeform.cuda.compile import SCALARS, Unit, pack
from cudeform.cuda.device import device_of
from cudeform.cuda.lanes import THREADS

IMAGES = 8  # of a launch
PARAMS = np.dtype(
    [("ends", "i4", (IMAGES,))] + [(name, "i4") for name in ("first_image", "first_row", "rows")],
    align=True,
)


@lru_cache(maxsize=64)
def _unit(dtype: str) -> Unit:
    sizes = (("THREADS", THREADS), ("IMAGES", IMAGES))
    return Unit("boxes.cu", (("SOURCE", SCALARS[dtype]),), PARAMS, sizes)


def units() -> Iterator[Unit]:
    """Every variant that a call can ask for."""
    return map(_unit, DTYPES)


def join(boxes: Sequence[Any], input: Any) -> Any:
    """Rows (image, x1, y1, x2, y2) of the boxes (L, 4) of each image of an input."""
    dtype = sum_dtype(input.dtype)
    if len({array.dtype for array in boxes}) > 1:
        boxes = [array.astype(dtype) for array in boxes]
    with device_of(input) as device:
        rows = device.empty((sum(array.shape[0] for array in boxes), 5), dtype)
        first_row = 0
        for first in range(0, len(boxes), IMAGES):
            some = [contiguous(array) for array in boxes[first : first + IMAGES]]
            ends = list(accumulate(array.shape[0] for array in some))
            absent = IMAGES - len(some)
            if ends[-1]:
                ends += [ends[-1]] * absent
                of_image = {"ends": np.array(ends, np.int32).tobytes(), "first_image": first}
                params = pack(PARAMS, {**of_image, "first_row": first_row, "rows": ends[-1]})
                arrays = (*some, *[None] * absent, rows)
                grid, unit = -(-ends[-1] // THREADS), _unit(dtype_name(some[0].dtype))
                device.launch(unit, "join_boxes", grid, THREADS, arrays, params)
            first_row += ends[-1]
    return rows
