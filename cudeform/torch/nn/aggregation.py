"""Modules of DCNv3 and DCNv4."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

import cudeform
from cudeform import checks
from cudeform.descriptions import described
from cudeform.plans.aggregation import packed_channels
from cudeform.torch.nn.module import Module, begin_as_projections, begin_with_zeros

_ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}
_NORMS = ("LN", "BN")


class _Aggregation(Module):
    """What both have: the options of the operator, and how much of the middle is taken."""

    def __init__(
        self, channels: int, kernel_size: Any, stride: Any, pad: Any, dilation: Any, group: int,
        offset_scale: float, remove_center: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        op = type(self).__name__
        self.channels = checks.integer(op, "channels", channels, 1)
        self.group = checks.integer(op, "group", group, 1)
        if channels % group:
            checks.fail(op, "group", f"to divide `channels` = {channels}", group)
        self.group_channels = channels // group
        self.kernel_size = checks.pair(op, "kernel_size", kernel_size, 1)
        self.stride = checks.pair(op, "stride", stride, 1)
        self.pad = checks.pair(op, "pad", pad, 0)
        self.dilation = checks.pair(op, "dilation", dilation, 1)
        self.offset_scale = checks.positive(op, "offset_scale", offset_scale)
        self.remove_center = checks.flag(op, "remove_center", remove_center)

    @property
    def _points(self) -> int:
        """Of all groups."""
        return self.group * (self.kernel_size[0] * self.kernel_size[1] - self.remove_center)

    def _options(self) -> dict[str, Any]:
        same = ("kernel_size", "stride", "dilation", "offset_scale", "remove_center")
        options = {name: getattr(self, name) for name in same}
        return {"padding": self.pad, "groups": self.group, **options}

    def _depthwise(self, kernel: tuple[int, int], factory: dict[str, Any]) -> nn.Conv2d:
        padding = (kernel[0] - 1) // 2, (kernel[1] - 1) // 2
        more = {"padding": padding, "groups": self.channels, **factory}
        return nn.Conv2d(self.channels, self.channels, kernel, **more)

    def _add_center_feature_scale(self, wanted: bool, factory: dict[str, Any]) -> None:
        self.center_feature_scale = checks.flag(type(self).__name__, "center_feature_scale", wanted)
        if wanted:
            weight = torch.zeros(self.group, self.channels, **factory)
            bias = torch.zeros(self.group, **factory)
            self.center_feature_scale_proj_weight = nn.Parameter(weight)
            self.center_feature_scale_proj_bias = nn.Parameter(bias)

    def _with_center(self, output: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """The result and the values, in parts that `seen` decides for each group and pixel."""
        if not self.center_feature_scale:
            return output
        scale = nn.functional.linear(
            seen, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        )
        scale = scale.sigmoid().repeat_interleave(self.group_channels, -1)
        return output * (1 - scale) + values * scale


class _Permute(nn.Module):
    """Moves axes, within a sequence that is numbered as the checkpoints' is."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, input: Tensor) -> Tensor:
        return input.permute(self.axes)


