"""Modules of multi-scale deformable attention: what they compute, and in which modes of torch."""

import copy
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest

import cudeform

torch = pytest.importorskip("torch")

from attention_calls import PIXELS, SHAPES, given, rand, scattered  # noqa: E402

from cudeform.torch import nn, patch  # noqa: E402


def expected(module, query, reference, features, points, offset_scale=0.5, padding=None):
    """The paper's equations in loops, by the keys of a checkpoint."""
    state = {key: value.double().numpy() for key, value in module.state_dict().items()}

    def linear(name, values):
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    query, reference, features = (t.double().numpy() for t in (query, reference, features))
    heads, total = 4, sum(points)
    value = linear("value_proj", features) if "value_proj.weight" in state else features
    if padding is not None:
        value = np.where(padding.numpy()[..., None], 0.0, value)
    batch, count, _ = query.shape
    value = value.reshape(batch, PIXELS, heads, -1)
    offsets = linear("sampling_offsets", query).reshape(batch, count, heads, total, 2)
    logits = linear("attention_weights", query).reshape(batch, count, heads, total)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    output = np.zeros((batch, count, *value.shape[2:]))
    for n, q, m in np.ndindex(batch, count, heads):
        point = first = 0
        for level, (height, width) in enumerate(SHAPES):
            image = value[n, first : first + height * width, m].reshape(height, width, -1)
            first += height * width
            for _ in range(points[level]):
                x, y, *size = reference[n, q, level]
                dx, dy = offsets[n, q, m, point]
                if size:
                    x += dx / points[level] * size[0] * offset_scale
                    y += dy / points[level] * size[1] * offset_scale
                else:
                    x, y = x + dx / width, y + dy / height
                output[n, q, m] += weights[n, q, m, point] * sample(image, y, x)
                point += 1
    output = output.reshape(batch, count, -1)
    return linear("output_proj", output) if "output_proj.weight" in state else output


def sample(image, y, x):
    height, width = image.shape[:2]
    y, x = y * height - 0.5, x * width - 0.5
    total = 0.0
    for row, column in np.ndindex(height, width):
        total = total + image[row, column] * max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
    return total


@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.parametrize("points", [3, [2, 5]])
def test_the_module_of_deformable_detr(points, numbers):
    module = scattered(nn.MSDeformAttn(32, 2, 4, points, offset_scale=0.7).double())
    assert set(module.state_dict()) == {
        f"{name}.{part}"
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for part in ("weight", "bias")
    }
    query, reference, features = given(numbers=numbers)
    padding = torch.zeros(2, PIXELS, dtype=torch.bool)
    padding[1, 20:30] = True
    counts = points if isinstance(points, list) else [points] * 2
    for mask in (None, padding):
        wanted = expected(module, query, reference, features, counts, 0.7, mask)
        found = module(query, reference, features, SHAPES, None, mask)
        np.testing.assert_allclose(found.detach(), wanted, rtol=1e-12, atol=1e-12)
    kept = module(query, reference, features, torch.tensor(SHAPES), input_keep_mask=~padding)
    assert torch.equal(kept, found)


def test_one_reference_for_all_levels():
    module = scattered(nn.MSDeformAttn(32, 2, 4, 3).double())
    query, reference, features = given(numbers=4)
    one = module(query, reference[:, :, :1], features, SHAPES)
    all_levels = module(query, reference[:, :, :1].expand(-1, -1, 2, -1), features, SHAPES)
    torch.testing.assert_close(one, all_levels, rtol=1e-13, atol=1e-13)


def test_fewer_channels_of_values():
    module = scattered(nn.MSDeformAttn(32, 2, 4, 3, ratio=0.5).double())
    assert module.value_proj.weight.shape == (16, 32)
    theirs = nn.MultiScaleDeformableAttention(32, 4, 2, 3, value_proj_ratio=0.5).double()
    theirs.load_state_dict(module.state_dict())
    found = module(*given(), SHAPES).detach()
    np.testing.assert_allclose(found, expected(module, *given(), [3, 3]), rtol=1e-12, atol=1e-12)


