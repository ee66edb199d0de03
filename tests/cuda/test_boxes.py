"""Boxes that are given image by image, joined on a GPU."""

import numpy as np
import pytest
from cases import dtype_of
from emulator.device import to_device, to_host
from poolings import calls

import cudeform
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


def _on_device(given):
    return {k: to_device(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}


NO_IMAGES = [-1, 2, 0.5, -0.25, 1e30, -1e30, 2.0**31, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("channels", [3, 4])
def test_an_image_that_does_not_exist_is_nan_and_has_no_gradient(monkeypatch, device, channels):
    """Of all others results and gradients are those without such regions; no value is looked at."""
    monkeypatch.setattr(device, "to_host", None)
    todo = [*calls(channels, "float32"), *calls(channels, "float16")]
    for op, given in [*todo, ("ps_roi_align", dict(todo)["ps_roi_pool"])]:
        moved = {name: given[name] for name in ("boxes", "offset", "mask") if name in given}
        wrong = {**given, **{name: np.repeat(array, 3, 0) for name, array in moved.items()}}
        bad = np.arange(15) % 3 > 0
        wrong["boxes"][bad, 0] = NO_IMAGES
        for name in moved.keys() - {"boxes"}:
            wrong[name][bad] = np.inf
        want = to_host(getattr(cudeform, op)(**_on_device(given)))
        got = to_host(getattr(cudeform, op)(**_on_device(wrong)))
        assert np.isnan(got[bad]).all()
        np.testing.assert_array_equal(got[~bad], want)
        grad = np.random.default_rng(3).standard_normal(got.shape).astype(got.dtype)
        grad[bad] = np.nan
        call = getattr(cudeform, op + "_backward")
        expected = call(to_device(grad[~bad]), **_on_device(given))._asdict()
        for name, gradient in call(to_device(grad), **_on_device(wrong))._asdict().items():
            if gradient is not None:
                found, alone = to_host(gradient), to_host(expected[name])
                if name in moved:
                    np.testing.assert_array_equal(found[bad], 0)
                    found = found[~bad]
                np.testing.assert_array_equal(found, alone)
        if op == "roi_pool" and "mode" not in given:
            _, argmax = cudeform.roi_pool(**_on_device(wrong), return_argmax=True)
            np.testing.assert_array_equal(to_host(argmax)[bad], -1)
