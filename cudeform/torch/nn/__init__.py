"""Modules with the names, arguments and parameters of the field's, whose checkpoints they load."""

from cudeform.torch.nn.aggregation import DCNv3, DCNv4
from cudeform.torch.nn.attention import (
    MSDeformableAttention,
    MSDeformAttn,
    MultiScaleDeformableAttention,
)
from cudeform.torch.nn.convolution import (
    DCN,
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    rename_legacy_keys,
)
from cudeform.torch.nn.pooling import DCNPooling, DeformRoIPoolPack, ModulatedDeformRoIPoolPack

__all__ = [
    "DCN",
    "DCNPooling",
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformRoIPoolPack",
    "MSDeformAttn",
    "MSDeformableAttention",
    "ModulatedDeformConv2dPack",
    "ModulatedDeformRoIPoolPack",
    "MultiScaleDeformableAttention",
    "rename_legacy_keys",
]
