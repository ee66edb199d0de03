"""Poolings with bad arguments: an error in the house's wording, before any work."""

# ruff: noqa: E501 -- one mistake, one row, with all of its message

import ml_dtypes
import numpy as np
import pytest

import cudeform

R = 3


def f32(*shape):
    return np.ones(shape, np.float32)


def boxes(*rows):
    table = np.tile(np.array([0, 1, 1, 5, 4], np.float32), (R, 1))
    for row, column, value in rows:
        table[row, column] = value
    return table


def pooled():
    return {"input": f32(2, 12, 7, 6), "boxes": boxes(), "output_size": (2, 3)}


def deformed():
    return {**pooled(), "offset": f32(R, 2, 2, 3), "mask": f32(R, 1, 2, 3)}


def sensitive():
    return {
        **pooled(),
        "offset": f32(R, 6, 2, 2),
        "mask": f32(R, 3, 2, 2),
        "spatial_scale": 0.5,
        "output_dim": 3,
        "group_size": 2,
        "part_size": 2,
    }


FORWARD = {
    "roi_align": pooled,
    "ps_roi_align": pooled,
    "roi_pool": pooled,
    "ps_roi_pool": pooled,
    "deform_roi_pool": deformed,
    "deform_ps_roi_pool": sensitive,
}
CHANNELS = {"ps_roi_align": 2, "ps_roi_pool": 2, "deform_ps_roi_pool": 3}


def backward(name):
    grad_output = f32(R, CHANNELS.get(name, 12), 2, 3)
    return lambda: {"grad_output": grad_output, **FORWARD[name]()}


CALLS = {**FORWARD, **{f"{name}_backward": backward(name) for name in FORWARD}}