def test_the_arguments_of_mmcv_by_place():
    module = nn.MultiScaleDeformableAttention(32, 4, 2, 3, 64, 0.3, True, None, None, 0.5)
    assert module.dropout.p == 0.3 and module.batch_first
    assert module.value_proj.weight.shape == (16, 32)
    nn.MultiScaleDeformableAttention(32, 4, 2, 3, img2col_step=64, norm_cfg=None)
    for wrong in ({"im2col_step": 0}, {"img2col_step": 1.5}, {"init_cfg": {"type": "Xavier"}}):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            nn.MultiScaleDeformableAttention(32, 4, 2, 3, **wrong)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_module_of_mmcv(batch_first):
    plain = scattered(nn.MSDeformAttn(32, 2, 4, 3).double())
    module = nn.MultiScaleDeformableAttention(32, 4, 2, 3, batch_first=batch_first).double().eval()
    module.load_state_dict(plain.state_dict())
    query, reference, features = given()
    position, identity = rand(2, 5, 32, seed=6), rand(2, 5, 32, seed=7)
    padding = torch.zeros(2, PIXELS, dtype=torch.bool)
    padding[0, :9] = True

    def theirs(query, value, **options):
        arrays = [query, value, *options.values()]
        if not batch_first:
            arrays = [a if a is None else a.transpose(0, 1) for a in arrays]
        output = module(
            arrays[0],
            value=arrays[1],
            **dict(zip(options, arrays[2:], strict=True)),
            reference_points=reference
            if query.shape[1] == 5
            else reference[:, :1].expand(-1, PIXELS, -1, -1),
            spatial_shapes=torch.tensor(SHAPES),
            level_start_index=None,
            key_padding_mask=padding,
            attn_mask=None,  # mmcv's layers give more than is read
        )
        return output if batch_first else output.transpose(0, 1)

    read = plain(query + position, reference, features, SHAPES, input_padding_mask=padding)
    found = theirs(query, features, query_pos=position, identity=identity)
    torch.testing.assert_close(found, read + identity)
    read = plain(query, reference, features, SHAPES, input_padding_mask=padding)
    torch.testing.assert_close(theirs(query, features), read + query)
    everywhere = reference[:, :1].expand(-1, PIXELS, -1, -1)
    read = plain(features, everywhere, features, SHAPES, input_padding_mask=padding)
    torch.testing.assert_close(theirs(features, None), read + features)
    module.train()
    dropped = theirs(query, features, identity=torch.zeros_like(identity))
    assert 0.02 < (dropped == 0).double().mean() < 0.25


@pytest.mark.parametrize("numbers", [2, 4])
def test_the_module_of_d_fine(numbers):
    module = scattered(
        nn.MSDeformableAttention(32, 4, 2, [2, 5], offset_scale=0.7, projected=False).double()
    )
    query, reference, features = given(numbers=numbers)
    wanted = expected(module, query, reference, features, [2, 5], 0.7)
    split = features.unflatten(-1, (4, 8)).permute(0, 2, 3, 1).split([48, 12], -1)
    for value in (features, split, list(split)):
        found = module(query, reference, value, SHAPES).detach()
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_nearest_pixels_of_rt_detr_v2():
    module = scattered(nn.MSDeformableAttention(32, 4, 2, 3, "discrete").double())
    query, reference, features = given(numbers=4)
    found = module(query, reference, features, SHAPES)
    ours = nn.MSDeformAttn(32, 2, 4, 3, method="nearest").double()
    ours.load_state_dict(module.state_dict())
    assert torch.equal(ours(query, reference, features, SHAPES), found)
    smooth = nn.MSDeformAttn(32, 2, 4, 3).double()
    smooth.load_state_dict(module.state_dict())
    assert not torch.allclose(smooth(query, reference, features, SHAPES), found)


