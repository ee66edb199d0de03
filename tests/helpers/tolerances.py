"""How close is close: one row per dtype, and the comparison that uses it."""

import numpy as np

__all__ = ["TOLERANCE", "assert_close"]

# The largest error of an array, in units of its largest expected magnitude. The reference works
# in float64 on the rounded arguments, so what is left is the arithmetic of the backend:
#   float64   sums of a few hundred terms, 1e-16 each.
#   float32   a coordinate of 10 to 20 pixels is rounded to 1e-6 pixel before it becomes a weight,
#             and neighbouring pixels of the test images differ by several units.
#   float16, bfloat16   coordinates and sums are float32; the output and, where a matrix product
#             in the storage type does the sums, each sampled value are rounded once, by 2**-11
#             and 2**-8 of their size. Four such steps is the bound.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def assert_close(actual, expected, dtype=None, *, tolerance=None, what=""):
    """`actual` within the row of `dtype` (its own by default) of the float64 array `expected`."""
    dtype = actual.dtype.name if dtype is None else dtype
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    assert actual.shape == expected.shape, f"{what}: {actual.shape} instead of {expected.shape}"
    if expected.size == 0:
        return
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    error = np.abs(actual - expected)
    bound = tolerance * np.abs(expected).max()
    if not (error <= bound).all():  # also true for NaN
        ranked = np.where(np.isnan(error), np.inf, error)
        worst = np.unravel_index(np.argmax(ranked), error.shape)
        wrong = np.count_nonzero(~(error <= bound))
        raise AssertionError(
            f"{what}: {wrong} of {error.size} elements are off by more than {bound:.3g}; the worst"
            f" is {tuple(map(int, worst))}: {actual[worst]!r} instead of {expected[worst]!r}"
        )
