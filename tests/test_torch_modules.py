"""Modules that load the field's checkpoints, torchvision on our operators, and ONNX."""

import sys
from types import ModuleType

import numpy as np
import pytest

import cudeform

torch = pytest.importorskip("torch")

from cudeform.torch import nn, onnx, patch  # noqa: E402


def state(**shapes):
    """A checkpoint with these parameters, dots written as two underscores."""
    generator = torch.Generator().manual_seed(2)
    return {
        name.replace("__", "."): 0.3 * torch.randn(*shape, generator=generator)
        for name, shape in shapes.items()
    }


def images(channels=4, size=7):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


ROIS = torch.tensor([[0.0, 1, 1, 5, 6], [1, 0, 2, 6, 4], [1, 2, 2, 3, 3]])


def test_torchvisions_module():
    checkpoint = state(weight=(6, 2, 3, 3), bias=(6,))
    module = nn.DeformConv2d(4, 6, 3, padding=1, groups=2)
    module.load_state_dict(checkpoint)
    offset, mask = images(18), images(9)
    expected = cudeform.deform_conv2d(
        images(), offset, checkpoint["weight"], checkpoint["bias"], padding=1, mask=mask
    )
    assert torch.equal(module(images(), offset, mask), expected)
    assert nn.DeformConv2d(4, 6, 3, bias=False).bias is None
    assert "kernel_size=(3, 3)" in repr(module)
    with pytest.raises(ValueError, match="divisible by `groups` = 4"):
        nn.DeformConv2d(4, 6, 3, groups=4)


def convolved(checkpoint, branch, parts, groups=1):
    predicted = torch.nn.functional.conv2d(
        images(), checkpoint[f"{branch}.weight"], checkpoint[f"{branch}.bias"], padding=1
    )
    taps = 9 * groups
    mask = predicted[:, 2 * taps :].sigmoid() if parts == 3 else None
    return cudeform.deform_conv2d(
        images(),
        predicted[:, : 2 * taps].contiguous(),
        checkpoint["weight"],
        checkpoint.get("bias"),
        padding=1,
        mask=mask,
    )


def test_mmcvs_module_of_version_1():
    checkpoint = state(
        weight=(6, 4, 3, 3), conv_offset__weight=(36, 4, 3, 3), conv_offset__bias=(36,)
    )
    module = nn.DeformConv2dPack(4, 6, 3, padding=1, deform_groups=2)
    module.load_state_dict(checkpoint)
    torch.testing.assert_close(module(images()), convolved(checkpoint, "conv_offset", 2, 2))


def test_mmcvs_module_of_version_2():
    checkpoint = state(
        weight=(6, 4, 3, 3), bias=(6,), conv_offset__weight=(27, 4, 3, 3), conv_offset__bias=(27,)
    )
    module = nn.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    module.load_state_dict(checkpoint)
    torch.testing.assert_close(module(images()), convolved(checkpoint, "conv_offset", 3))


def test_mmcvs_old_checkpoints():
    """The branch of `block.conv2` was `block.conv2_offset`, in files without a version."""
    block = torch.nn.ModuleDict({"conv2": nn.ModulatedDeformConv2dPack(4, 6, 3)})
    old = state(
        conv2__weight=(6, 4, 3, 3),
        conv2__bias=(6,),
        conv2_offset__weight=(27, 4, 3, 3),
        conv2_offset__bias=(27,),
    )
    block.load_state_dict(nn.rename_legacy_keys(block, old))
    assert torch.equal(block["conv2"].conv_offset.weight, old["conv2_offset.weight"])
    assert block.state_dict()._metadata["conv2"]["version"] == 2


def test_mmcvs_loaders_have_old_keys_renamed():
    """They show a module all keys."""
    module = nn.DeformConv2dPack(4, 6, 3)
    old = state(a_weight=(1,), conv2__weight=(6, 4, 3, 3))
    old |= state(conv2_offset__weight=(18, 4, 3, 3), conv2_offset__bias=(18,))
    expected, errors = old["conv2_offset.weight"], []
    module._load_from_state_dict(old, "conv2.", {}, True, [], [], errors)
    assert torch.equal(module.conv_offset.weight, torch.zeros(18, 4, 3, 3)) and not errors
    assert old["conv2.conv_offset.weight"] is expected


