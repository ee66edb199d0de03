"""Modules with the names, arguments and parameters of the field's, whose checkpoints they load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import cudeform
from cudeform import checks
from cudeform.plans.regions import sampling
from cudeform.torch.scripting import refuse_script

__all__ = [
    "DCN",
    "DCNPooling",
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformRoIPoolPack",
    "ModulatedDeformConv2dPack",
    "ModulatedDeformRoIPoolPack",
    "rename_legacy_keys",
]


class _Module(nn.Module):
    """What all modules here are."""

    def __prepare_scriptable__(self) -> nn.Module:
        refuse_script(type(self).__name__)


class DeformConv2d(_Module):
    """torchvision's module: offsets, and a mask for version 2, are arguments of the forward.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : int or (int, int)
    groups : int
        Weight groups.
    bias : bool
        Whether there is a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.in_channels = in_channels = checks.integer(op, "in_channels", in_channels, 1)
        self.out_channels = out_channels = checks.integer(op, "out_channels", out_channels, 1)
        self.groups = groups = checks.integer(op, "groups", groups, 1)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{op}: expected `in_channels` and `out_channels` divisible by "
                f"`groups` = {groups}, got {in_channels} and {out_channels}"
            )
        self.kernel_size = checks.pair(op, "kernel_size", kernel_size, 1)
        self.stride = checks.pair(op, "stride", stride, 1)
        self.padding = checks.pair(op, "padding", padding, 0)
        self.dilation = checks.pair(op, "dilation", dilation, 1)
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        if checks.flag(op, "bias", bias):
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch.nn.Conv2d begins."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return cudeform.deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )


class _Pack(DeformConv2d):
    """With a convolution that predicts the offsets, and the mask; it begins with zeros."""

    _branch = "conv_offset"
    _channels_per_tap = 3  # of the branch
    _offset_groups = "deform_groups"  # what their number is called as an argument

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        op, name = type(self).__name__, self._offset_groups
        self.deform_groups = deform_groups = checks.integer(op, name, deform_groups, 1)
        if self.in_channels % deform_groups:
            checks.fail(op, name, f"to divide {self.in_channels} = in_channels", deform_groups)
        taps = self.kernel_size[0] * self.kernel_size[1]
        branch = nn.Conv2d(
            self.in_channels,
            deform_groups * self._channels_per_tap * taps,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)
        self.add_module(self._branch, branch)

    def forward(self, input: Tensor) -> Tensor:
        predicted = getattr(self, self._branch)(input)
        if self._channels_per_tap == 2:
            return super().forward(input, predicted)
        taps = predicted.shape[1] // 3
        return super().forward(input, predicted[:, : 2 * taps], predicted[:, 2 * taps :].sigmoid())


def _rename(state_dict: dict[str, Any], prefix: str) -> None:
    for name in ("weight", "bias"):
        old, new = f"{prefix[:-1]}_offset.{name}", f"{prefix}conv_offset.{name}"
        if new not in state_dict and old in state_dict:
            state_dict[new] = state_dict.pop(old)


def rename_legacy_keys(module: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of mmcv's first version with the keys that `module` has now.

    There the branch of a module `conv2` stood beside it, as `conv2_offset`. mmcv's and mmengine's
    own loaders rename by themselves; ``load_state_dict`` of torch shows a module its own keys only.

    Parameters
    ----------
    module : torch.nn.Module
        What the checkpoint is for.
    state_dict : mapping
        It is left as it is.

    Returns
    -------
    dict
    """
    renamed = dict(state_dict)
    for name, part in module.named_modules():
        if isinstance(part, _MmcvPack):
            _rename(renamed, f"{name}." if name else "")
    return renamed


class _MmcvPack(_Pack):
    """mmcv's, whose first version had the branch beside the module: `conv2_offset` of `conv2`."""

    _version = 2

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *others: Any
    ) -> None:
        version = local_metadata.get("version")
        if version is None or version < 2:
            _rename(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


class DeformConv2dPack(_MmcvPack):
    """mmcv's module of version 1: parameters `weight` and `conv_offset`, no bias by default."""

    _channels_per_tap = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deform_groups,
            bias,
        )


class ModulatedDeformConv2dPack(_MmcvPack):
    """mmcv's module of version 2: parameters `weight`, `bias` and `conv_offset`."""


class DCN(_Pack):
    """The module of DCNv2: parameters `weight`, `bias` and `conv_offset_mask`."""

    _branch = "conv_offset_mask"
    _offset_groups = "deformable_groups"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any = 1,
        deformable_groups: int = 1,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            deform_groups=deformable_groups,
        )


