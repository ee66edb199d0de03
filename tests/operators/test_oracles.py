"""Against other people's implementations: onnxruntime, ONNX's own cases, OpenVINO, SciPy.

They have no backward; gradients are tested against the reference and against the forward.
"""

import importlib

import numpy as np
import pytest
import tolerances
from cases import dtype_of
from onnx_node import run_onnx
from tolerances import assert_close

import cudeform

# In float64 both sides differ in the order of their sums only.
TOLERANCE = {"float32": tolerances.TOLERANCE["float32"], "float64": 1e-12}

CONVOLUTIONS = {
    "plain": {},
    "mask-bias": {"mask": True, "bias": True},
    "groups": {"groups": 2, "mask": True, "bias": True},
    "offset-groups": {"offset_groups": 3, "mask": True},
    "both-groups": {"groups": 3, "offset_groups": 2, "bias": True},
    "strided": {"stride": (2, 3), "dilation": (2, 1), "padding": ((2, 2), (1, 1)), "mask": True},
    "one-sided": {"padding": ((2, 0), (0, 3)), "mask": True, "bias": True},
    "far-away": {"spread": 12.0, "padding": ((1, 1), (1, 1)), "mask": True},
}


class Convolution:
    """Random arrays of a deformable convolution, and its options with everything spelled out."""

    def __init__(self, rng, dtype, *, groups=1, offset_groups=1, mask=False, bias=False, **options):
        spread = options.pop("spread", 1.5)
        self.groups, self.offset_groups = groups, offset_groups
        self.options = {
            "stride": (1, 1),
            "padding": ((1, 1), (1, 1)),
            "dilation": (1, 1),
            **options,
        }
        n, c, o, kernel, size = 2, 6, 12, (3, 2), (11, 13)
        out = tuple(
            (size[k] + sum(self.options["padding"][k]) - dilation * (kernel[k] - 1) - 1) // stride
            + 1
            for k, (stride, dilation) in enumerate(
                zip(self.options["stride"], self.options["dilation"], strict=True)
            )
        )
        taps = offset_groups * kernel[0] * kernel[1]
        arrays = {
            "input": rng.standard_normal((n, c, *size)),
            "offset": spread * rng.standard_normal((n, 2 * taps, *out)),
            "weight": rng.standard_normal((o, c // groups, *kernel)),
            "bias": rng.standard_normal(o) if bias else None,
            "mask": rng.uniform(size=(n, taps, *out)) if mask else None,
        }
        dtype = dtype_of(dtype)
        self.arrays = {k: None if v is None else v.astype(dtype) for k, v in arrays.items()}

    def ours(self, **options):
        return cudeform.deform_conv2d(**self.arrays, **self.options, **options)

    @property
    def onnx_pads(self):
        (top, bottom), (left, right) = self.options["padding"]
        return [top, left, bottom, right]


@pytest.mark.parametrize("opset", [19, 22])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_deform_conv2d_equals_onnxruntime(convolution, dtype, opset, rng):
    asked = Convolution(rng, dtype, **CONVOLUTIONS[convolution])
    names = {"X": "input", "W": "weight", "offset": "offset", "B": "bias", "mask": "mask"}
    theirs = run_onnx(
        "DeformConv",
        {theirs: asked.arrays[ours] for theirs, ours in names.items()},
        opset,
        kernel_shape=asked.arrays["weight"].shape[2:],
        strides=asked.options["stride"],
        dilations=asked.options["dilation"],
        pads=asked.onnx_pads,
        group=asked.groups,
        offset_group=asked.offset_groups,
    )
    assert_close(asked.ours(), theirs, tolerance=TOLERANCE[dtype])


def ours_plain(asked):
    arrays = asked.arrays
    return cudeform.conv2d(arrays["input"], arrays["weight"], arrays["bias"], **asked.options)


@pytest.mark.parametrize("convolution", ["plain", "strided", "groups", "one-sided"])
def test_conv2d_equals_onnxruntime(convolution, rng):
    """In float32: onnxruntime has no Conv in float64."""
    asked = Convolution(rng, "float32", **CONVOLUTIONS[convolution])
    theirs = run_onnx(
        "Conv",
        {"X": asked.arrays["input"], "W": asked.arrays["weight"], "B": asked.arrays["bias"]},
        11,
        strides=asked.options["stride"],
        dilations=asked.options["dilation"],
        pads=asked.onnx_pads,
        group=asked.groups,
    )
    assert_close(ours_plain(asked), theirs, tolerance=TOLERANCE["float32"])


@pytest.mark.parametrize("convolution", ["plain", "strided", "one-sided"])
def test_conv2d_equals_scipy(convolution, rng):
    signal = pytest.importorskip("scipy.signal")
    asked = Convolution(rng, "float64", **CONVOLUTIONS[convolution])
    (stride_y, stride_x), (dilation_y, dilation_x) = (
        asked.options["stride"],
        asked.options["dilation"],
    )
    padded = np.pad(asked.arrays["input"], ((0, 0), (0, 0), *asked.options["padding"]))
    weight = asked.arrays["weight"]
    (o, _, kh, kw), (n, c, *_) = weight.shape, padded.shape
    spaced = np.zeros((o, c, dilation_y * (kh - 1) + 1, dilation_x * (kw - 1) + 1))
    spaced[:, :, ::dilation_y, ::dilation_x] = weight
    ours = ours_plain(asked)
    bias = np.zeros(o) if asked.arrays["bias"] is None else asked.arrays["bias"]
    for i, k in np.ndindex(n, o):
        full = sum(signal.correlate2d(padded[i, j], spaced[k, j], "valid") for j in range(c))
        theirs = full[::stride_y, ::stride_x] + bias[k]
        assert_close(ours[i, k], theirs, tolerance=TOLERANCE["float64"])


def onnx_cases():
    """ONNX's backend tests of DeformConv, which importing their module collects."""
    node = pytest.importorskip("onnx.backend.test.case.node")
    importlib.import_module("onnx.backend.test.case.node.deformconv")
    return {case.name: case for case in node._NodeTestCases if "deform_conv" in case.name}


@pytest.mark.parametrize(
    "name",
    [
        "test_basic_deform_conv_with_padding",
        "test_basic_deform_conv_without_padding",
        "test_deform_conv_with_mask_bias",
        "test_deform_conv_with_multiple_offset_groups",
    ],
)
def test_onnx_backend_case(backend, name):
    case = onnx_cases()[name]
    pads = next(a for a in case.model.graph.node[0].attribute if a.name == "pads")
    top, left, bottom, right = pads.ints
    for inputs, (expected,) in case.data_sets:
        arrays = dict(zip(("input", "weight", "offset", "bias", "mask"), inputs, strict=False))
        arrays = {k: backend.to_device(array) for k, array in arrays.items()}
        output = cudeform.deform_conv2d(**arrays, padding=((top, bottom), (left, right)))
        np.testing.assert_allclose(backend.to_host(output), expected, case.rtol, case.atol)


def run_openvino(asked, bilinear_interpolation_pad):
    openvino = pytest.importorskip("openvino")
    opset8 = pytest.importorskip("openvino.opset8")
    names = ["input", "offset", "weight"] + ["mask"] * (asked.arrays["mask"] is not None)
    arrays = [asked.arrays[name] for name in names]
    parameters = [opset8.parameter(list(array.shape), array.dtype) for array in arrays]
    (top, bottom), (left, right) = asked.options["padding"]
    node = opset8.deformable_convolution(
        *parameters[:3],
        list(asked.options["stride"]),
        [top, left],
        [bottom, right],
        list(asked.options["dilation"]),
        mask=parameters[3] if len(parameters) == 4 else None,
        group=asked.groups,
        deformable_group=asked.offset_groups,
        bilinear_interpolation_pad=bilinear_interpolation_pad,
    )
    model = openvino.Model([node], parameters)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(arrays)[0]


@pytest.mark.parametrize("border", ["zeros", "clamp"])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_deform_conv2d_equals_openvino(convolution, border, rng):
    asked = Convolution(rng, "float32", **{**CONVOLUTIONS[convolution], "bias": False})
    theirs = run_openvino(asked, bilinear_interpolation_pad=border == "zeros")
    assert_close(asked.ours(border=border), theirs, tolerance=TOLERANCE["float32"])


def test_bilinear_sample_equals_scipy(rng):
    """Its constant outside is interpolated with, which is what border "zeros" says."""
    ndimage = pytest.importorskip("scipy.ndimage")
    image = rng.standard_normal((2, 3, 7, 9))
    points = rng.uniform(-2.5, 11, (2, 500, 2))
    points[:, :100] = np.round(points[:, :100])
    output = cudeform.bilinear_sample(image, points)
    for n, c in np.ndindex(2, 3):
        theirs = ndimage.map_coordinates(
            image[n, c], points[n].T, order=1, mode="grid-constant", cval=0
        )
        assert_close(output[n, c], theirs, tolerance=TOLERANCE["float64"])