def test_dcnv2s_module():
    branch = {"conv_offset_mask__weight": (27, 4, 3, 3), "conv_offset_mask__bias": (27,)}
    checkpoint = state(weight=(6, 4, 3, 3), bias=(6,), **branch)
    module = nn.DCN(4, 6, 3, 1, 1)
    module.load_state_dict(checkpoint)
    torch.testing.assert_close(module(images()), convolved(checkpoint, "conv_offset_mask", 3))


def fully_connected(checkpoint, name, pooled):
    """The layers of a checkpoint by hand: ReLU between, none after the last."""
    values = pooled.flatten(1)
    layers = sorted(k.split(".")[1] for k in checkpoint if k.startswith(f"{name}.") and "bias" in k)
    for i in layers:
        weight, bias = checkpoint[f"{name}.{i}.weight"], checkpoint[f"{name}.{i}.bias"]
        values = values @ weight.T + bias
        values = values.relu() if i != layers[-1] else values
    return values


def three(name, last, inner=16, hidden=8):
    sizes = [inner, hidden, hidden, last]
    return {
        f"{name}__{2 * i}__{part}": shape
        for i in range(3)
        for part, shape in (("weight", (sizes[i + 1], sizes[i])), ("bias", (sizes[i + 1],)))
    }


def test_mmcvs_pooling_of_version_1():
    checkpoint = state(**three("offset_fc", 8))
    module = nn.DeformRoIPoolPack(2, 4, 8, spatial_scale=0.5)
    module.load_state_dict(checkpoint)

    def pool(offset):
        return cudeform.deform_roi_pool(images(), ROIS, offset, 2, spatial_scale=0.5)

    offset = fully_connected(checkpoint, "offset_fc", pool(None)).view(-1, 2, 2, 2)
    torch.testing.assert_close(module(images(), ROIS), pool(offset))


def test_mmcvs_pooling_of_version_2():
    mask_fc = {
        "mask_fc__0__weight": (8, 16),
        "mask_fc__0__bias": (8,),
        "mask_fc__2__weight": (4, 8),
        "mask_fc__2__bias": (4,),
    }
    checkpoint = state(**three("offset_fc", 8), **mask_fc)
    module = nn.ModulatedDeformRoIPoolPack(2, 4, 8)
    module.load_state_dict(checkpoint)
    pooled = cudeform.deform_roi_pool(images(), ROIS, None, 2)
    offset = fully_connected(checkpoint, "offset_fc", pooled).view(-1, 2, 2, 2)
    mask = fully_connected(checkpoint, "mask_fc", pooled).sigmoid().view(-1, 1, 2, 2)
    expected = cudeform.deform_roi_pool(images(), ROIS, offset, 2) * mask
    torch.testing.assert_close(module(images(), ROIS), expected)


def test_dcnv2s_pooling():
    checkpoint = state(**three("offset_mask_fc", 12, inner=4))
    options = dict(spatial_scale=0.5, output_dim=1, group_size=2, trans_std=0.2)
    module = nn.DCNPooling(pooled_size=2, no_trans=False, deform_fc_dim=8, **options)
    module.load_state_dict(checkpoint)

    def pool(offset):
        return cudeform.deform_ps_roi_pool(images(), ROIS, offset, output_size=2, **options)

    predicted = fully_connected(checkpoint, "offset_mask_fc", pool(None)).view(-1, 3, 2, 2)
    expected = pool(predicted[:, :2].contiguous()) * predicted[:, 2:].sigmoid()
    torch.testing.assert_close(module(images(), ROIS), expected)
    still = nn.DCNPooling(pooled_size=2, no_trans=True, **options)
    assert not still.state_dict()
    assert torch.equal(still(images(), ROIS), pool(None))


@pytest.mark.parametrize("kind", [nn.DeformConv2dPack, nn.ModulatedDeformConv2dPack])
def test_modules_begin_as_convolutions(kind):
    """Zero offsets, and a mask of one half where there is one."""
    module = kind(4, 6, 3, padding=1)
    factor = 1 if kind is nn.DeformConv2dPack else 0.5
    expected = factor * torch.nn.functional.conv2d(images(), module.weight, padding=1)
    bias = 0 if module.bias is None else module.bias[:, None, None]
    torch.testing.assert_close(module(images()), expected + bias)


