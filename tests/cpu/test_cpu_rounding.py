"""Numbers of fewer bits, rounded from sums by all threads."""

import numpy as np
import pytest

from cudeform.cpu.language.dtypes import rounded


def awkward():
    """Every float16, what is halfway to the next, the neighbours of both; and any words."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    tiny = (np.arange(1 << 11, dtype=np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
    marks = np.concatenate([every, tiny, -tiny]).view(np.uint32).astype(np.int64)
    steps = np.array([-1, 0, 1, 0xFFF, 0x1000, 0x1001])[:, None]
    words = np.random.default_rng(0).integers(0, 1 << 32, 100_001)
    bits = np.concatenate([((marks + steps) % (1 << 32)).reshape(-1), words]).astype(np.uint32)
    return bits.view(np.float32)


LAYOUTS = {
    "contiguous": lambda values: values,
    "every second": lambda values: np.repeat(values, 2)[::2],
    "transposed": lambda values: values[: values.size // 8 * 8].reshape(-1, 8).T,
    "window": lambda values: values[: 640 * 640].reshape(640, 640)[1:-1, 1:-2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float16_is_rounded_as_by_numpy(layout):
    values = LAYOUTS[layout](awkward())
    with np.errstate(over="ignore", invalid="ignore"):
        want = values.astype(np.float16)
    found = rounded(values, np.dtype(np.float16))
    here = ~np.isnan(want)  # one NaN is as good as another
    np.testing.assert_array_equal(np.isnan(found), ~here)
    np.testing.assert_array_equal(found[here].view(np.uint16), want[here].view(np.uint16))
