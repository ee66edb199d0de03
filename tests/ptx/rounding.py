"""Floating-point numbers, rounded as PTX says where NumPy has no function that does.

An exact sum of two float64 is a float64 and what rounding it left out, which is one as well.
Rounded to odd, the last bit of the first is set if the second is not 0: then another rounding, to
half as many bits, sees on which side the sum was.
"""

import ml_dtypes
import numpy as np

from .program import Fault

__all__ = ["add", "convert", "flush", "fma"]

TINY = np.finfo(np.float32).tiny
INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
EXACT = {("f32", "f16"), ("f32", "bf16"), ("f64", "f32"), ("f64", "f16")}
DIRECTED = {"rm": -np.inf, "rp": np.inf, "rz": 0.0}  # to where
FLOATS = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32, "f64": np.float64}
NAN_BITS = np.uint16(0x7FFF)  # what a conversion to 16 bits makes of any NaN


def flush(x):
    """float32 without its subnormal numbers, which become zeros of their sign."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def _exact_sum(a, b):
    """The rounded sum, and the rest."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _exact_product(a, b):
    """The rounded product, and the rest; by Dekker's halves of 26 bits."""
    product = a * b
    halves = []
    for x in (a, b):
        wide = x * 134217729.0  # 2^27 + 1
        high = wide - (wide - x)
        halves.append((high, x - high))
    (a1, a2), (b1, b2) = halves
    return product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)


def _to_odd(total, rest):
    """The sum of two float64, with the last bit set where it is not exact."""
    away = np.where(rest > 0, np.inf, -np.inf)
    bits = np.asarray(total).view(np.int64)
    nudged = np.where((rest != 0) & (bits & 1 == 0), np.nextafter(total, away), total)
    return np.where(np.isfinite(rest), nudged, total)


def _directed(rounded, error, mode):
    """Of a number that was rounded to the nearest by `error` upward: rounded as `mode` says."""
    toward = rounded.dtype.type(DIRECTED[mode])
    beyond = error * np.sign(toward - rounded) < 0
    return np.where(beyond, np.nextafter(rounded, toward), rounded)


def _rounded(total, rest, kind, mode):
    """An exact sum, in a kind of float."""
    if kind == "f64":
        return total if mode == "rn" else _directed(total, -rest, mode)
    odd = _to_odd(total, rest)
    near = odd.astype(np.float32)
    return near if mode == "rn" else _directed(near, near.astype(np.float64) - odd, mode)


def add(a, b, kind, mode):
    """a + b, rounded once."""
    if mode == "rn":
        return a + b
    return _rounded(*_exact_sum(np.float64(a), np.float64(b)), kind, mode)


def fma(a, b, c, kind, mode):
    """a * b + c, rounded once."""
    if kind == "f32":
        product = np.float64(a) * np.float64(b)  # exact
        return _rounded(*_exact_sum(product, np.float64(c)), kind, mode)
    if mode != "rn":
        raise Fault(f"fma.{mode}.f64")
    # Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008
    product, rest = _exact_product(a, b)
    low, lowest = _exact_sum(c, rest)
    high, middle = _exact_sum(product, low)
    exact = high + _to_odd(*_exact_sum(lowest, middle))
    return np.where(np.isfinite(exact), exact, a * b + c)


def convert(x, to, came, parts):
    """``cvt``: `x` of one kind as another; `parts` say how it is rounded."""
    rounding = next((part for part in parts if part in INTEGRAL), None)
    if "ftz" in parts and came == "f32":
        x = flush(x)
    if rounding:
        x = INTEGRAL[rounding](x)
    if to[0] != "f" and to != "bf16":
        return x.astype(_integer(to)) if came[0] != "f" else _clamped(x, _integer(to))
    near = x.astype(FLOATS[to])
    mode = next((part for part in parts if part in DIRECTED), "rn")
    if mode in DIRECTED:
        near = _directed(near, near.astype(np.float64) - x.astype(np.float64), mode)
    elif "rn" not in parts and to != came and (to, came) not in EXACT:
        raise Fault("a conversion that is not told how to round")
    x = near
    if "sat" in parts:
        x = np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1))
    if to in ("f16", "bf16"):
        return np.where(np.isnan(x), NAN_BITS.view(x.dtype), x)
    return flush(x) if "ftz" in parts and to == "f32" else x


def _integer(kind):
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")


def _clamped(x, dtype):
    """Whole numbers as integers: the nearest that there is, 0 for NaN."""
    if dtype.itemsize > 4:
        raise Fault("a float as an integer of 64 bits")
    limits = np.iinfo(dtype)
    return np.where(np.isnan(x), 0, np.clip(x.astype(np.float64), limits.min, limits.max)).astype(
        dtype
    )
