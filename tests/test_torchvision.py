"""torchvision's own layers and a detector of its own, before and after `patch`.

Its wheels import only beside the build of PyTorch that they were made for, which the CPU build of
the other tests is not: see CONTRIBUTING.md.
"""

import numpy as np
import pytest
from tolerances import assert_close

torch = pytest.importorskip("torch")
try:
    import torchvision
except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no operators of its own
    pytest.skip(f"torchvision does not import: {error}", allow_module_level=True)

from cudeform.torch import patch  # noqa: E402

ops = torchvision.ops
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

# (image, x1, y1, x2, y2): usual ones, a small one, one across the border.
BOXES = torch.tensor(
    [[0, 3.2, 4.1, 20.7, 13.9], [1, 8.0, 0.5, 9.1, 14.3], [1, 14.2, 9.3, 27.9, 19.4]]
)
POOLINGS = {
    "RoIAlign": ops.RoIAlign((3, 2), 0.5, sampling_ratio=2),
    "RoIAlign aligned, adaptive": ops.RoIAlign((3, 2), 0.5, sampling_ratio=-1, aligned=True),
    "RoIPool": ops.RoIPool((3, 2), 0.5),
    "PSRoIAlign": ops.PSRoIAlign((2, 3), 0.5, sampling_ratio=2),
    "PSRoIPool": ops.PSRoIPool((2, 3), 0.5),
}


def randn(*shape, dtype=torch.float64):
    return torch.tensor(np.random.default_rng(sum(shape)).standard_normal(shape), dtype=dtype)


def differentiated(function, *tensors):
    """The output and the gradients of all tensors."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    output = function(*tensors)
    return [output, *torch.autograd.grad(output, tensors, randn(*output.shape).to(output.dtype))]


def assert_patching_changes_nothing(function):
    """Numbers by torchvision's operators, and by ours: within the tolerance of their dtype."""
    expected = function()
    original = ops.poolers.roi_align
    with patch():
        assert ops.poolers.roi_align is not original
        found = function()
    assert ops.poolers.roi_align is original
    for result, wanted in zip(found, expected, strict=True):
        assert result.dtype == wanted.dtype
        assert_close(result.detach().numpy(), wanted.detach().numpy())


@every_dtype
@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv(modulated, dtype):
    torch.manual_seed(0)
    layer = ops.DeformConv2d(6, 8, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
    layer = layer.to(dtype)
    given = [randn(2, 6, 9, 10, dtype=dtype), randn(2, 24, 5, 10, dtype=dtype)]
    if modulated:
        given.append(randn(2, 12, 5, 10, dtype=dtype).sigmoid())

    def run():
        results = differentiated(layer, *given)
        return results + list(torch.autograd.grad(layer(*given).sin().sum(), layer.parameters()))

    assert_patching_changes_nothing(run)


@every_dtype
@pytest.mark.parametrize("layer", POOLINGS.values(), ids=POOLINGS)
def test_poolings(layer, dtype):
    """With boxes of all images in one tensor, and in one tensor per image."""
    images = randn(2, 12, 8, 13, dtype=dtype)
    boxes = BOXES.to(dtype)
    if isinstance(layer, ops.PSRoIPool):  # whose forward leaves out the last row and column there
        boxes = boxes.clamp(max=14)
    by_image = [boxes[boxes[:, 0] == image, 1:] for image in range(2)]
    for regions in (boxes, by_image):
        assert_patching_changes_nothing(
            lambda regions=regions: differentiated(lambda images: layer(images, regions), images)
        )


@every_dtype
def test_pooling_of_many_scales(dtype):
    layer = ops.MultiScaleRoIAlign(["fine", "coarse"], 3, 2, canonical_scale=12, canonical_level=2)
    fine, coarse = randn(2, 4, 16, 24, dtype=dtype), randn(2, 4, 8, 12, dtype=dtype)
    boxes = [box[None] for box in BOXES[:2, 1:].to(dtype)]

    def pooled(fine, coarse):
        return layer({"fine": fine, "coarse": coarse}, boxes, [(32, 48), (32, 48)])

    assert_patching_changes_nothing(lambda: differentiated(pooled, fine, coarse))


def test_a_detector():
    """Faster R-CNN: the losses and all gradients of a step, then what it detects."""
    torch.manual_seed(0)
    build = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    model = build(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96
    ).double()
    images = [randn(3, 64, 96).sigmoid(), randn(3, 64, 80).sigmoid()]
    boxes = torch.tensor([[5.0, 6, 40, 44], [30, 10, 72, 60]], dtype=torch.float64)
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]

    def step():
        torch.manual_seed(1)  # of the proposals that it samples
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # statistics of a batch would leave zeros of some gradients
        losses = model(images, targets)
        model.zero_grad()
        sum(losses.values()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        assert sum(g.any() for g in gradients) > 100
        with torch.no_grad():
            detections = model.eval()(images)
        return [*losses.values(), *gradients, *(d["scores"] for d in detections)]

    assert_patching_changes_nothing(step)


LAYERS = {**POOLINGS, "DeformConv2d": ops.DeformConv2d(12, 4, 3, padding=1)}


# In scripts theirs take one number for both axes of position-sensitive bins.
SCRIPTED = LAYERS | {
    "PSRoIAlign": ops.PSRoIAlign(2, 0.5, sampling_ratio=2),
    "PSRoIPool": ops.PSRoIPool(2, 0.5),
}


@pytest.mark.parametrize("layer", SCRIPTED.values(), ids=SCRIPTED)
def test_layers_are_scripted(layer):
    """By the functions that the compiler of scripts knows, and none is left half compiled."""
    images = randn(2, 12, 8, 13, dtype=torch.float32)
    offset = randn(2, 18, 8, 13, dtype=torch.float32)
    given = (images, offset if isinstance(layer, ops.DeformConv2d) else BOXES)
    with patch():
        scripted = torch.jit.script(layer)
    assert torch.equal(scripted(*given), layer(*given))
    assert torch.equal(torch.jit.script(layer)(*given), layer(*given))


def test_a_detector_is_scripted():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None
    )
    with patch():
        torch.jit.script(model)


@pytest.mark.parametrize("name", ["RoIAlign", "RoIAlign aligned, adaptive", "DeformConv2d"])
def test_onnx_needs_no_table(name):
    pytest.importorskip("onnxscript")
    layer = LAYERS[name]
    images = randn(2, 12, 8, 13, dtype=torch.float32)
    second = randn(2, 18, 8, 13, dtype=torch.float32) if name == "DeformConv2d" else BOXES
    with patch():
        program = torch.onnx.export(layer, (images, second), dynamo=True, verbose=False)
    wanted = "DeformConv" if name == "DeformConv2d" else "RoiAlign"
    assert wanted in [node.op_type for node in program.model_proto.graph.node]
