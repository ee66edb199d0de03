"""Modules of deformable convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import cudeform
from cudeform import checks
from cudeform.torch.nn.module import Module, begin_with_zeros


class DeformConv2d(Module):
    """torchvision's module: offsets, and a mask for version 2, are arguments of the forward.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : int or (int, int)
    groups : int
        Weight groups.
    bias : bool
        Whether there is a bias.
    device, dtype
        Of the parameters, as in ``torch.nn.Conv2d``; all modules here that have any take them.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1, bias: bool = True,
        *, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        op = type(self).__name__
        self.in_channels = in_channels = checks.integer(op, "in_channels", in_channels, 1)
        self.out_channels = out_channels = checks.integer(op, "out_channels", out_channels, 1)
        self.groups = groups = checks.integer(op, "groups", groups, 1)
        if in_channels % groups or out_channels % groups:
            expected = f"and `out_channels` divisible by `groups` = {groups}"
            checks.fail(op, "in_channels", expected, f"{in_channels} and {out_channels}")
        self.kernel_size = checks.pair(op, "kernel_size", kernel_size, 1)
        self.stride = checks.pair(op, "stride", stride, 1)
        self.padding = checks.pair(op, "padding", padding, 0)
        self.dilation = checks.pair(op, "dilation", dilation, 1)
        shape = out_channels, in_channels // groups, *self.kernel_size
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if checks.flag(op, "bias", bias):
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
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
        window = self.stride, self.padding, self.dilation
        return cudeform.deform_conv2d(input, offset, self.weight, self.bias, *window, mask)


class _Pack(DeformConv2d):
    """With a convolution that predicts the offsets, and the mask; it begins with zeros."""

    _branch = "conv_offset"
    _channels_per_tap = 3  # of the branch
    _offset_groups = "deform_groups"  # what their number is called as an argument

    def _add_branch(self, deform_groups: int, **factory: Any) -> None:
        op, name = type(self).__name__, self._offset_groups
        self.deform_groups = deform_groups = checks.integer(op, name, deform_groups, 1)
        if self.in_channels % deform_groups:
            checks.fail(op, name, f"to divide {self.in_channels} = in_channels", deform_groups)
        channels = deform_groups * self._channels_per_tap * math.prod(self.kernel_size)
        window = self.kernel_size, self.stride, self.padding, self.dilation
        branch = nn.Conv2d(self.in_channels, channels, *window, **factory)
        begin_with_zeros(branch)
        self.add_module(self._branch, branch)

    def reset_parameters(self) -> None:
        """The weight as torch.nn.Conv2d begins, the branch with zeros."""
        super().reset_parameters()
        if hasattr(self, self._branch):  # not yet where the base makes its own
            begin_with_zeros(getattr(self, self._branch))

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
    """mmcv's, whose first version had the branch beside the module: `conv2_offset` of `conv2`.

    And `deform_groups` was `deformable_groups`, which is still taken.
    """

    _version = 2

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1, deform_groups: int = 1,
        bias: bool = True,
        *, deformable_groups: int | None = None, **factory: Any,
    ) -> None:  # fmt: skip
        if deformable_groups is not None:
            if deform_groups not in (1, deformable_groups):
                op, got = type(self).__name__, f"{deform_groups} and {deformable_groups}"
                checks.fail(op, "deform_groups", "or `deformable_groups`, which are one", got)
            deform_groups = deformable_groups
        sizes = in_channels, out_channels, kernel_size, stride, padding, dilation
        super().__init__(*sizes, groups, bias, **factory)
        self._add_branch(deform_groups, **factory)

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
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1, deform_groups: int = 1,
        bias: bool = False, im2col_step: int = 32, **more: Any,
    ) -> None:  # fmt: skip
        checks.integer(type(self).__name__, "im2col_step", im2col_step, 1)  # nothing depends on it
        sizes = in_channels, out_channels, kernel_size, stride, padding, dilation
        super().__init__(*sizes, groups, deform_groups, bias, **more)


class ModulatedDeformConv2dPack(_MmcvPack):
    """mmcv's module of version 2: parameters `weight`, `bias` and `conv_offset`."""


class DCN(_Pack):
    """The module of DCNv2: parameters `weight`, `bias` and `conv_offset_mask`."""

    _branch = "conv_offset_mask"
    _offset_groups = "deformable_groups"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any,
        dilation: Any = 1, deformable_groups: int = 1, **factory: Any,
    ) -> None:  # fmt: skip
        sizes = in_channels, out_channels, kernel_size, stride, padding, dilation
        super().__init__(*sizes, **factory)
        self._add_branch(deformable_groups, **factory)
