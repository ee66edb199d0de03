"""The plan of sums of samples around the pixels of an output, without a weight to multiply."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cudeform.plans.outlines import Outline, Plan

__all__ = ["AggregationPlan"]

_PACKED = 8  # channels of a packed offset and mask are a multiple of it


@dataclass(frozen=True)
class AggregationPlan(Plan):
    """Sums of samples that have passed all checks: channels last, points numbered down columns.

    Group g of output pixel (i, j) is the sum over its points of mask times the sample of the
    group's channels at::

        y = i * stride[0] - padding[0] + center[0] + (b * dilation[0] - center[0] + dy) * scale
        x = j * stride[1] - padding[1] + center[1] + (a * dilation[1] - center[1] + dx) * scale

    for a in kernel[1], for b in kernel[0], with (dx, dy) the point's offset and
    center = dilation * (kernel - 1) // 2.
    """

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int
    groups: int
    group_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    scale: float
    remove_center: bool  # the middle tap of an odd kernel is no point
    softmax: bool  # of the mask, over the points of a group
    packed: bool  # offset and mask in one array: all offsets of a group, then its masks

    family = "aggregation"

    @property
    def points(self) -> int:
        """Of a group of an output pixel."""
        return self.kernel[0] * self.kernel[1] - self.remove_center

    @property
    def center(self) -> tuple[int, int]:
        (kh, kw), (dy, dx) = self.kernel, self.dilation
        return dy * (kh - 1) // 2, dx * (kw - 1) // 2

    @property
    def removed(self) -> int:
        """The tap that is no point, or -1."""
        kh, kw = self.kernel
        return kw // 2 * kh + kh // 2 if self.remove_center else -1

    @property
    def packed_channels(self) -> int:
        return -(-3 * self.groups * self.points // _PACKED) * _PACKED

    def counts(self, backward: bool) -> dict[str, int]:
        outputs = self.out_height * self.out_width
        points = {"Ho*Wo*P": outputs * self.points} if backward else {}
        return {"H*W": self.height * self.width, "Ho*Wo*G": outputs * self.groups, **points}

    @cached_property
    def results(self) -> tuple[Outline, ...]:
        channels = self.groups * self.group_channels
        shape = (self.batch, self.out_height, self.out_width, channels)
        return (Outline(shape, "(N, Ho, Wo, C)"),)

    @cached_property
    def gradients(self) -> dict[str, Outline]:
        channels = self.groups * self.group_channels
        outputs = (self.batch, self.out_height, self.out_width)
        outlines = {"input": Outline((self.batch, self.height, self.width, channels))}
        if self.packed:
            axes = "(N, Ho, Wo, 3*G*P and zeros)"
            shape = (*outputs, self.packed_channels)
            return {**outlines, "offset_mask": Outline(shape, axes, "offset_mask")}
        points = self.groups * self.points
        outlines["offset"] = Outline((*outputs, 2 * points), "(N, Ho, Wo, G*P*(x, y))", "offset")
        outlines["mask"] = Outline((*outputs, points), "(N, Ho, Wo, G*P)", "mask")
        return outlines
