"""Modules of deformable pooling of regions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import cudeform
from cudeform import checks
from cudeform.plans import regions
from cudeform.torch.nn.module import Module, begin_with_zeros


class _FullyConnected(nn.Sequential):
    """Linear layers with ReLU between; the last one begins with zeros."""

    def reset_parameters(self) -> None:
        """Of the last layer; the others have their own."""
        *_, last = (layer for layer in self if isinstance(layer, nn.Linear))
        begin_with_zeros(last)


def _fully_connected(sizes: list[int], factory: dict[str, Any], *last: nn.Module) -> nn.Module:
    layers: list[nn.Module] = []
    for inner, outer in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inner, outer, **factory), nn.ReLU(inplace=True)]
    connected = _FullyConnected(*layers[:-1], *last)
    connected.reset_parameters()
    return connected


class DeformRoIPoolPack(Module):
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
        self, output_size: Any, output_channels: int, deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1,
        *, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        op = type(self).__name__
        self.output_size = regions.OUTPUT_SIZE.value(op, output_size)
        self.output_channels = checks.integer(op, "output_channels", output_channels, 1)
        hidden = checks.integer(op, "deform_fc_channels", deform_fc_channels, 1)
        self.deform_fc_channels = hidden
        self.spatial_scale = regions.SPATIAL_SCALE.value(op, spatial_scale)
        self.sampling_ratio = regions.SAMPLING_RATIO.value(op, sampling_ratio)
        self.gamma = checks.number(op, "gamma", gamma)
        bins = self.output_size[0] * self.output_size[1]
        factory = {"device": device, "dtype": dtype}
        sizes = [bins * self.output_channels, hidden, hidden, 2 * bins]
        self.offset_fc = _fully_connected(sizes, factory)

    def _pool(
        self, input: Tensor, rois: Tensor, offset: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        options = self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma
        return cudeform.deform_roi_pool(input, rois, offset, *options, mask)

    def _offset(self, pooled: Tensor) -> Tensor:
        return self.offset_fc(pooled.flatten(1)).view(-1, 2, *self.output_size)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return self._pool(input, rois, self._offset(self._pool(input, rois)))


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """mmcv's pooling of version 2: `mask_fc` predicts a factor for each bin as well."""

    def __init__(self, output_size: Any, output_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(output_size, output_channels, *args, **kwargs)
        bins = self.output_size[0] * self.output_size[1]
        sizes = [bins * self.output_channels, self.deform_fc_channels, bins]
        like = self.offset_fc[0].weight
        factory = {"device": like.device, "dtype": like.dtype}
        self.mask_fc = _fully_connected(sizes, factory, nn.Sigmoid())

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        pooled = self._pool(input, rois)
        mask = self.mask_fc(pooled.flatten(1)).view(-1, 1, *self.output_size)
        return self._pool(input, rois, self._offset(pooled), mask)


class DCNPooling(Module):
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
        self, spatial_scale: float, pooled_size: int, output_dim: int, no_trans: bool,
        group_size: int = 1, part_size: int | None = None, sample_per_part: int = 4,
        trans_std: float = 0.0, deform_fc_dim: int = 1024,
        *, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        op = type(self).__name__
        output_dim = checks.integer(op, "output_dim", output_dim, 1)
        regions.GROUP_SIZE.value(op, group_size)
        regions.PART_SIZE.value(op, part_size)
        self.options = {
            "spatial_scale": regions.SPATIAL_SCALE.value(op, spatial_scale),
            "output_dim": output_dim,
            "group_size": group_size,
            "part_size": part_size,
            "sample_per_part": regions.SAMPLE_PER_PART.value(op, sample_per_part),
            "trans_std": checks.number(op, "trans_std", trans_std),
        }
        self.pooled_size = checks.integer(op, "pooled_size", pooled_size, 1)
        self.no_trans = checks.flag(op, "no_trans", no_trans)
        hidden = checks.integer(op, "deform_fc_dim", deform_fc_dim, 1)
        if not self.no_trans:
            bins = self.pooled_size**2
            sizes = [bins * output_dim, hidden, hidden, 3 * bins]
            factory = {"device": device, "dtype": dtype}
            self.offset_mask_fc = _fully_connected(sizes, factory)

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
