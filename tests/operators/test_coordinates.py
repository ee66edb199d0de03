"""Coordinates of other libraries against what those libraries compute from them."""

import numpy as np
import pytest

import cudeform

SHAPES = np.array([(5, 7), (3, 4)])  # (L, (H, W))


def test_msda_points(rng):
    locations = rng.uniform(-0.2, 1.2, size=(2, 3, 4, len(SHAPES), 5, 2))
    points = cudeform.points_from_msda(locations, SHAPES)
    for level, (height, width) in enumerate(SHAPES):
        x, y = locations[:, :, :, level, :, 0], locations[:, :, :, level, :, 1]
        np.testing.assert_allclose(points[:, :, :, level, :, 0], y * height - 0.5, atol=1e-14)
        np.testing.assert_allclose(points[:, :, :, level, :, 1], x * width - 0.5, atol=1e-14)
    alone = cudeform.points_from_msda(locations[0, 0, 0], SHAPES)  # without other axes
    np.testing.assert_array_equal(alone, points[0, 0, 0])
    back = cudeform.points_to_msda(points, SHAPES.tolist())
    np.testing.assert_allclose(back, locations, rtol=0, atol=1e-14)


def test_msda_rounds_half_precision_once(rng):
    locations = rng.uniform(size=(6, 1, 5, 2)).astype(np.float16)
    points = cudeform.points_from_msda(locations, [(200, 300)])
    exact = locations[..., ::-1].astype(np.float64) * [200, 300] - 0.5
    assert points.dtype == np.float16
    np.testing.assert_array_equal(points, exact.astype(np.float16))


BOXES = np.array(
    [
        [0, 3.4, 2.6, 20.5, 9.5],
        [1, 0, 0, 9, 19],
        [1, -2.5, -0.5, 4.5, 3.5],
        [0, 8, 9, 2, 3],  # x2 < x1: MXNet's has the least size
        [0, 5, 5, 5, 5.25],  # no width for mmcv, which nothing can be a fraction of
    ]
)


def round_away(value):
    return np.sign(value) * np.floor(abs(value) + 0.5)


def shifts(offset, box, library, spatial_scale, factor):
    """(x, y) in pixels, of bins (2, ph, pw), as each library computes it."""
    _, x1, y1, x2, y2 = box
    if library == "mmcv":
        width, height = (x2 - x1) * spatial_scale, (y2 - y1) * spatial_scale
    else:
        width = (round_away(x2) + 1) * spatial_scale - round_away(x1) * spatial_scale
        height = (round_away(y2) + 1) * spatial_scale - round_away(y1) * spatial_scale
        width, height = max(width, 0.1), max(height, 0.1)
    return np.stack([factor * width * offset[0], factor * height * offset[1]])


@pytest.mark.parametrize("source, target", [("mmcv", "mxnet"), ("mxnet", "mmcv")])
def test_roi_offsets_shift_as_many_pixels(rng, source, target):
    boxes = BOXES if source == "mmcv" else BOXES[:4]
    offset = rng.standard_normal((len(boxes), 2, 3, 4))
    factors = {"mmcv": 0.1, "mxnet": 0.3}
    options = dict(spatial_scale=0.5, gamma=0.1, trans_std=0.3)
    got = cudeform.convert_roi_offset(offset, boxes, source, target, **options)
    for r, box in enumerate(boxes):
        np.testing.assert_allclose(
            shifts(got[r], box, target, 0.5, factors[target]),
            shifts(offset[r], box, source, 0.5, factors[source]),
            rtol=0,
            atol=1e-13,
        )


def test_roi_offsets_of_every_class_are_alike(rng):
    offset = rng.standard_normal((len(BOXES), 2, 3, 3))
    one = cudeform.convert_roi_offset(offset, BOXES, "mmcv", "mxnet")
    three = cudeform.convert_roi_offset(offset, BOXES, "mmcv", "mxnet", classes=3)
    assert three.shape == (len(BOXES), 6, 3, 3)
    for number in range(3):
        np.testing.assert_array_equal(three[:, 2 * number : 2 * number + 2], one)


POINTS = np.zeros((1, 2, 3, 2))
ERRORS = {
    "levels": (
        lambda: cudeform.points_from_msda(POINTS, [(5, 7)]),
        r"points_from_msda: expected `spatial_shapes` of shape \(2, 2\) = .*, got length 1",
    ),
    "a level without pixels": (
        lambda: cudeform.points_from_msda(POINTS, np.array([[5, 7], [0, 4]])),
        "points_from_msda: expected `spatial_shapes` to be above 0, got 0",
    ),
    "coordinates": (
        lambda: cudeform.points_to_msda(POINTS[..., :1], [(5, 7), (3, 4)]),
        r"points_to_msda: expected `points` of shape \(..., L, P, 2\), got \(1, 2, 3, 1\)",
    ),
    "boxes": (
        lambda: cudeform.convert_roi_offset(
            np.zeros((5, 2, 3, 3)), BOXES[:, 1:].copy(), "mmcv", "mxnet"
        ),
        r"expected `boxes` of shape \(5, 5\) = \(R, \(image, x1, y1, x2, y2\)\), got \(5, 4\)",
    ),
    "pairs": (
        lambda: cudeform.convert_roi_offset(np.zeros((5, 4, 3, 3)), BOXES, "mxnet", "mmcv"),
        r"expected `offset` of shape \(5, 2, 3, 3\) = \(R, \(x, y\), ph, pw\), got \(5, 4, 3, 3\)",
    ),
    "classes": (
        lambda: cudeform.convert_roi_offset(
            np.zeros((5, 2, 3, 3)), BOXES, "mxnet", "mmcv", classes=2
        ),
        "expected `classes` to be 1 with target 'mmcv', which has no classes, got 2",
    ),
    "factor": (
        lambda: cudeform.convert_roi_offset(
            np.zeros((5, 2, 3, 3)), BOXES, "mmcv", "mxnet", trans_std=0
        ),
        "expected `trans_std` to be above 0, got 0",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
