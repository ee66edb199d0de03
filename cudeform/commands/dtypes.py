"""Dtypes by their names."""

from __future__ import annotations

import numpy as np


def numpy_dtype(name: str) -> np.dtype:
    """A dtype by its name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
