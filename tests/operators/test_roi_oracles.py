"""The poolings of regions against other people's implementations: onnxruntime and OpenVINO.

Both are in float32, and have no backward. Coordinates on the edge of what counts would be left to
rounding; random boxes have none.
"""

import numpy as np
import pytest
from onnx_node import run_onnx
from tolerances import TOLERANCE, assert_close

import cudeform

HEIGHT, WIDTH = 13, 17


def images(rng, channels, n=2):
    return rng.standard_normal((n, channels, HEIGHT, WIDTH)).astype(np.float32)


def boxes_of(rng, count, scale, n=2):
    """Boxes inside, across the border and outside, each at least a pixel large."""
    size = np.array([WIDTH, HEIGHT])
    center = rng.uniform(-0.2, 1.2, (count, 2)) * size
    half = np.maximum(rng.uniform(0.05, 0.6, (count, 2)) * size, 0.6)
    image = rng.integers(0, n, (count, 1))
    corners = np.concatenate([center - half, center + half], 1) / scale
    return np.concatenate([image, corners], 1).astype(np.float32)


@pytest.mark.parametrize("ratio", [0, 2, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_onnxruntime(aligned, ratio, rng):
    input, boxes = images(rng, 5), boxes_of(rng, 40, 0.5)
    theirs = run_onnx(
        "RoiAlign",
        {"X": input, "rois": boxes[:, 1:].copy(), "batch": boxes[:, 0].astype(np.int64)},
        16,
        mode="avg",
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=3,
        output_width=4,
        sampling_ratio=ratio,
        spatial_scale=0.5,
    )
    ours = cudeform.roi_align(input, boxes, (3, 4), 0.5, ratio, aligned)
    assert_close(ours, theirs, tolerance=TOLERANCE["float32"])


def test_roi_pool_equals_onnxruntime(rng):
    input, boxes = images(rng, 5), boxes_of(rng, 40, 0.5)
    theirs = run_onnx(
        "MaxRoiPool", {"X": input, "rois": boxes}, 16, pooled_shape=(4, 3), spatial_scale=0.5
    )
    np.testing.assert_array_equal(cudeform.roi_pool(input, boxes, (4, 3), 0.5), theirs)


def run_openvino(make, *arrays):
    """The output of what `make` builds from parameters of the shapes of `arrays`."""
    openvino = pytest.importorskip("openvino")
    opset = pytest.importorskip("openvino.opset9")
    parameters = [opset.parameter(list(array.shape), array.dtype) for array in arrays]
    model = openvino.Model([make(opset, *parameters)], parameters)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(list(arrays))[0]


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_openvino(aligned, ratio, rng):
    input, boxes = images(rng, 5), boxes_of(rng, 40, 0.5)

    def make(opset, data, rois, batch):
        mode = "half_pixel_for_nn" if aligned else "asymmetric"
        return opset.roi_align(data, rois, batch, 3, 4, ratio, 0.5, "avg", mode)

    theirs = run_openvino(make, input, boxes[:, 1:].copy(), boxes[:, 0].astype(np.int32))
    ours = cudeform.roi_align(input, boxes, (3, 4), 0.5, ratio, aligned)
    assert_close(ours, theirs, tolerance=TOLERANCE["float32"])


def test_ps_roi_pool_equals_openvino(rng):
    """Its rule is that of MXNet, which the paper's authors wrote."""
    input, boxes = images(rng, 3 * 16), boxes_of(rng, 40, 0.5)

    def make(opset, data, rois):
        return opset.psroi_pooling(data, rois, 3, 4, 0.5, 1, 1, "average")

    theirs = run_openvino(make, input, boxes)
    ours = cudeform.ps_roi_pool(input, boxes, 4, 0.5, convention="msra")
    assert_close(ours, theirs, tolerance=TOLERANCE["float32"])


@pytest.mark.parametrize("part", [3, 2])
@pytest.mark.parametrize("classes", [0, 1, 2])
def test_deform_ps_roi_pool_equals_openvino(classes, part, rng):
    input, boxes = images(rng, 4 * 9), boxes_of(rng, 40, 0.4)
    offset = rng.standard_normal((40, 2 * classes, part, part)).astype(np.float32)
    arrays = (input, boxes, offset) if classes else (input, boxes)

    def make(opset, data, rois, offsets=None):
        return opset.deformable_psroi_pooling(
            data, rois, 4, 0.4, 3, "bilinear_deformable", 3, 3, 0.1, part, offsets
        )

    theirs = run_openvino(make, *arrays)
    ours = cudeform.deform_ps_roi_pool(
        input, boxes, offset if classes else None, 3, 0.4, 4, 3, part, 3, 0.1
    )
    assert_close(ours, theirs, tolerance=TOLERANCE["float32"])
