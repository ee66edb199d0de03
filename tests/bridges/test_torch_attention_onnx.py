"""Multi-scale deformable attention in ONNX."""

import numpy as np
import pytest

import cudeform

torch = pytest.importorskip("torch")

from attention_calls import PIXELS, SHAPES, given, rand, scattered  # noqa: E402
from onnx_programs import exported, run  # noqa: E402

from cudeform.torch import nn  # noqa: E402


class Attention(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, value, shapes, locations, weights):
        return cudeform.ms_deform_attn(value, shapes, locations, weights, **self.options)


class Sized(torch.nn.Module):
    """With sizes on the host, as transformers' models have them."""

    def __init__(self, module, shapes=SHAPES):
        super().__init__()
        self.module, self.shapes = module, shapes

    def forward(self, *arrays):
        first, *others = arrays
        return self.module(first, self.shapes, *others)


def attended(dtype=torch.float32, points=(3, 3), finer=True, queries=5):
    """Values, locations of which some are outside, and weights, with points level by level."""
    wide = torch.float32 if finer else dtype
    total = sum(points)
    value = rand(2, PIXELS, 4, 8, dtype=dtype) - 0.5
    locations = (1.6 * rand(2, queries, 4, total, 2, seed=8) - 0.3).to(wide)
    return value, locations, rand(2, queries, 4, total, dtype=wide, seed=9) - 0.5


@pytest.mark.parametrize("opset", [19, 20])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"points_per_level": (3, 3), "softmax": True},
        {"points_per_level": (2, 5), "softmax": True},
        {"points_per_level": (2, 5), "method": "nearest"},
    ],
)
def test_onnx_of_the_standards_operators(options, as_tensor, opset):
    arrays = attended(points=options.get("points_per_level", (3, 3)))
    if not options:
        arrays = arrays[0], *(a.unflatten(3, (2, 3)) for a in arrays[1:])
    module = Attention(**options)
    if as_tensor:
        arrays = arrays[0], torch.tensor(SHAPES), *arrays[1:]
    else:
        module = Sized(module)
    model = exported(module, arrays, opset)
    assert {node.domain for node in model.graph.node} == {""}
    wanted = "GatherND" if options.get("method") == "nearest" else "GridSample"
    assert wanted in [node.op_type for node in model.graph.node]
    found = run(model, *arrays)
    np.testing.assert_allclose(found, module(*arrays), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("finer", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_onnx_in_other_dtypes(dtype, finer):
    arrays = attended(dtype, finer=finer and dtype == torch.float16)
    module = Sized(Attention(points_per_level=(3, 3), softmax=True))
    # onnxruntime has a GridSample of float64 from this version on
    found, wanted = run(exported(module, arrays, 20), *arrays), module(*arrays).numpy()
    assert found.dtype == wanted.dtype
    tolerance = 1e-3 if dtype == torch.float16 else 1e-12
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_onnx_for_any_number_of_queries_and_images():
    sizes = torch.export.Dim("images", min=1), torch.export.Dim("queries", min=1)
    axes = {0: sizes[0]}, {0: sizes[0], 1: sizes[1]}, {0: sizes[0], 1: sizes[1]}
    module = Sized(Attention(points_per_level=(3, 3), softmax=True))
    model = exported(module, attended(), dynamic_shapes=(axes,))
    arrays = [array[:1] for array in attended(queries=11)]
    np.testing.assert_allclose(run(model, *arrays), module(*arrays), rtol=1e-5, atol=1e-6)


def test_onnx_of_a_module():
    module = Sized(scattered(nn.MSDeformAttn(32, 2, 4, [3, 2])))

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module.module

        def forward(self, query, reference, features):
            return self.inner(query, reference, features, SHAPES)

    arrays = given(torch.float32, 4)
    found = run(exported(Module(), arrays), *arrays)
    np.testing.assert_allclose(found, Module()(*arrays).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_onnx_with_tensorrts_plugin(as_tensor):
    """No runtime here has it: inputs and outputs are what its documentation asks for."""
    reference = pytest.importorskip("onnx.reference")
    arrays = attended()
    module = Attention(points_per_level=(3, 3), softmax=True)
    if as_tensor:
        arrays = arrays[0], torch.tensor(SHAPES), *arrays[1:]
    else:
        module = Sized(module)
    model = exported(module, arrays, tensorrt=True)
    assert ("trt.plugins", 1) in [(entry.domain, entry.version) for entry in model.opset_import]
    seen = []

    class MultiscaleDeformableAttnPlugin_TRT(reference.op_run.OpRun):
        op_domain = "trt.plugins"

        def _run(self, value, shapes, starts, locations, weights):
            seen.append((shapes, starts))
            given = [torch.tensor(a) for a in (value, shapes, locations, weights)]
            return (cudeform.ms_deform_attn(*given).unflatten(-1, (4, 8)).numpy(),)

    session = reference.ReferenceEvaluator(model, new_ops=[MultiscaleDeformableAttnPlugin_TRT])
    names = [entry.name for entry in model.graph.input]
    (found,) = session.run(None, {n: a.numpy() for n, a in zip(names, arrays, strict=True)})
    np.testing.assert_allclose(found, module(*arrays), rtol=1e-5, atol=1e-6)
    ((shapes, starts),) = seen
    assert shapes.dtype == starts.dtype == np.int32
    assert shapes.tolist() == [list(size) for size in SHAPES] and starts.tolist() == [0, 48]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nearest"}, "`method` to be 'bilinear' for TensorRT's plugin, got 'nearest'"),
        ({"points_per_level": (2, 4)}, "`points_per_level` to be equal on all levels for TensorRT"),
    ],
)
def test_tensorrts_plugin_has_no(options, message):
    options = {"points_per_level": (3, 3), **options}
    module = Sized(Attention(**options))
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(module, attended(points=options["points_per_level"]), tensorrt=True)
    assert message in str(caught.value) or message in str(caught.value.__cause__)
