"""What constructors of modules take beside what the originals need."""

import pytest

torch = pytest.importorskip("torch")

from cudeform.torch import nn  # noqa: E402

WITH_PARAMETERS = {
    "DCN": (4, 6, 3, 1, 1),
    "DCNPooling": (1.0, 3, 4, False),
    "DCNv3": (16, 3),
    "DCNv4": (16, 3),
    "DeformConv2d": (4, 6, 3),
    "DeformConv2dPack": (4, 6, 3),
    "DeformRoIPoolPack": (2, 4, 8),
    "MSDeformAttn": (16, 2, 4, 2),
    "MSDeformableAttention": (16, 4, 2, 2),
    "ModulatedDeformConv2dPack": (4, 6, 3),
    "ModulatedDeformRoIPoolPack": (2, 4, 8),
    "MultiScaleDeformableAttention": (16, 4, 2, 2),
}


@pytest.mark.parametrize("name", [n for n in nn.__all__ if n[0].isupper()])
def test_parameters_begin_in_the_dtype_and_place_asked_for(name):
    given, asked = WITH_PARAMETERS[name], {"device": "meta", "dtype": torch.float64}
    more = {"center_feature_scale": True} if name in ("DCNv3", "DCNv4") else {}
    module, plain = (getattr(nn, name)(*given, **more, **kind) for kind in (asked, {}))
    assert module.state_dict().keys() == plain.state_dict().keys()
    found = {(p.device.type, p.dtype) for p in module.parameters()}
    assert found == {("meta", torch.float64)}
    assert {(p.device.type, p.dtype) for p in plain.parameters()} == {("cpu", torch.float32)}


@pytest.mark.parametrize("name", ["DeformConv2dPack", "ModulatedDeformConv2dPack"])
def test_mmcvs_older_name_of_the_groups(name):
    module = getattr(nn, name)(4, 6, 3, deformable_groups=2)
    expected = getattr(nn, name)(4, 6, 3, deform_groups=2)
    assert module.deform_groups == 2
    assert module.conv_offset.weight.shape == expected.conv_offset.weight.shape
    with pytest.raises(ValueError, match=f"{name}: expected `deform_groups`.*got 2 and 4"):
        getattr(nn, name)(4, 6, 3, deform_groups=2, deformable_groups=4)


@pytest.mark.parametrize("name", [n for n in nn.__all__ if n[0].isupper()])
def test_what_begins_with_zeros_does_so_after_a_reset(name):
    """As of modules that are made on the meta device."""
    given = WITH_PARAMETERS[name]
    begin = getattr(nn, name)(*given).state_dict()
    with torch.device("meta"):
        module = getattr(nn, name)(*given)
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        torch.nn.init.ones_(parameter)
    module.apply(lambda part: hasattr(part, "reset_parameters") and part.reset_parameters())
    for parameter, value in module.state_dict().items():
        assert value.any() == begin[parameter].any(), parameter
