"""Every architecture of transformers with multi-scale deformable attention, as small as it gets."""

import pytest
import torch
import transformers

__all__ = ["DETECTORS", "build"]

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
STAGES = ["stage1", "stage2", "stage3", "stage4"]
WORDS = torch.tensor([[101, 7, 9, 1012, 8, 102], [101, 17, 1012, 18, 4, 102]])

DETR = dict(d_model=32, num_queries=5, num_feature_levels=3, decoder_n_points=3)
DETR |= dict(encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2)
DETR |= dict(decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2)
RT_DETR = DETR | dict(
    encoder_hidden_dim=32,
    encoder_in_channels=[8, 12, 16],
    decoder_in_channels=[32, 32, 32],
    num_denoising=0,
)
D_FINE = RT_DETR | dict(
    decoder_n_points=[3, 6, 3], max_num_bins=8, lqe_hidden_dim=8, depth_mult=0.34
)
LW_DETR = dict(d_model=32, num_queries=5, group_detr=2, decoder_layers=2, decoder_ffn_dim=16)
LW_DETR |= dict(decoder_self_attention_heads=2, decoder_cross_attention_heads=4)
TRANSFORMER = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
MASKS = dict(hidden_dim=32, num_queries=5, num_attention_heads=2, dim_feedforward=16)
MASKS |= dict(encoder_layers=2, decoder_layers=2, encoder_feedforward_dim=16)


def new(name, *given, **options):
    """An object of a class of transformers, of which older versions have fewer."""
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return kind(*given, **options)


def images(width=96, **others):
    """Images, of which the second has an edge without any."""
    mask = torch.ones(2, 64, width, dtype=torch.long)
    mask[1, 48:] = mask[1, :, 80:] = 0
    return dict(pixel_values=PIXELS[..., :width].contiguous(), pixel_mask=mask, **others)


def resnet(name):
    return new(
        name,
        layer_type="basic",
        embedding_size=8,
        hidden_sizes=[8, 8, 12, 16],
        depths=[1, 1, 1, 1],
        out_features=STAGES[1:],
    )


def hgnet(stages=STAGES[1:]):
    return new(
        "HGNetV2Config",
        embedding_size=8,
        stem_channels=[3, 4, 8],
        stage_in_channels=[8, 8, 8, 12],
        stage_mid_channels=[4, 4, 4, 4],
        stage_out_channels=[8, 8, 12, 16],
        hidden_sizes=[8, 8, 12, 16],
        depths=[1, 1, 1, 1],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 3, 3],
        out_features=stages,
    )


def swin(stages=STAGES[1:]):
    return new(
        "SwinConfig",
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        drop_path_rate=0.0,
        out_features=stages,
    )


def deformable_detr(kind="Model", **options):
    config = new(
        "DeformableDetrConfig",
        backbone_config=resnet("ResNetConfig"),
        encoder_n_points=2,
        dropout=0.0,
        with_box_refine=True,
        **DETR | options,
    )
    return new(f"DeformableDetr{kind}", config), images()


def deformable_detr_in_two_stages():
    return deformable_detr("ForObjectDetection", two_stage=True, two_stage_num_proposals=5)


def rt_detr():
    config = new("RTDetrConfig", backbone_config=resnet("RTDetrResNetConfig"), **RT_DETR)
    return new("RTDetrModel", config), images()


def rt_detr_v2(method="default"):
    config = new(
        "RTDetrV2Config",
        backbone_config=resnet("RTDetrResNetConfig"),
        decoder_n_levels=3,
        decoder_method=method,
        **RT_DETR,
    )
    return new("RTDetrV2Model", config), images()


def d_fine(method="default", name="DFine"):
    config = new(f"{name}Config", backbone_config=hgnet(), decoder_method=method, **D_FINE)
    return new(f"{name}Model", config), images()


def pp_doclayout_v2():
    order = dict(coordinate_size=4, shape_size=4, relation_bias_embed_dim=4, **TRANSFORMER)
    order |= dict(global_pointer_head_size=8, num_classes=5, max_position_embeddings=32)
    config = new(
        "PPDocLayoutV2Config", backbone_config=hgnet(), reading_order_config=order, **RT_DETR
    )
    return new("PPDocLayoutV2Model", config), images()


def pp_doclayout_v3():
    config = new(
        "PPDocLayoutV3Config",
        backbone_config=hgnet(STAGES),
        mask_feature_channels=[8, 8],
        x4_feat_dim=8,
        num_prototypes=4,
        **RT_DETR,
    )
    return new("PPDocLayoutV3Model", config), images()


