"""DCNv3 and DCNv4 with the arguments of their compiled modules, by a depthwise `deform_conv2d`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import cudeform
from cudeform.torch.extensions.calls import compiled

__all__ = [
    "Aggregation",
    "dcnv3_backward",
    "dcnv3_forward",
    "dcnv4_backward",
    "dcnv4_forward",
]


@dataclass(frozen=True)
class Aggregation:
    """What both compute: for each pixel and group the sum of samples times their masks."""

    kernel: tuple[int, int]  # as all pairs here (y, x)
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    scale: float  # of the offsets, and of the distance of a tap from the centre
    remove_center: bool

    @classmethod
    def of(cls, *numbers: float) -> Aggregation:
        """From the numbers in the order in which both modules have them."""
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, *others = numbers
        dilation_h, dilation_w, group, _, offset_scale, remove_center = others
        return cls(
            (kernel_h, kernel_w),
            (stride_h, stride_w),
            (pad_h, pad_w),
            (dilation_h, dilation_w),
            group,
            float(offset_scale),
            bool(remove_center),
        )

    @property
    def points(self) -> int:
        return self.kernel[0] * self.kernel[1] - self.remove_center

    @property
    def _layouts(self) -> dict[str, object]:
        return dict(kernel_size=self.kernel, remove_center=self.remove_center, layout="NHWC")

    def _converted(self, offset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if offset.dtype.itemsize == 2:  # pixels have no room in 16 bits
            offset = offset.float()
        moved = cudeform.convert_offset(
            offset,
            "dcnv3",
            "torchvision",
            dilation=self.dilation,
            offset_scale=self.scale,
            **self._layouts,
        )
        return moved, cudeform.convert_mask(mask, "dcnv3", "torchvision", **self._layouts)

    @property
    def _options(self) -> dict[str, object]:
        return dict(stride=self.stride, padding=self.padding, dilation=self.dilation, layout="NHWC")

    def _filters(self, input: Tensor) -> Tensor:
        """A filter of ones for each channel."""
        return input.new_ones(1).expand(input.shape[3], 1, *self.kernel)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """(N, H, W, C), (N, Ho, Wo, 2*groups*points), (N, Ho, Wo, groups*points)."""
        offset, mask = self._converted(offset, mask)
        return cudeform.deform_conv2d(
            input, offset, self._filters(input), mask=mask, **self._options
        )

    def backward(
        self, grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of input, offset and mask."""
        moved, factors = self._converted(offset, mask)
        found = cudeform.deform_conv2d_backward(
            grad_output,
            input,
            moved,
            self._filters(input),
            mask=factors,
            needs=("input", "offset", "mask"),
            **self._options,
        )
        to_theirs = ("torchvision", "dcnv3")
        grad_offset = cudeform.convert_offset(found.offset, *to_theirs, **self._layouts)
        grad_mask = cudeform.convert_mask(found.mask, *to_theirs, **self._layouts)
        return found.input, (self.scale * grad_offset).to(offset.dtype), grad_mask


@compiled
def dcnv3_forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    remove_center: int = 0,  # since version 1.1
) -> Tensor:
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    how = Aggregation.of(*sizes, group, group_channels, offset_scale, remove_center)
    return how.forward(input, offset, mask)


@compiled
def dcnv3_backward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    grad_output: Tensor,
    im2col_step: int,
    remove_center: int = 0,
) -> list[Tensor]:
    """The gradients of input, offset and mask."""
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    how = Aggregation.of(*sizes, group, group_channels, offset_scale, remove_center)
    return list(how.backward(grad_output, input, offset, mask))


def _softmax(mask: Tensor, groups: int) -> Tensor:
    wide = mask.float() if mask.dtype.itemsize == 2 else mask
    return wide.unflatten(-1, (groups, -1)).softmax(-1).flatten(-2).to(mask.dtype)


@compiled
def dcnv4_forward(
    value: Tensor,  # (N, H, W, C)
    p_offset: Tensor,  # (N, Ho, Wo, channels), offsets and masks of each group
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    remove_center: int,
    d_stride: int,
    block_thread: int,
    softmax: bool,
) -> Tensor:
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    how = Aggregation.of(*sizes, group, group_channels, offset_scale, remove_center)
    offset, mask = cudeform.unpack_dcnv4(p_offset, group, how.points)
    return how.forward(value, offset, _softmax(mask, group) if softmax else mask)


@compiled
def dcnv4_backward(
    value: Tensor,
    p_offset: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int,
    grad_output: Tensor,
    remove_center: int,
    d_stride: int,
    block_thread: int,
    softmax: bool,
) -> list[Tensor]:
    """The gradients of value and p_offset."""
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    how = Aggregation.of(*sizes, group, group_channels, offset_scale, remove_center)
    offset, mask = cudeform.unpack_dcnv4(p_offset, group, how.points)
    mask = _softmax(mask, group) if softmax else mask
    grad_value, grad_offset, grad_mask = how.backward(grad_output, value, offset, mask)
    if softmax:
        by_group = (group, how.points)
        along, factors = grad_mask.unflatten(-1, by_group), mask.unflatten(-1, by_group)
        mean = (along * factors).sum(-1, keepdim=True)
        grad_mask = (factors * (along - mean)).flatten(-2)
    return [grad_value, cudeform.pack_dcnv4(grad_offset, grad_mask, group)]