def test_checkpoints_hold_what_follows_from_the_points():
    module = nn.MSDeformableAttention(32, 4, 2, [1, 2])
    state = module.state_dict()
    for name in ("num_points_scale", "n_points_scale"):
        module.load_state_dict(state | {name: torch.tensor([1, 0.5, 0.5])})
        for other in ([1, 1, 0.5], [0.5, 0.5, 0.5, 0.5]):
            with pytest.raises(ValueError, match=rf"for \(1, 2\) points per level, got `{name}`"):
                module.load_state_dict(state | {name: torch.tensor(other)})


def test_modules_begin_as_the_paper_says():
    torch.manual_seed(0)
    module = nn.MSDeformAttn(64, 2, 8, 3)
    offsets = module.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    ring = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]  # (x, y)
    for head, level, point in np.ndindex(8, 2, 3):
        wanted = (point + 1) * torch.tensor(ring[head], dtype=torch.float32)
        torch.testing.assert_close(offsets[head, level, point], wanted, rtol=1e-6, atol=1e-6)
    for name in ("attention_weights.weight", "attention_weights.bias", "sampling_offsets.weight"):
        assert not module.get_parameter(name).any()
    for projection in (module.value_proj, module.output_proj):
        assert not projection.bias.any()
        bound = (6 / 128) ** 0.5
        assert 0.95 * bound < projection.weight.abs().max() <= bound
    ragged = nn.MSDeformableAttention(64, 8, 2, [1, 3]).sampling_offsets.bias.view(8, 4, 2)
    torch.testing.assert_close(ragged[0, :, 0], torch.tensor([1.0, 1, 2, 3]))


