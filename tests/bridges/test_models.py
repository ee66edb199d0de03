"""Detectors that others wrote, with their attention and with one made of our functions."""

import doctest
import re

import pytest
from checkout import ROOT
from tolerances import assert_close

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.deformable_detr import modeling_deformable_detr  # noqa: E402
from transformers.models.rt_detr import modeling_rt_detr  # noqa: E402

PAGE = ROOT / "docs" / "torch.md"
SMALL = dict(
    d_model=32,
    encoder_attention_heads=2,
    encoder_ffn_dim=16,
    encoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=16,
    decoder_layers=2,
    decoder_n_points=3,
    num_feature_levels=3,
    num_queries=5,
)
BACKBONE = dict(
    embedding_size=8,
    hidden_sizes=[8, 8, 12, 16],
    depths=[1, 1, 1, 1],
    out_features=["stage2", "stage3", "stage4"],
)
# A softmax takes out what is added to all keys, a norm what is added to all pixels of a channel:
# gradients that are zero but for rounding.
WITHOUT_EFFECT = re.compile(r".*k_proj\.bias|input_proj\.\d\.0\.bias")


def deformable_detr():
    backbone = transformers.ResNetConfig(layer_type="basic", **BACKBONE)
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        encoder_n_points=2,
        dropout=0.0,
        with_box_refine=True,
        **SMALL,
    )
    return modeling_deformable_detr, transformers.DeformableDetrModel(config)


def rt_detr():
    backbone = transformers.RTDetrResNetConfig(layer_type="basic", **BACKBONE)
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=BACKBONE["hidden_sizes"][1:],
        decoder_in_channels=[32, 32, 32],
        num_denoising=0,
        **SMALL,
    )
    return modeling_rt_detr, transformers.RTDetrModel(config)


def documented():
    """The function `attention` as the page about PyTorch has it."""
    _, section = PAGE.read_text().split("## Multi-scale deformable attention")
    names = {"torch": torch}
    for example in doctest.DocTestParser().get_examples(section.partition("\n## ")[0]):
        exec(example.source, names)
    return names["attention"]


def results(model):
    """The last hidden states and the gradients of all parameters, by name."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 64, 96, generator=generator, dtype=torch.float64)
    model.zero_grad()
    output = model(pixel_values=pixels, pixel_mask=torch.ones(2, 64, 96)).last_hidden_state
    output.sin().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **gradients}


@pytest.mark.parametrize("build", [deformable_detr, rt_detr])
def test_attention_of_a_detector(build, monkeypatch):
    torch.manual_seed(0)
    module, model = build()
    model = model.double().eval().requires_grad_()
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name:  # which start on pixel centres, where slopes jump
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    expected = results(model)
    ours, calls = documented(), []

    def forward(self, values, _, shapes, __, locations, weights, *___):
        calls.append(shapes)
        return ours(values, shapes, locations, weights)

    monkeypatch.setattr(module.MultiScaleDeformableAttention, "forward", forward)
    found = results(model)
    assert len(calls) >= 2 and all(len(shapes) == 3 for shapes in calls)
    assert found.keys() == expected.keys()
    assert any("backbone" in name for name in found)
    for name in {name for name in found if not WITHOUT_EFFECT.fullmatch(name)}:
        assert_close(found[name].numpy(), expected[name].numpy(), what=name)
