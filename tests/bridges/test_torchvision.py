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

import cudeform  # noqa: E402
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
    by_image = [boxes[boxes[:, 0] == image, 1:] for image in range(2)]
    for regions in (boxes, by_image):
        assert_patching_changes_nothing(
            lambda regions=regions: differentiated(lambda images: layer(images, regions), images)
        )


def knotty_boxes(rng, count, size, scale, dtype):
    """Boxes around the image, some with corners on pixels and some halfway between two."""
    corners = rng.uniform(-0.3, 1.3, (count, 2, 2)) * size[::-1]
    corners[1::3] = np.round(corners[1::3])
    corners[2::3] = np.round(2 * corners[2::3]) / 2
    image = rng.integers(0, 2, (count, 1))
    return torch.tensor(np.concatenate([image, corners.reshape(count, 4) / scale], 1), dtype=dtype)


@every_dtype
@pytest.mark.parametrize("scale", [1.0, 0.5, 1 / 3])
def test_poolings_of_whole_pixels_are_theirs(scale, dtype):
    """To the pixel, which their order of roundings decides, for two thousand boxes of each kind."""
    rng = np.random.default_rng(3)
    for size, bins in (((13, 9), (3, 7)), ((30, 37), (6, 5)), ((1, 5), (2, 1)), ((40, 33), (7, 3))):
        boxes = knotty_boxes(rng, 500, size, scale, dtype)
        images = torch.tensor(rng.integers(-3, 4, (2, 2, *size)), dtype=dtype)  # with equal ones
        output, argmax = torch.ops.torchvision.roi_pool(images, boxes, scale, *bins)
        found = cudeform.roi_pool(images, boxes, bins, scale, return_argmax=True)
        assert torch.equal(found[0], output) and torch.equal(found[1], argmax)
        maps = torch.tensor(rng.standard_normal((2, 2 * bins[0] * bins[1], *size)), dtype=dtype)
        theirs = ops.ps_roi_pool(maps, boxes, bins, scale)
        ours = cudeform.ps_roi_pool(maps, boxes, bins, scale)
        assert torch.equal(ours == 0, theirs == 0)
        assert_close(ours.numpy(), theirs.numpy())


def test_ps_roi_pool_has_the_gradient_of_their_forward():
    """Which theirs has not: <Jv, g> = <v, J'g> with their J and our J'."""
    boxes = knotty_boxes(np.random.default_rng(4), 60, (8, 9), 0.5, torch.float64)
    maps, direction = randn(2, 12, 8, 9), randn(2, 12, 8, 9) + 1
    maps.requires_grad_()
    output = cudeform.ps_roi_pool(maps, boxes, (2, 3), 0.5)
    grad = randn(*output.shape)
    output.backward(grad)
    along = ops.ps_roi_pool(direction, boxes, (2, 3), 0.5)
    torch.testing.assert_close((along * grad).sum(), (direction * maps.grad).sum())
    assert not maps.grad[..., -1, :].any() and not maps.grad[..., -1].any()


# Inverted, without area, outside, and over the border.
NO_REGIONS = [[4.0, 4, 1, 1], [2, 2, 2, 2], [20, 20, 25, 25], [-3, -3, 1, 1], [40, 40, -40, -40]]


@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("box", NO_REGIONS)
def test_boxes_that_are_no_regions(box, ratio):
    """NaN is what their ps_roi_align makes of a box without area."""
    images, box = randn(1, 4, 6, 7), torch.tensor([[0.0, *box]], dtype=torch.float64)
    for name in ("roi_pool", "ps_roi_pool"):
        theirs, ours = (getattr(module, name)(images, box, 2) for module in (ops, cudeform))
        assert_close(ours.numpy(), theirs.numpy())
    for name, more in (
        ("roi_align", {}),
        ("roi_align", {"aligned": True}),
        ("ps_roi_align", {}),
    ):
        theirs, ours = (
            getattr(module, name)(images, box, 2, sampling_ratio=ratio, **more)
            for module in (ops, cudeform)
        )
        assert_close(ours.numpy(), theirs.nan_to_num(0).numpy())


def corner_points():
    """Points on, beside and between an infinite pixel in a corner, and inside."""
    along = torch.tensor([-1.0, -0.5, 0, 0.5, 1, 2, 2.5, 3, 3.5, 4])
    return torch.stack(torch.meshgrid(along, along, indexing="ij"), -1).reshape(-1, 2)


@pytest.mark.parametrize("place", [(2, 0), (3, 4), (3, 2), (1, 2), (0, 4)])
def test_an_infinite_pixel_beside_a_weight_of_zero(place):
    """NaN where they multiply by 0, and not where a corner is outside.

    Not the first pixel: on the CPU their poolings take 0 times that for a sample outside.
    """
    points = corner_points()
    image = randn(1, 1, 4, 5, dtype=torch.float32)
    image[(0, 0, *place)] = torch.inf
    count = len(points)
    offset = points.reshape(count, 2, 1, 1)
    given = image.expand(count, 1, 4, 5).contiguous(), offset, torch.ones(1, 1, 1, 1)
    theirs, ours = (f(*given, stride=9) for f in (ops.deform_conv2d, cudeform.deform_conv2d))
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)
    y, x = points[:, :1], points[:, 1:]
    boxes = torch.cat([torch.zeros_like(y), x, y, x + 1, y + 1], 1)
    for name, more in (("roi_align", {"aligned": True}), ("ps_roi_align", {})):
        for bins, ratio in ((1, 1), (1, 2), (1, 4)):
            theirs, ours = (
                getattr(module, name)(image, boxes, bins, 1.0, ratio, **more)
                for module in (ops, cudeform)
            )
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


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