@pytest.fixture
def torchvision(monkeypatch):
    """As much of torchvision as patching sees: functions, and modules that took them by name."""
    ops, inside, user = (ModuleType(n) for n in ("torchvision.ops", "torchvision.ops.dc", "user"))
    for name in ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"):
        setattr(ops, name, lambda *given, name=name: name)
    inside.deform_conv2d = ops.deform_conv2d
    user.pool = ops.roi_align
    for module in (ops, inside, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return ops, inside, user


def test_patch_replaces_everywhere_and_can_be_undone(torchvision):
    ops, inside, user = torchvision
    before = [dict(vars(module)) for module in torchvision]
    applied = patch()
    assert inside.deform_conv2d is ops.deform_conv2d is cudeform.deform_conv2d
    assert user.pool is cudeform.roi_align and ops.ps_roi_pool is cudeform.ps_roi_pool
    applied.undo()
    applied.undo()
    assert [dict(vars(module)) for module in torchvision] == before
    with pytest.raises(KeyError), patch():
        assert ops.roi_pool is cudeform.roi_pool
        raise KeyError
    assert [dict(vars(module)) for module in torchvision] == before


def test_patch_without_torchvision(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision.ops", raising=False)
    with pytest.raises(RuntimeError, match="expected torchvision to be imported"):
        patch()


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.ModulatedDeformConv2dPack(4, 6, 3, 2, (1, 2), groups=2, deform_groups=2)
        torch.nn.init.normal_(self.conv.conv_offset.weight, std=0.2)

    def forward(self, images):
        return self.conv(images)


class Pool(torch.nn.Module):
    def __init__(self, aligned):
        super().__init__()
        self.aligned = aligned

    def forward(self, images, boxes):
        return cudeform.roi_align(images, boxes, (3, 2), 0.5, aligned=self.aligned)


class Beside(torch.nn.Module):
    """16-bit images, and coordinates that are finer."""

    def forward(self, images, offset, boxes):
        weight = torch.full((3, 4, 1, 1), 0.25, dtype=images.dtype)
        return cudeform.roi_align(cudeform.deform_conv2d(images, offset, weight), boxes, 2)


FINER = (
    images().half(),
    0.3 * torch.ones(images().shape[0], 2, *images().shape[2:]),
    ROIS,
)


@pytest.mark.parametrize(
    ("module", "given", "opset", "node"),
    [
        (Beside(), FINER, 19, "DeformConv"),
        (Block(), (images(),), 19, "DeformConv"),
        (Block(), (images(),), 22, "DeformConv"),
        (Pool(True), (images(), 2 * ROIS * torch.tensor([0.5, 1, 1, 1, 1])), 19, "RoiAlign"),
        (Pool(False), (images(), 2 * ROIS * torch.tensor([0.5, 1, 1, 1, 1])), 19, "RoiAlign"),
    ],
)
def test_onnx_has_the_standards_operators(module, given, opset, node):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(
        module.eval(),
        given,
        dynamo=True,
        opset_version=opset,
        custom_translation_table=onnx.translations(opset),
        verbose=False,
    )
    model = program.model_proto
    assert node in [n.op_type for n in model.graph.node]
    assert {n.domain for n in model.graph.node} == {""}
    assert model.opset_import[0].version == opset
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_inputs()]
    (found,) = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
    expected = module(*given).detach().numpy()
    assert found.dtype == expected.dtype
    tolerance = 1e-3 if found.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_onnx_refuses_what_the_standard_lacks():
    pytest.importorskip("onnxscript")
    table = onnx.translations(19)
    convolution = table[torch.ops.cudeform.deform_conv2d.default]
    with pytest.raises(ValueError, match="`border` to be 'zeros' for ONNX, got 'clamp'"):
        convolution(None, None, None, border="clamp")
    with pytest.raises(ValueError, match="`layout` to be 'NCHW' for ONNX"):
        convolution(None, None, torch.ones(1, 1, 1, 1), layout="NHWC")
    with pytest.raises(ValueError, match="`opset` to be at least 19"):
        onnx.translations(18)