def test_arguments():
    for options, message in (
        (dict(d_model=30), "`d_model` divisible by `n_heads` = 8"),
        (dict(n_points=[4, 4]), "`n_points` of 4 levels"),
        (dict(n_levels=0), "`n_levels` to be at least 1"),
        (dict(ratio=0.01), "`ratio` to make of 256 channels a multiple of 8 heads"),
        (dict(method="discrete"), "`method` to be one of 'bilinear', 'nearest'"),
    ):
        with pytest.raises(ValueError, match=f"^MSDeformAttn: expected {message}"):
            nn.MSDeformAttn(**options)
    with pytest.raises(ValueError, match="`method` to be one of 'default', 'discrete'"):
        nn.MSDeformableAttention(method="nearest")
    module = nn.MSDeformAttn(32, 2, 4, 3).double()
    query, reference, features = given()
    mask = torch.zeros(2, PIXELS, dtype=torch.bool)
    with pytest.raises(ValueError, match="`input_keep_mask` without `input_padding_mask`"):
        module(query, reference, features, SHAPES, None, mask, input_keep_mask=mask)
    for name in ("input_padding_mask", "input_keep_mask"):
        with pytest.raises(TypeError, match=f"`{name}` of dtype torch.bool"):
            module(query, reference, features, SHAPES, **{name: mask.double()})
    for wrong in (reference[:, :, :, :1], reference.repeat(1, 1, 2, 1), reference[0]):
        with pytest.raises(ValueError, match="`reference_points`"):
            module(query, wrong, features, SHAPES)
    with pytest.raises(ValueError, match="`value` to be a tensor, got levels"):
        nn.MSDeformableAttention(32, 4, 2)(query, reference, [features], SHAPES)
    with pytest.raises(TypeError, match="`spatial_shapes` to be given"):
        nn.MultiScaleDeformableAttention(32, 4, 2)(query, reference_points=reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_have_finer_locations(dtype, monkeypatch):
    module = scattered(nn.MSDeformAttn(32, 2, 4, 3)).to(dtype)
    called, operator = [], cudeform.ms_deform_attn

    def record(*arrays, **options):
        called.extend(array.dtype for array in (arrays[0], arrays[2]))
        return operator(*arrays, **options)

    monkeypatch.setattr(cudeform, "ms_deform_attn", record)
    found = module(*given(dtype), SHAPES)
    assert found.dtype == dtype and called == [dtype, torch.float32]
    wanted = expected(module, *given(dtype), [3, 3])
    bound = 0.01 if dtype == torch.float16 else 0.06
    assert np.abs(found.detach().double().numpy() - wanted).max() < bound * np.abs(wanted).max()


def gradients(module, arrays, shapes=SHAPES):
    arrays = [array.detach().clone().requires_grad_() for array in arrays]
    output = module(*arrays, shapes)
    output.float().sin().sum().backward()
    found = [output.detach(), *(array.grad for array in arrays)]
    found += [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    return found


@pytest.mark.parametrize("as_tensor", [False, True])
def test_compiled(as_tensor):
    module = scattered(nn.MSDeformAttn(32, 2, 4, [2, 3]).double())
    shapes = torch.tensor(SHAPES) if as_tensor else SHAPES
    wanted = gradients(module, given(numbers=4), shapes)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for found, expected in zip(gradients(compiled, given(numbers=4), shapes), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_autocast():
    """Projections in 16 bits, points and sums in 32; gradients in the dtype of the parameters."""
    module = scattered(nn.MSDeformAttn(32, 2, 4, 3))
    wanted = gradients(module, given(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(module, given(torch.float32))
    assert found[0].dtype == torch.bfloat16
    for result, whole in zip(found[1:], wanted[1:], strict=True):
        assert result.dtype == torch.float32
        assert (result - whole).abs().max() < 0.1 * whole.abs().max()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_exported_as_one_node(as_tensor):
    module = scattered(nn.MSDeformAttn(32, 2, 4, 3).double())
    arrays = given()
    shapes = torch.tensor(SHAPES) if as_tensor else SHAPES
    program = torch.export.export(module, (*arrays, shapes))
    named = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("cudeform.ms_deform_attn" in name for name in named) == 1
    torch.testing.assert_close(program.module()(*arrays, shapes), module(*arrays, shapes))


@pytest.fixture
def mmcv(monkeypatch):
    """As much of mmcv as patching sees."""
    file, user = ModuleType("mmcv.ops.multi_scale_deform_attn"), ModuleType("user")

    class Function(torch.autograd.Function):
        pass

    def function(value, value_spatial_shapes, sampling_locations, attention_weights):
        raise AssertionError

    source = """
import torch
class Attention(torch.nn.Module):
    def forward(self, kernel, value, shapes, locations, weights):
        if kernel:
            return MultiScaleDeformableAttnFunction.apply(value, shapes, 0, locations, weights, 64)
        return composed(value, shapes, locations, weights)

def composed(*given):
    return next(multi_scale_deformable_attn_pytorch(*arrays) for arrays in [given])
"""
    file.MultiScaleDeformableAttnFunction = Function
    file.multi_scale_deformable_attn_pytorch = user.attention = function
    exec(source, vars(file))
    for module in (file, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return file, user


def test_patch_of_mmcv(mmcv):
    file, user = mmcv
    before = [dict(vars(module)) for module in mmcv]
    arrays = (
        rand(1, PIXELS, 2, 4),
        torch.tensor(SHAPES),
        rand(1, 3, 2, 2, 2, 2),
        rand(1, 3, 2, 2, 2),
    )
    wanted = cudeform.ms_deform_attn(*arrays)
    model = torch.nn.Sequential(file.Attention())
    for patched in (model, None):
        with patch(patched) as applied:
            for kernel in (False, True):
                assert torch.equal(model[0](kernel, *arrays), wanted)
            if patched is None:
                assert torch.equal(user.attention(*arrays), wanted)
                assert any("mmcv" in name for name in applied.replaced)
            else:
                assert applied.replaced == ("0",)
                assert user.attention is before[1]["attention"]
        assert [dict(vars(module)) for module in mmcv] == before
    assert type(model[0]) is file.Attention


def test_patch_of_a_model(mmcv):
    file, _ = mmcv
    model = torch.nn.Sequential(file.Attention(), torch.nn.Linear(2, 2))
    with patch(model) as first:
        kind = type(model[0])
        assert isinstance(model[0], file.Attention) and kind is not file.Attention
        with patch(model) as second:
            assert second.replaced == ()
        assert type(model[0]) is kind
        copied = copy.deepcopy(model)
    assert type(model[0]) is file.Attention and type(copied[0]) is kind
    assert "replaced=('0',)" in repr(first)
    with pytest.raises(RuntimeError, match="expected `model` to use operators .* got .*Linear"):
        patch(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="`model` to be a torch.nn.Module or None, got str"):
        patch("model")


class Doubled(torch.nn.Module):
    def forward(self, tensor):
        return 2 * tensor


def test_a_patch_leaves_classes_that_modules_were_given_since(mmcv):
    file, _ = mmcv
    kind, rename = file.Attention, torch.nn.utils.parametrize.register_parametrization
    own = type("Own", (kind,), {})
    model = torch.nn.Sequential(*(kind() for _ in range(4)))
    for module in model:
        module.first, module.second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    rename(model[2], "first", Doubled())
    with patch(model):
        patched = type(model[0])
        rename(model[0], "first", Doubled())
        model[1].__class__ = own
        rename(model[2], "second", Doubled())
        derived = type(model[0])
        assert issubclass(derived, patched)
    assert type(model[0]) is derived and derived.__mro__[1] is kind
    assert torch.equal(model[0].first, torch.full((2,), 2.0)) and model[0].forward
    assert type(model[1]) is own
    assert torch.equal(model[2].first + model[2].second, torch.full((2,), 4.0))
    assert type(model[3]) is kind
    torch.nn.utils.parametrize.remove_parametrizations(model[0], "first")
    assert type(model[0]) is kind


class Mine(torch.nn.Module):
    """Has another's class below it while a model is patched."""


def test_a_class_of_a_patched_module_s_is_pickled_by_its_own_name(mmcv, monkeypatch):
    file, _ = mmcv
    monkeypatch.setattr(file.Attention, "__module__", file.__name__)
    model = torch.nn.Sequential(file.Attention())
    with patch(model):
        named = type("Mine", (type(model[0]),), {"__module__": __name__})
        monkeypatch.setitem(globals(), "Mine", named)
        model[0].__class__ = named
        assert type(pickle.loads(pickle.dumps(model))[0]) is named
    assert type(pickle.loads(pickle.dumps(model))[0]) is named and named.__base__ is file.Attention


def test_a_forward_that_another_replaced_since_stays(monkeypatch):
    file = ModuleType("transformers.models.ours")

    class MultiScaleDeformableAttention(torch.nn.Module):
        def forward(
            self, value, value_spatial_shapes, value_spatial_shapes_list, level_start_index,
            sampling_locations, attention_weights, im2col_step,
        ):  # fmt: skip
            raise AssertionError

    owner = file.MultiScaleDeformableAttention = MultiScaleDeformableAttention
    owner.__module__ = file.__name__
    monkeypatch.setitem(sys.modules, file.__name__, file)
    before = owner.forward
    with patch():
        assert owner.forward is not before
    assert owner.forward is before
    with patch():
        owner.forward = other = lambda self: None
    assert owner.forward is other


def test_patch_refuses_what_it_does_not_know(mmcv):
    file, user = mmcv
    file.multi_scale_deformable_attn_pytorch = theirs = lambda value, more: value
    with pytest.raises(RuntimeError, match="multi_scale_deformable_attn_pytorch` to have the arg"):
        patch()
    assert file.multi_scale_deformable_attn_pytorch is theirs
