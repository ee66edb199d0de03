"""Whether a GPU converts numbers of 16 bits exactly: one that truncates passes any tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cudeform.commands.dtypes import numpy_dtype

NARROW = ("float16", "bfloat16")
ToDevice = Callable[[np.ndarray], Any]
ToHost = Callable[[Any], np.ndarray]


def numbers(dtype: str) -> np.ndarray:
    """Numbers of float32 that are hard to round to a dtype of 16 bits.

    Every number of that dtype, subnormals, infinities and NaN among them; the middle between each
    two neighbours, which is a tie, and what is next to it on both sides; the smallest numbers of
    float32; and 10^5 random patterns of bits.
    """
    rng = np.random.default_rng(0)
    every = _every(dtype).astype(np.float32)
    finite = np.unique(every[np.isfinite(every)])
    ties = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    below, above = np.nextafter(ties, np.float32(-np.inf)), np.nextafter(ties, np.float32(np.inf))
    tiny = np.arange(1, 100, dtype=np.uint32).view(np.float32)
    random = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    return np.concatenate([every, ties, below, above, tiny, -tiny, random])


def _every(dtype: str) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(dtype))


def wrong(dtype: str, to_device: ToDevice, to_host: ToHost) -> tuple[int, str]:
    """How many numbers were converted, to float32 and from it, and what went wrong first, or ""."""
    narrow, given = numpy_dtype(dtype), numbers(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = given.astype(narrow)
    pairs = ((_every(dtype), _every(dtype).astype(np.float32)), (given, rounded))
    for source, expected in pairs:
        got = to_host(_converted(to_device(source), expected.dtype))
        bits = np.dtype(f"u{expected.itemsize}")
        same = (got.view(bits) == expected.view(bits)) | (np.isnan(got) & np.isnan(expected))
        if not same.all():
            first = np.flatnonzero(~same)[0]
            what = f"{source[first]!s} of {source.dtype} becomes {got[first]!s} of {got.dtype}"
            return 0, f"{what}, not {expected[first]!s}: {np.count_nonzero(~same)} are wrong"
    return sum(source.size for source, _ in pairs), ""


def _converted(source: Any, dtype: np.dtype) -> Any:
    """An array of a GPU in another dtype, by the conversions that all kernels share."""
    from cudeform.cuda import layout
    from cudeform.cuda.device import device_of

    with device_of(source) as device:
        target = device.empty(source.shape, dtype)
        layout.fill(device, source, target)
    return target
