"""DCNv3 and DCNv4 as modules: checkpoints of others, and what their layers do, by hand."""

import numpy as np
import pytest
import reference

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from cudeform.torch import nn  # noqa: E402

C, G = 12, 3  # channels, groups


def randomised(module):
    """The module in float64 with a random checkpoint, and the checkpoint."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(3)
    state = {
        name: 0.4 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.is_floating_point()
        else value
        for name, value in module.state_dict().items()
    }
    for name in state:
        if name.endswith("running_var"):
            state[name] = state[name].abs() + 0.5
    module.load_state_dict(state)
    return module, state


def images(height=5, width=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, height, width, C, generator=generator, dtype=torch.float64)


def linear(state, name, x):
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def depthwise(state, name, x):
    weight = state[f"{name}.weight"]
    moved = functional.conv2d(
        x.permute(0, 3, 1, 2), weight, state[f"{name}.bias"], padding="same", groups=C
    )
    return moved.permute(0, 2, 3, 1)


def mixed(state, output, values, seen):
    """What `center_feature_scale` does."""
    if "center_feature_scale_proj_weight" not in state:
        return output
    parts = functional.linear(
        seen, state["center_feature_scale_proj_weight"], state["center_feature_scale_proj_bias"]
    )
    parts = parts.sigmoid()[..., None].expand(*parts.shape, C // G).flatten(-2)
    return output * (1 - parts) + values * parts


def computed(function, *tensors, **options):
    """The float64 reference on tensors."""
    return torch.from_numpy(function(*(t.numpy() for t in tensors), **options))


V3_KEYS = {"dw_conv.0", "dw_conv.1.1", "offset", "mask", "input_proj", "output_proj"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(center_feature_scale=True, dw_kernel_size=5, offset_scale=2.0, act_layer="SiLU"),
        dict(remove_center=True, norm_layer="BN", act_layer="ReLU"),
        dict(kernel_size=(3, 5), dw_kernel_size=3, pad=(2, 4), dilation=2),
    ],
)
@torch.no_grad()
def test_layer_of_internimage(options):
    module, state = randomised(nn.DCNv3(C, group=G, **options))
    x = images()
    values = linear(state, "input_proj", x)
    seen = depthwise(state, "dw_conv.0", x)
    if options.get("norm_layer") == "BN":
        scale = state["dw_conv.1.0.weight"] / (state["dw_conv.1.0.running_var"] + 1e-5).sqrt()
        seen = (seen - state["dw_conv.1.0.running_mean"]) * scale + state["dw_conv.1.0.bias"]
    else:
        norm = state["dw_conv.1.1.weight"], state["dw_conv.1.1.bias"]
        seen = functional.layer_norm(seen, (C,), *norm, eps=1e-6)
    seen = getattr(functional, options.get("act_layer", "GELU").lower())(seen)
    mask = linear(state, "mask", seen).unflatten(-1, (G, -1)).softmax(-1).flatten(-2)
    given = {k: options[k] for k in ("offset_scale", "remove_center", "dilation") if k in options}
    output = computed(
        reference.dcnv3,
        values,
        linear(state, "offset", seen),
        mask,
        kernel_size=options.get("kernel_size", 3),
        padding=options.get("pad", 1),
        groups=G,
        **given,
    )
    expected = linear(state, "output_proj", mixed(state, output, values, seen))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(dw_kernel_size=3, center_feature_scale=True, offset_scale=0.5),
        dict(remove_center=True, output_bias=False),
        dict(without_pointwise=True, kernel_size=5, pad=2),
    ],
)
@torch.no_grad()
def test_layer_of_dcnv4(options):
    module, state = randomised(nn.DCNv4(C, group=G, **options))
    x = images()
    bare = options.get("without_pointwise", False)
    values = x if bare else linear(state, "value_proj", x)
    seen = depthwise(state, "offset_mask_dw", x) if "dw_kernel_size" in options else x
    given = {k: options[k] for k in ("offset_scale", "remove_center") if k in options}
    output = computed(
        reference.dcnv4,
        values,
        linear(state, "offset_mask", seen),
        kernel_size=options.get("kernel_size", 3),
        padding=options.get("pad", 1),
        groups=G,
        **given,
    )
    output = mixed(state, output, values, output)
    expected = output if bare else linear(state, "output_proj", output)
    found = module(x.flatten(1, 2), shape=(5, 6))
    torch.testing.assert_close(found, expected.flatten(1, 2), rtol=0, atol=1e-12)


def test_keys_are_those_of_the_checkpoints():
    def layers(module):
        return {name.rpartition(".")[0] for name in module.state_dict() if "scale" not in name}

    assert layers(nn.DCNv3(C, group=G, center_feature_scale=True)) == V3_KEYS
    normed = V3_KEYS - {"dw_conv.1.1"} | {"dw_conv.1.0"}
    assert layers(nn.DCNv3(C, group=G, norm_layer="BN")) == normed
    last = {"offset_mask", "value_proj", "output_proj"}
    assert layers(nn.DCNv4(C, group=G)) == last
    assert layers(nn.DCNv4(C, group=G, dw_kernel_size=3)) == last | {"offset_mask_dw"}
    shapes = {k: tuple(v.shape) for k, v in nn.DCNv4(C, group=G).state_dict().items()}
    assert shapes["offset_mask.weight"] == (88, C)  # 81, up to a multiple of 8
    for kind in (nn.DCNv3, nn.DCNv4):
        state = kind(C, group=G, center_feature_scale=True).state_dict()
        assert state["center_feature_scale_proj_weight"].shape == (G, C)
        assert state["center_feature_scale_proj_bias"].shape == (G,)


@torch.no_grad()
def test_they_begin_as_the_papers_do():
    """DCNv3 with the mean of 3 x 3 pixels, DCNv4 with nothing."""
    module, x = nn.DCNv3(C, group=G).double(), images()
    values = module.input_proj(x).permute(0, 3, 1, 2)
    mean = functional.avg_pool2d(values, 3, stride=1, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), module.output_proj(mean))
    square = images(4, 4).flatten(1, 2)
    assert not nn.DCNv4(C, group=G).double()(square).any()
    assert module.input_proj.weight.abs().max() <= np.sqrt(6 / (2 * C))


def test_all_parameters_learn():
    for module, x in (
        (nn.DCNv3(C, group=G, center_feature_scale=True), images()),
        (nn.DCNv4(C, group=G, dw_kernel_size=3), images(4, 4).flatten(1, 2)),
    ):
        module, _ = randomised(module)
        module(x).square().sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.DCNv3(C, group=5), "DCNv3: expected `group` to divide `channels` = 12, got 5"),
        (lambda: nn.DCNv3(C, group=G, norm_layer="GN"), "DCNv3: expected `norm_layer` to be one"),
        (lambda: nn.DCNv3(C, group=G, act_layer="gelu"), "DCNv3: expected `act_layer` to be one"),
        (lambda: nn.DCNv4(C, group=G, offset_scale=0), "DCNv4: expected `offset_scale` to be abov"),
        (
            lambda: nn.DCNv4(C, group=G)(torch.zeros(1, 30, C)),
            "DCNv4: expected `input` of shape .* with H, W = .5, 5., got .1, 30, 12.",
        ),
        (
            lambda: nn.DCNv3(C, group=G, stride=2)(torch.zeros(1, 6, 6, C)),
            "dcnv3: expected `offset` of shape .1, 3, 3, 54. ",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
