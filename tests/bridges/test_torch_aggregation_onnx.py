"""DCNv3 and DCNv4 in ONNX."""

import numpy as np
import pytest
from cases import problem, problems

import cudeform

torch = pytest.importorskip("torch")

from attention_calls import rand, scattered  # noqa: E402
from onnx_programs import exported, run  # noqa: E402

from cudeform.torch import nn  # noqa: E402


class Cases(torch.nn.Module):
    """The operators with the arguments of all their cases but those without an image, or of few."""

    def __init__(self, dtype, few, finer):
        super().__init__()
        asked = [(n, c) for n, c in problems() if n in ("dcnv3", "dcnv4") and c != "empty-batch"]
        asked = [(n, c) for n, c in asked if not few or c == "uneven"]
        self.names = [f"{name}-{case}" for name, case in asked]
        self.calls = [problem(name, case, dtype) for name, case in asked]
        coordinates = torch.float32 if finer else getattr(torch, dtype)
        self.given = tuple(
            torch.tensor(array).to(getattr(torch, dtype) if name == "input" else coordinates)
            for call in self.calls
            for name, array in call.case.arrays.items()
        )

    def forward(self, *arrays):
        arrays = iter(arrays)
        return tuple(
            call.row.forward(*(next(arrays) for _ in call.case.arrays), **call.case.options)
            for call in self.calls
        )


@pytest.mark.parametrize(
    ("dtype", "few", "finer", "opset", "tolerance"),
    [
        ("float32", False, False, 19, 1e-5),
        # onnxruntime has a GridSample of float64 from this version on
        ("float64", False, False, 20, 1e-12),
        ("float16", True, False, 20, 1e-3),
        ("float16", True, True, 19, 1e-3),
    ],
)
def test_onnx_of_the_standards_operators(dtype, few, finer, opset, tolerance):
    module = Cases(dtype, few, finer)
    model = exported(module, module.given, opset)
    assert {node.domain for node in model.graph.node} == {""}
    results = run(model, *module.given), module(*module.given)
    for name, found, wanted in zip(module.names, *results, strict=True):
        assert found.dtype == wanted.numpy().dtype, name
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance, err_msg=name)


def test_onnx_of_modules_for_any_number_and_size_of_images():
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            more = dict(center_feature_scale=True, dw_kernel_size=3, remove_center=True)
            self.first = scattered(nn.DCNv3(12, group=3, offset_scale=0.75, **more))
            uneven = dict(kernel_size=(3, 5), pad=(2, 2), dilation=(2, 1))
            self.second = scattered(nn.DCNv4(12, group=2, **uneven))

        def forward(self, images):
            seen = self.first(images)
            return self.second(seen.flatten(1, 2), shape=images.shape[1:3])

    module = Layers()
    axes = {0: "images", 1: "height", 2: "width"}
    axes = {axis: torch.export.Dim(name, min=2) for axis, name in axes.items()}
    model = exported(module, (rand(2, 5, 6, 12, dtype=torch.float32),), dynamic_shapes=(axes,))
    given = rand(3, 8, 7, 12, dtype=torch.float32, seed=2)
    found, wanted = run(model, given), module(given).detach()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_onnx_with_tensorrts_plugin():
    """It gets one level, and points around each pixel."""
    reference = pytest.importorskip("onnx.reference")
    call = problem("dcnv3", "uneven", "float32")
    arrays = tuple(map(torch.tensor, call.case.arrays.values()))

    class Module(torch.nn.Module):
        def forward(self, *arrays):
            return cudeform.dcnv3(*arrays, **call.case.options)

    class MultiscaleDeformableAttnPlugin_TRT(reference.op_run.OpRun):
        op_domain = "trt.plugins"

        def _run(self, value, shapes, starts, locations, weights):
            assert (shapes.tolist(), starts.tolist()) == ([[7, 5]], [0])
            given = [torch.tensor(a) for a in (value, shapes, locations, weights)]
            return (cudeform.ms_deform_attn(*given).unflatten(-1, value.shape[2:]).numpy(),)

    model = exported(Module(), arrays, tensorrt=True)
    session = reference.ReferenceEvaluator(model, new_ops=[MultiscaleDeformableAttnPlugin_TRT])
    names = [entry.name for entry in model.graph.input]
    (found,) = session.run(None, {n: a.numpy() for n, a in zip(names, arrays, strict=True)})
    np.testing.assert_allclose(found, call.output, rtol=1e-5, atol=1e-6)
