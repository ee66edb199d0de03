"""Values in dtypes of fewer bits than they are computed in."""

from __future__ import annotations

import numpy as np

__all__ = ["rounded"]


def rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in a dtype of fewer bits, or themselves."""
    with np.errstate(over="ignore"):  # too large for float16 is infinite, which is no accident
        return values.astype(dtype, copy=False)