@described
class DCNv3(_Aggregation):
    """The layer of InternImage [1]_, whose checkpoints it loads without renaming a key.

    A depthwise convolution of the input says by two linear layers where each group of channels is
    read around a pixel, and by a softmax how much of each point is taken.

    Parameters
    ----------
    %(grid_of_layer)s
    dw_kernel_size : int or (int, int), optional
        Of the depthwise convolution, odd; by default `kernel_size`.
    act_layer : {"GELU", "ReLU", "SiLU"}
    norm_layer : {"LN", "BN"}
        After the depthwise convolution.
    center_feature_scale : bool
        Whether the pixel itself is mixed in, as in InternImage-H.

    %(internimage_paper)s

    %(examples)s
    >>> layer = DCNv3(channels=32, group=4)
    >>> layer(torch.rand(2, 7, 9, 32)).shape
    torch.Size([2, 7, 9, 32])
    """

    def __init__(
        self, channels: int = 64, kernel_size: Any = 3, dw_kernel_size: Any = None, stride: Any = 1,
        pad: Any = 1, dilation: Any = 1, group: int = 4, offset_scale: float = 1.0,
        act_layer: str = "GELU", norm_layer: str = "LN", center_feature_scale: bool = False,
        remove_center: bool = False,
        *, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        factory = {"device": device, "dtype": dtype}
        grid = (channels, kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        super().__init__(*grid)
        op = type(self).__name__
        size = kernel_size if dw_kernel_size is None else dw_kernel_size
        activation = _ACTIVATIONS[checks.choice(op, "act_layer", act_layer, tuple(_ACTIVATIONS))]
        if checks.choice(op, "norm_layer", norm_layer, _NORMS) == "LN":
            norm = nn.Sequential(_Permute(0, 2, 3, 1), nn.LayerNorm(channels, eps=1e-6, **factory))
        else:
            norm = nn.Sequential(nn.BatchNorm2d(channels, **factory), _Permute(0, 2, 3, 1))
        size = checks.pair(op, "dw_kernel_size", size, 1)
        self.dw_conv = nn.Sequential(self._depthwise(size, factory), norm, activation())
        self.offset = nn.Linear(channels, 2 * self._points, **factory)
        self.mask = nn.Linear(channels, self._points, **factory)
        self.input_proj = nn.Linear(channels, channels, **factory)
        self.output_proj = nn.Linear(channels, channels, **factory)
        self._add_center_feature_scale(center_feature_scale, factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the paper begins: a mean of all taps, where they are without an offset."""
        begin_with_zeros(self.offset, self.mask)
        begin_as_projections(self.input_proj, self.output_proj)

    def forward(self, input: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)"""
        values = self.input_proj(input)
        seen = self.dw_conv(input.permute(0, 3, 1, 2))
        offset, mask = self.offset(seen), self.mask(seen)
        output = cudeform.dcnv3(values, offset, mask, **self._options(), softmax=True)
        return self.output_proj(self._with_center(output, values, seen))


@described
class DCNv4(_Aggregation):
    """The layer of FlashInternImage [1]_, whose checkpoints it loads without renaming a key.

    A linear layer says where each group of channels is read around a pixel, and how much of each
    point is taken.

    Parameters
    ----------
    %(grid_of_layer)s
    dw_kernel_size : int or (int, int), optional
        Of a depthwise convolution before the linear layer, odd; by default there is none.
    center_feature_scale : bool
        Whether the pixel itself is mixed in.
    output_bias : bool
        Whether the last projection has a bias.
    without_pointwise : bool
        Whether the projections of inputs and outputs are left out.

    %(dcnv4_paper)s

    %(examples)s
    >>> layer = DCNv4(channels=32, group=2)
    >>> layer(torch.rand(2, 7 * 9, 32), shape=(7, 9)).shape
    torch.Size([2, 63, 32])
    """

    def __init__(
        self, channels: int = 64, kernel_size: Any = 3, stride: Any = 1, pad: Any = 1,
        dilation: Any = 1, group: int = 4, offset_scale: float = 1.0, dw_kernel_size: Any = None,
        center_feature_scale: bool = False, remove_center: bool = False, output_bias: bool = True,
        without_pointwise: bool = False,
        *, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        grid = (channels, kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        super().__init__(*grid)
        op, factory = type(self).__name__, {"device": device, "dtype": dtype}
        self.dw_kernel_size = dw_kernel_size
        if dw_kernel_size is not None:
            size = checks.pair(op, "dw_kernel_size", dw_kernel_size, 1)
            self.offset_mask_dw = self._depthwise(size, factory)
        self.offset_mask = nn.Linear(channels, packed_channels(self._points), **factory)
        self.without_pointwise = checks.flag(op, "without_pointwise", without_pointwise)
        output_bias = checks.flag(op, "output_bias", output_bias)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels, **factory)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias, **factory)
        self._add_center_feature_scale(center_feature_scale, factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the paper begins: no offsets, and nothing of any point."""
        begin_with_zeros(self.offset_mask)
        if not self.without_pointwise:
            begin_as_projections(self.value_proj, self.output_proj)

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """(N, H*W, C) -> (N, H*W, C); `shape` is (H, W), by default of a square."""
        if shape is None:
            shape = isqrt(input.shape[1]), isqrt(input.shape[1])
        if input.ndim != 3 or input.shape[1] != shape[0] * shape[1]:
            expected = f"of shape (N, H*W, C) with H, W = {tuple(shape)}"
            checks.fail(type(self).__name__, "input", expected, tuple(input.shape))
        values = input if self.without_pointwise else self.value_proj(input)
        values, seen = values.unflatten(1, shape), input.unflatten(1, shape)
        if self.dw_kernel_size is not None:
            seen = self.offset_mask_dw(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        output = cudeform.dcnv4(values, self.offset_mask(seen), **self._options())
        output = self._with_center(output, values, output).flatten(1, 2)
        return output if self.without_pointwise else self.output_proj(output)