def _fully_connected(sizes: list[int], *last: nn.Module) -> nn.Sequential:
    """Linear layers with ReLU between; the last one begins with zeros."""
    layers: list[nn.Module] = []
    for inner, outer in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inner, outer), nn.ReLU(inplace=True)]
    nn.init.zeros_(layers[-2].weight)
    nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1], *last)


class DeformRoIPoolPack(_Module):
    """mmcv's pooling of version 1: `offset_fc` predicts the offsets from a pooling without any.

    Parameters
    ----------
    output_size : int or (int, int)
        Bins (ph, pw).
    output_channels : int
        Channels of the feature maps.
    deform_fc_channels : int
        Width of the hidden layers.
    spatial_scale, sampling_ratio, gamma
        As in `cudeform.deform_roi_pool`.
    """

    def __init__(
        self,
        output_size: Any,
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.output_size = checks.pair(op, "output_size", output_size, 1)
        self.output_channels = checks.integer(op, "output_channels", output_channels, 1)
        hidden = checks.integer(op, "deform_fc_channels", deform_fc_channels, 1)
        self.deform_fc_channels = hidden
        self.spatial_scale = checks.positive(op, "spatial_scale", spatial_scale)
        self.sampling_ratio = sampling(op, sampling_ratio)
        self.gamma = checks.number(op, "gamma", gamma)
        bins = self.output_size[0] * self.output_size[1]
        self.offset_fc = _fully_connected([bins * self.output_channels, hidden, hidden, 2 * bins])

    def _pool(self, input: Tensor, rois: Tensor, **shifts: Tensor) -> Tensor:
        return cudeform.deform_roi_pool(
            input,
            rois,
            output_size=self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            gamma=self.gamma,
            **{"offset": None, **shifts},
        )

    def _offset(self, pooled: Tensor) -> Tensor:
        return self.offset_fc(pooled.flatten(1)).view(-1, 2, *self.output_size)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return self._pool(input, rois, offset=self._offset(self._pool(input, rois)))


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """mmcv's pooling of version 2: `mask_fc` predicts a factor for each bin as well."""

    def __init__(self, output_size: Any, output_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(output_size, output_channels, *args, **kwargs)
        bins = self.output_size[0] * self.output_size[1]
        sizes = [bins * self.output_channels, self.deform_fc_channels, bins]
        self.mask_fc = _fully_connected(sizes, nn.Sigmoid())

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        pooled = self._pool(input, rois)
        mask = self.mask_fc(pooled.flatten(1)).view(-1, 1, *self.output_size)
        return self._pool(input, rois, offset=self._offset(pooled), mask=mask)


class DCNPooling(_Module):
    """The position-sensitive pooling of DCNv2: `offset_mask_fc` predicts offsets and mask.

    Parameters
    ----------
    spatial_scale, output_dim, group_size, part_size, sample_per_part, trans_std
        As in `cudeform.deform_ps_roi_pool`.
    pooled_size : int
        Bins along each axis.
    no_trans : bool
        Whether nothing is predicted, and no bin moves.
    deform_fc_dim : int
        Width of the hidden layers.
    """

    def __init__(
        self,
        spatial_scale: float,
        pooled_size: int,
        output_dim: int,
        no_trans: bool,
        group_size: int = 1,
        part_size: int | None = None,
        sample_per_part: int = 4,
        trans_std: float = 0.0,
        deform_fc_dim: int = 1024,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        output_dim = checks.integer(op, "output_dim", output_dim, 1)
        checks.pair(op, "group_size", group_size, 1)
        if part_size is not None:
            checks.pair(op, "part_size", part_size, 1)
        self.options = {
            "spatial_scale": checks.positive(op, "spatial_scale", spatial_scale),
            "output_dim": output_dim,
            "group_size": group_size,
            "part_size": part_size,
            "sample_per_part": sampling(op, sample_per_part, "sample_per_part", 1),
            "trans_std": checks.number(op, "trans_std", trans_std),
        }
        self.pooled_size = checks.integer(op, "pooled_size", pooled_size, 1)
        self.no_trans = checks.flag(op, "no_trans", no_trans)
        hidden = checks.integer(op, "deform_fc_dim", deform_fc_dim, 1)
        if not self.no_trans:
            bins = self.pooled_size**2
            self.offset_mask_fc = _fully_connected([bins * output_dim, hidden, hidden, 3 * bins])

    def _pool(self, input: Tensor, rois: Tensor, offset: Tensor | None) -> Tensor:
        return cudeform.deform_ps_roi_pool(
            input, rois, offset, output_size=self.pooled_size, **self.options
        )

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        pooled = self._pool(input, rois, None)
        if self.no_trans:
            return pooled
        size = (self.pooled_size, self.pooled_size)
        predicted = self.offset_mask_fc(pooled.flatten(1)).view(-1, 3, *size)
        return self._pool(input, rois, predicted[:, :2]) * predicted[:, 2:].sigmoid()
