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


def theirs(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    return images + boxes[0, 0]


def test_modules_begin_as_torchs_own_convolution():
    torch.manual_seed(0)
    module = nn.DeformConv2d(8, 64, (3, 5))
    bound = (8 * 3 * 5) ** -0.5
    for parameter in (module.weight, module.bias):
        assert bound * 0.9 < parameter.abs().max() <= bound
        assert abs(parameter.mean()) < bound / 4
    assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    pool = nn.DeformRoIPoolPack(3, 4, deform_fc_channels=32)
    first, *_, last = [layer for layer in pool.offset_fc if hasattr(layer, "weight")]
    assert not last.weight.any() and not last.bias.any() and first.weight.any()


@pytest.fixture
def torchvision(monkeypatch):
    """As much of torchvision as patching sees: functions, and modules that took them by name."""
    ops, inside, user = (ModuleType(n) for n in ("torchvision.ops", "torchvision.ops.dc", "user"))
    for name in ("deform_conv2d", "roi_pool", "ps_roi_align", "ps_roi_pool"):
        setattr(ops, name, lambda *given, name=name: name)
    ops.roi_align = theirs
    inside.deform_conv2d = ops.deform_conv2d
    user.pool = ops.roi_align
    user.ours = cudeform.roi_align
    for module in (ops, inside, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return ops, inside, user


def test_patch_replaces_everywhere_and_can_be_undone(torchvision):
    ops, inside, user = torchvision
    before = [dict(vars(module)) for module in torchvision]
    expected = cudeform.roi_align(images(), ROIS, 2)
    applied = patch()
    assert torch.equal(ops.roi_align(images(), ROIS, output_size=2), expected)
    assert user.pool is ops.roi_align and inside.deform_conv2d is ops.deform_conv2d
    assert inside.deform_conv2d is not before[1]["deform_conv2d"]
    applied.undo()
    applied.undo()
    assert [dict(vars(module)) for module in torchvision] == before
    with pytest.raises(KeyError), patch():
        assert ops.roi_pool is not before[0]["roi_pool"]
        raise KeyError
    assert [dict(vars(module)) for module in torchvision] == before


def test_patch_is_undone_where_modules_were_imported_meanwhile(torchvision, monkeypatch):
    ops, _, user = torchvision
    late = ModuleType("late")
    with patch():
        late.pool, late.ours = ops.roi_align, cudeform.roi_align
        monkeypatch.setitem(sys.modules, "late", late)
    assert late.pool is user.pool is ops.roi_align is theirs
    assert late.ours is user.ours is cudeform.roi_align


def test_patches_in_each_other_end_with_the_first(torchvision):
    ops, *_ = torchvision
    original = ops.roi_align
    with patch():
        with patch():
            pass
        assert ops.roi_align is not original
    assert ops.roi_align is original


def test_scripts_and_onnx_get_the_functions_that_they_know(torchvision, monkeypatch):
    ops, *_ = torchvision
    with patch():
        scripted = torch.jit.script(ops.roi_align)
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        exported = ops.roi_align(images(), ROIS)
    assert torch.equal(exported, theirs(images(), ROIS))
    assert torch.equal(scripted(images(), ROIS + 1), theirs(images(), ROIS + 1))


class Outer(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images)


def test_scripts_are_refused_by_name_and_leave_nothing_behind():
    kinds = [
        nn.DeformConv2d(4, 6, 3),
        nn.DeformConv2dPack(4, 6, 3),
        nn.ModulatedDeformConv2dPack(4, 6, 3),
        nn.DCN(4, 6, 3, 1, 1),
        nn.DeformRoIPoolPack(2, 4, 8),
        nn.ModulatedDeformRoIPoolPack(2, 4, 8),
        nn.DCNPooling(1.0, 2, 1, no_trans=True),
        nn.DCNv3(),
        nn.DCNv4(),
        nn.MSDeformAttn(),
        nn.MSDeformableAttention(),
        nn.MultiScaleDeformableAttention(),
    ]
    assert {type(kind).__name__ for kind in kinds} == set(nn.__all__) - {"rename_legacy_keys"}
    for module in kinds:
        for asked in (module, Outer(module), module):
            with pytest.raises(NotImplementedError, match=f"^{type(module).__name__}: torch.jit"):
                torch.jit.script(asked)
    for name in cudeform.__all__:
        with pytest.raises(NotImplementedError, match=f"^{name}: torch.jit.script"):
            torch.jit.script(getattr(cudeform, name))
    plain = Outer(torch.nn.Conv2d(4, 2, 1))
    assert torch.equal(torch.jit.script(plain)(images()), plain(images()))


def test_patch_without_any_of_them(monkeypatch):
    for name in list(sys.modules):
        if name == "torchvision.ops" or name.startswith(("transformers.models.", "mmcv.")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="expected torchvision, mmcv or a model of transformers"):
        patch()


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.ModulatedDeformConv2dPack(4, 6, 3, 2, (1, 2), groups=2, deform_groups=2)
        torch.nn.init.normal_(self.conv.conv_offset.weight, std=0.2)

    def forward(self, images):
        return self.conv(images)


class Largest(torch.nn.Module):
    def forward(self, images, boxes):
        return cudeform.roi_pool(images, boxes, (3, 2), 0.5)


class Uneven(torch.nn.Module):
    """Nothing is the same along y and x, or on two sides."""

    def __init__(self, plain=False):
        super().__init__()
        self.plain = plain
        self.weight = torch.nn.Parameter(state(weight=(6, 2, 3, 2))["weight"])

    def forward(self, images, offset, mask):
        options = dict(stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2))
        if self.plain:
            return cudeform.conv2d(images, self.weight, **options) + (offset.sum() + mask.sum()) * 0
        return cudeform.deform_conv2d(images, offset, self.weight, mask=mask, **options)


def uneven():
    """Images of 8 x 7, an offset and a mask of two groups for outputs of 4 x 7."""
    generator = torch.Generator().manual_seed(6)
    shapes = (2, 4, 8, 7), (2, 24, 4, 7), (2, 12, 4, 7)
    return tuple(torch.randn(*shape, generator=generator) for shape in shapes)


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


def last(*tensors):
    """Images in channels_last, of which layout "NHWC" is made."""
    return tuple(t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors)


FINER = (
    images().half(),
    0.3 * torch.ones(images().shape[0], 2, *images().shape[2:]),
    ROIS,
)
LAST = last(*FINER)
# With coordinates of the image in 16 bits the points on the right were an eighth of a pixel off.
WIDE = (
    images(4, 200)[:, :, :8].half(),
    torch.full((2, 2, 8, 200), 0.3).half(),
    torch.tensor([[0.0, 150, 1, 199, 6], [1, 120, 2, 160, 7]]).half(),
)


@pytest.mark.parametrize(
    ("module", "given", "opset", "node"),
    [
        (Beside(), FINER, 19, "DeformConv"),
        (Beside(), FINER, 19, "GridSample"),
        (Beside(), WIDE, 19, "GridSample"),
        (Beside(), LAST, 19, "DeformConv"),
        (Beside(), LAST, 19, "GridSample"),
        (Block(), (images(),), 19, "GridSample"),
        (Block(), (images(),), 22, "GridSample"),
        (Uneven(), uneven(), 19, "GridSample"),
        (Block(), (images(),), 19, "DeformConv"),
        (Block(), (images().to(memory_format=torch.channels_last),), 19, "DeformConv"),
        (Block(), (images(),), 22, "DeformConv"),
        (Uneven(), uneven(), 19, "DeformConv"),
        (Uneven(plain=True), uneven(), 19, "Conv"),
        (Uneven(plain=True), last(*uneven()), 19, "Conv"),
        (Uneven(), last(*uneven()), 19, "GridSample"),
        (Pool(True), (images(), 2 * ROIS * torch.tensor([0.5, 1, 1, 1, 1])), 19, "RoiAlign"),
        (Pool(False), (images(), 2 * ROIS * torch.tensor([0.5, 1, 1, 1, 1])), 19, "RoiAlign"),
        (Largest(), (images(), 2 * ROIS * torch.tensor([0.5, 1, 1, 1, 1])), 19, "MaxRoiPool"),
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
        custom_translation_table=onnx.translations(opset, decompose=node == "GridSample"),
        verbose=False,
    )
    model = program.model_proto
    kinds = [n.op_type for n in model.graph.node]
    assert node in kinds
    assert node == "DeformConv" or "DeformConv" not in kinds
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
    with pytest.raises(ValueError, match="`mode` to be 'avg' for ONNX, got 'max' .*corners"):
        table[torch.ops.cudeform.roi_align.default](None, None, (2, 2), mode="max")
    with pytest.raises(ValueError, match="`mode` to be 'max' for ONNX, got 'avg'"):
        table[torch.ops.cudeform.roi_pool.default](None, None, (2, 2), mode="avg")
    with pytest.raises(ValueError, match="`opset` to be at least 19"):
        onnx.translations(18)
