"""Boxes that are given image by image, joined on a GPU."""

import numpy as np
import pytest
from cases import dtype_of
from emulator.device import to_device, to_host

from cudeform.cuda.box_rows import join


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "mixed"])
def test_boxes_image_by_image_are_joined(device, dtype):
    """Of more images than a launch has, of some of them none, and not side by side in memory."""
    rng = np.random.default_rng(8)
    counts = [3, 0, 300, 1, 0, 0, 2, 4, 5, 0, 7]
    names = ("float16", "float32") if dtype == "mixed" else (dtype, dtype)
    dtypes = [dtype_of(names[n % 2]) for n in range(11)]
    boxes = [rng.uniform(0, 9, (n, 4)).astype(d) for n, d in zip(counts, dtypes, strict=True)]
    image = to_device(np.zeros((11, 1, 2, 2), dtypes[0]))
    apart = [to_device(np.pad(array, ((0, 0), (1, 0))))[:, 1:] for array in boxes]
    found = join(apart, image)
    indices = np.repeat(np.arange(11), counts)[:, None]
    want = np.concatenate([indices, np.concatenate([b.astype(np.float64) for b in boxes])], 1)
    np.testing.assert_array_equal(to_host(found), want)
    assert found.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert join([], to_device(np.zeros((0, 1, 2, 2), np.float32))).shape == (0, 5)