def pp_doclayout_v4():
    config = new("PPDocLayoutV4Config", backbone_config=hgnet(), hidden_size=32, **RT_DETR)
    return new("PPDocLayoutV4Model", config), images()


def lw_detr():
    backbone = new(
        "LwDetrViTConfig",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    config = new(
        "LwDetrConfig",
        backbone_config=backbone,
        projector_scale_factors=[2.0, 0.5],
        decoder_n_points=3,
        **LW_DETR,
    )
    return new("LwDetrModel", config), images(64)


def rf_detr():
    backbone = new(
        "RfDetrDinov2Config",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        num_windows=2,
        out_features=STAGES[:2],
    )
    config = new(
        "RfDetrConfig", backbone_config=backbone, decoder_n_points=2, dropout=0.0, **LW_DETR
    )
    return new("RfDetrModel", config), images(64)


def grounding_dino(name="GroundingDino"):
    text = new(
        "BertConfig",
        vocab_size=1100,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **TRANSFORMER,
    )
    config = new(
        f"{name}Config",
        backbone_config=swin(),
        text_config=text,
        encoder_n_points=2,
        dropout=0.0,
        fusion_droppath=0.0,
        max_text_len=16,
        **DETR | dict(num_feature_levels=4),
    )
    return new(f"{name}Model", config), images(input_ids=WORDS)


def omdet_turbo():
    words = dict(vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    sizes = dict(max_position_embeddings=16, projection_dim=16, **TRANSFORMER)
    text = new("CLIPTextConfig", **words, **sizes)
    projections = dict(text_projection_in_dim=16, text_projection_out_dim=16, class_embed_dim=16)
    encoder = dict(encoder_hidden_dim=32, encoder_dim_feedforward=16, encoder_attention_heads=2)
    decoder = dict(decoder_hidden_dim=32, decoder_dim_feedforward=16, decoder_num_heads=2)
    decoder |= dict(decoder_num_layers=2, decoder_num_points=3, num_queries=5)
    config = new(
        "OmDetTurboConfig",
        text_config=text,
        backbone_config=swin(),
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        task_encoder_hidden_dim=16,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[16, 32, 64],
        **projections | encoder | decoder,
    )
    words = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0], [1, 8, 9, 2], [1, 11, 2, 0]])
    there = (words > 0).long()
    given = dict(
        pixel_values=PIXELS,
        classes_input_ids=words,
        classes_attention_mask=there,
        tasks_input_ids=words[:2],
        tasks_attention_mask=there[:2],
        classes_structure=torch.tensor([2, 2]),
    )
    return new("OmDetTurboForObjectDetection", config), given


def mask2former():
    backbone = swin(STAGES)
    config = new(
        "Mask2FormerConfig",
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        **MASKS,
    )
    return new("Mask2FormerModel", config), images()


def oneformer():
    config = new(
        "OneFormerConfig",
        backbone_config=swin(STAGES),
        conv_dim=32,
        mask_dim=32,
        dropout=0.0,
        task_seq_len=6,
        text_encoder_width=16,
        text_encoder_context_length=6,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=50,
        text_encoder_proj_layers=1,
        text_encoder_n_ctx=2,
        query_dec_layers=1,
        **MASKS,
    )
    words = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 7, 8, 2, 0, 0]], dtype=torch.float64)
    return new("OneFormerModel", config), images(task_inputs=words)


# By the name of their folder in transformers/models; after a blank, a variant.
DETECTORS = {
    "d_fine": d_fine,
    "d_fine discrete": lambda: d_fine("discrete"),
    "deformable_detr": deformable_detr,
    "deformable_detr two stages": deformable_detr_in_two_stages,
    "deimv2": lambda: d_fine(name="Deimv2"),
    "grounding_dino": grounding_dino,
    "lw_detr": lw_detr,
    "mask2former": mask2former,
    "mm_grounding_dino": lambda: grounding_dino("MMGroundingDino"),
    "omdet_turbo": omdet_turbo,
    "oneformer": oneformer,
    "pp_doclayout_v2": pp_doclayout_v2,
    "pp_doclayout_v3": pp_doclayout_v3,
    "pp_doclayout_v4": pp_doclayout_v4,
    "rf_detr": rf_detr,
    "rt_detr": rt_detr,
    "rt_detr_v2": rt_detr_v2,
    "rt_detr_v2 discrete": lambda: rt_detr_v2("discrete"),
}


def build(name):
    """(model, arguments by name) in float64, without randomness, off the knots of the sampler."""
    torch.manual_seed(0)
    model, given = DETECTORS[name]()
    model = model.double().eval().requires_grad_()
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name:  # which start on pixel centres, where slopes jump
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return model, given