@pytest.fixture
def rejected(rejecting):
    return rejecting(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_the_good_arguments_are_good(name):
    getattr(cudeform, name)(**CALLS[name]())


# what is wrong, error, the message after "<operator>: expected "
WRONG = [
    ({"input": f32(12, 7, 6)}, ValueError, "`input` to have 4 axes (N, C, H, W), got shape (12, 7, 6)"),
    ({"input": f32(2, 12, 0, 6)}, ValueError, "`input` to be non-empty (N, C, H, W), got shape (2, 12, 0, 6)"),
    ({"input": None}, TypeError, "`input` to be a NumPy or CuPy array, got None"),
    ({"boxes": None}, TypeError, "`boxes` to be an array, got None ((R, 5) rows (image, x1, y1, x2, y2), or for each image an array (L, 4))"),
    ({"boxes": f32(3, 4)}, ValueError, "`boxes` of shape (R, 5), got (3, 4) ((R, 5) rows (image, x1, y1, x2, y2), or for each image an array (L, 4))"),
    ({"boxes": [f32(3, 4)]}, ValueError, "`boxes` of length 2, one array per image, got 1 ((R, 5) rows (image, x1, y1, x2, y2), or for each image an array (L, 4))"),
    ({"boxes": [f32(3, 4), f32(2, 5)]}, ValueError, "`boxes[1]` of shape (L, 4), got (2, 5) ((R, 5) rows (image, x1, y1, x2, y2), or for each image an array (L, 4))"),
    ({"boxes": [f32(3, 4), 7]}, TypeError, "`boxes[1]` to be an array, got int ((R, 5) rows (image, x1, y1, x2, y2), or for each image an array (L, 4))"),
    ({"boxes": boxes().astype(np.float64)}, TypeError, "`boxes` of dtype float32 like `input`, got float64"),
    ({"boxes": boxes().astype(int)}, TypeError, "`boxes` of dtype float16, bfloat16, float32, float64, got dtype('int64')"),
    ({"boxes": boxes((1, 0, 2))}, ValueError, "`boxes` with whole image indices from 0 to 1 in the first column, got 2 in row 1"),
    ({"boxes": boxes((2, 0, -1))}, ValueError, "`boxes` with whole image indices from 0 to 1 in the first column, got -1 in row 2"),
    ({"boxes": boxes((0, 0, 0.5))}, ValueError, "`boxes` with whole image indices from 0 to 1 in the first column, got 0.5 in row 0"),
    ({"boxes": boxes((0, 0, np.nan))}, ValueError, "`boxes` with whole image indices from 0 to 1 in the first column, got nan in row 0"),
    ({"output_size": 0}, ValueError, "`output_size` to be at least 1, got 0 (one integer for both axes or a pair (y, x))"),
    ({"output_size": 2.5}, TypeError, "`output_size` to be an integer or a pair of integers, got 2.5 (one integer for both axes or a pair (y, x))"),
    ({"spatial_scale": 0}, ValueError, "`spatial_scale` to be above 0, got 0"),
    ({"spatial_scale": 1e-60}, ValueError, "`spatial_scale` to be above 0 in float32, got 1e-60"),
    ({"spatial_scale": np.inf}, ValueError, "`spatial_scale` to be finite, got inf"),
    ({"spatial_scale": "1/16"}, TypeError, "`spatial_scale` to be a number, got '1/16'"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "error", "message"), WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("name", CALLS)
def test_what_every_pooling_refuses(rejected, name, bad, error, message):
    assert rejected(name, error, **bad) == f"{name}: expected {message}"


OWN = [
    ("roi_align", {"sampling_ratio": -2}, ValueError, "`sampling_ratio` to be at least -1, got -2"),
    ("roi_align", {"sampling_ratio": 2**15 + 1}, ValueError, "`sampling_ratio` to be at most 32768, got 32769"),
    ("ps_roi_align_backward", {"sampling_ratio": 46341}, ValueError, "`sampling_ratio` to be at most 32768, got 46341"),
    ("deform_roi_pool", {"sampling_ratio": 2**31}, ValueError, "`sampling_ratio` to be at most 32768, got 2147483648"),
    ("roi_align", {"sampling_ratio": 1.5}, TypeError, "`sampling_ratio` to be an integer, got 1.5"),
    ("roi_pool", {"mode": "min"}, ValueError, "`mode` to be one of 'max', 'avg', got 'min'"),
    ("roi_pool", {"mode": "avg", "return_argmax": True}, ValueError, "`return_argmax` only with mode 'max', got 'avg'"),
    ("roi_pool_backward", {"mode": "avg", "argmax": np.zeros((R, 12, 2, 3), np.int32)}, ValueError, "`argmax` only with mode 'max', got 'avg'"),
    ("roi_pool_backward", {"argmax": np.zeros((R, 12, 2, 2), np.int32)}, ValueError, "`argmax` of shape (3, 12, 2, 3) = (R, C, ph, pw), got (3, 12, 2, 2)"),
    ("roi_pool_backward", {"argmax": np.zeros((R, 12, 2, 3))}, TypeError, "`argmax` of dtype int32, got float64"),
    ("ps_roi_pool", {"convention": "mxnet"}, ValueError, "`convention` to be one of 'torchvision', 'rfcn', 'msra', got 'mxnet'"),
    ("ps_roi_pool", {"output_size": 5}, ValueError, "`input` with a number of channels divisible by 5 * 5 = ph * pw, got 12"),
    ("ps_roi_align", {"output_size": 5}, ValueError, "`input` with a number of channels divisible by 5 * 5 = ph * pw, got 12"),
    ("deform_roi_pool", {"offset": f32(R, 2, 3, 2)}, ValueError, "`offset` of shape (3, 2, 2, 3) = (R, 2, part_h, part_w), got (3, 2, 3, 2)"),
    ("deform_roi_pool", {"mask": f32(R, 2, 2, 3)}, ValueError, "`mask` of shape (3, 1, 2, 3) = (R, 1, part_h, part_w), got (3, 2, 2, 3)"),
    ("deform_roi_pool", {"gamma": np.nan}, ValueError, "`gamma` to be finite, got nan"),
    ("deform_roi_pool", {"offset": f32(R, 2, 2, 3).astype(np.float64)}, TypeError, "`offset` of dtype float32 like `input`, got float64"),
    ("deform_roi_pool_backward", {"needs": ["boxes"]}, ValueError, "`needs` to be None or some of 'input', 'offset', 'mask', got ('boxes',)"),
    ("deform_roi_pool_backward", {"offset": None, "needs": ["offset"]}, ValueError, "`needs` without 'offset', got ('offset',) (no `offset` was given)"),
    ("deform_roi_pool_backward", {"grad_output": f32(R, 12, 3, 3)}, ValueError, "`grad_output` of shape (3, 12, 2, 3) = (R, C, ph, pw), got (3, 12, 3, 3)"),
    ("deform_ps_roi_pool", {"output_dim": 4}, ValueError, "`input` with 4 * 2 * 2 = output_dim * group_size^2 channels, got 12"),
    ("deform_ps_roi_pool", {"offset": f32(R, 4, 2, 2)}, ValueError, "`offset` of shape (R, 2*classes, part_h, part_w) with classes that divide output_dim = 3, got (3, 4, 2, 2)"),
    ("deform_ps_roi_pool", {"offset": f32(R, 3, 2, 2)}, ValueError, "`offset` of shape (R, 2*classes, part_h, part_w) with classes that divide output_dim = 3, got (3, 3, 2, 2)"),
    ("deform_ps_roi_pool", {"offset": f32(R, 6, 3, 2)}, ValueError, "`offset` of shape (3, 6, 2, 2) = (R, 2*classes, part_h, part_w), got (3, 6, 3, 2)"),
    ("deform_ps_roi_pool", {"mask": f32(R, 1, 2, 2)}, ValueError, "`mask` of shape (3, 3, 2, 2) = (R, classes, part_h, part_w), got (3, 1, 2, 2)"),
    ("deform_ps_roi_pool", {"sample_per_part": 0}, ValueError, "`sample_per_part` to be at least 1, got 0"),
    ("deform_ps_roi_pool", {"sample_per_part": 2**16}, ValueError, "`sample_per_part` to be at most 32768, got 65536"),
    ("deform_ps_roi_pool", {"trans_std": "0.1s"}, TypeError, "`trans_std` to be a number, got '0.1s'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bad", "error", "message"), OWN, ids=range(len(OWN)))
def test_what_one_pooling_refuses(rejected, name, bad, error, message):
    assert rejected(name, error, **bad) == f"{name}: expected {message}"


@pytest.mark.parametrize("option", ["sampling_ratio", "sample_per_part"])
def test_more_samples_than_32_bits_count_are_refused(backend, option):
    """On a GPU as on the CPU, whose kernels could count them."""
    name = "roi_align" if option == "sampling_ratio" else "deform_ps_roi_pool"
    held = {
        k: backend.to_device(v) if isinstance(v, np.ndarray) else v
        for k, v in FORWARD[name]().items()
    }
    with pytest.raises(ValueError, match=f"{name}: expected `{option}` to be at most 32768"):
        getattr(cudeform, name)(**held, **{option: 46341})


@pytest.mark.parametrize("name", FORWARD)
def test_boxes_by_image_are_rows_with_an_index(backend, name):
    """Also with no box for an image, and for 16-bit images boxes of float32."""
    arguments = {**FORWARD[name](), "boxes": None}
    table = np.array([[0, 1, 1, 5, 4], [1, 0, 2, 3, 6.3], [1, -1, 0, 9, 5]], np.float32)
    if backend.name == "emulator":
        pytest.skip("lists are put together by CuPy")
    for dtype in (np.float32, ml_dtypes.bfloat16):
        held = {
            k: backend.to_device(v.astype(dtype)) if isinstance(v, np.ndarray) else v
            for k, v in arguments.items()
        }
        call = getattr(cudeform, name)
        rows = call(**{**held, "boxes": backend.to_device(table)})
        by_image = [backend.to_device(table[table[:, 0] == n, 1:]) for n in (0, 1)]
        lists = call(**{**held, "boxes": by_image})
        assert backend.to_host(lists).tobytes() == backend.to_host(rows).tobytes()
        assert rows.dtype == dtype
