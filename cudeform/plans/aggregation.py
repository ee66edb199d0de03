"""The plan of sums of samples around the pixels of an output, without a weight to multiply."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

from cudeform import checks
from cudeform.plans.arguments import (
    DILATION,
    PIXELS,
    SOFTMAX,
    STRIDE,
    Argument,
    Option,
    Options,
    flag,
    pair,
)
from cudeform.plans.outlines import Outline, Plan, hashed_once, planner
from cudeform.plans.points import image_sizes, out_sizes

_MOST = 2**31 - 1  # pixels of an image


def packed_channels(points: int) -> int:
    """Of an array with offsets and masks of so many points: a multiple of 8."""
    return -(-3 * points // 8) * 8


@dataclass(frozen=True)
class PointGrid:
    """Where the points of an output pixel are, numbered down columns.

    Those of pixel (i, j) are at::

        y = i * stride[0] - padding[0] + center[0] + (b * dilation[0] - center[0] + dy) * scale
        x = j * stride[1] - padding[1] + center[1] + (a * dilation[1] - center[1] + dx) * scale

    for a in kernel[1], for b in kernel[0], with (dx, dy) the point's offset and
    center = dilation * (kernel - 1) // 2.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    scale: float
    remove_center: bool  # the middle tap of an odd kernel is no point

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

    @cached_property
    def taps(self) -> tuple[tuple[int, int], ...]:
        """Where the points of a group are from the first tap, in pixels: (y, x) each."""
        kh, kw = self.kernel
        taps = [(b * self.dilation[0], a * self.dilation[1]) for a in range(kw) for b in range(kh)]
        if self.remove_center:
            del taps[self.removed]
        return tuple(taps)


@hashed_once
@dataclass(frozen=True)
class AggregationPlan(PointGrid, Plan):
    """Sums of samples that have passed all checks: channels last.

    Group g of an output pixel is the sum over its points of mask times the sample of the group's
    channels there.
    """

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int
    groups: int
    group_channels: int
    softmax: bool  # of the mask, over the points of a group
    packed: bool  # offset and mask in one array: all offsets of a group, then its masks

    family = "aggregation"

    @property
    def packed_channels(self) -> int:
        return packed_channels(self.groups * self.points)

    @property
    def shares(self) -> tuple[int, ...]:
        """The axes of the factors, of which the last has the points of a group."""
        return self.batch, self.out_height, self.out_width, self.groups, self.points

    @cached_property
    def steps(self) -> dict[str, int]:
        """Elements from an output pixel (query) or a group (head) to the next, of both arrays."""
        offsets, masks = (3, 3) if self.packed else (2, 1)
        row = self.groups * self.points
        return {
            "location_query": self.packed_channels if self.packed else offsets * row,
            "location_head": offsets * self.points,
            "weight_query": self.packed_channels if self.packed else masks * row,
            "weight_head": masks * self.points,
        }

    def apart(self, offset: Any, mask: Any, offset_mask: Any) -> tuple[Any, Any]:
        """Offsets and masks; where both are in one array, that from the first of each on."""
        if offset_mask is None:
            return offset, mask
        flat = offset_mask.reshape(-1)
        return flat, flat[2 * self.points :]

    def counts(self, backward: bool) -> dict[str, int]:
        outputs = self.out_height * self.out_width
        points = {"Ho*Wo*P": outputs * self.points} if backward else {}
        padded = zip("HW", (self.height, self.width), self.padding, strict=True)
        return {
            "H*W": self.height * self.width,
            "8*G*Cg": 8 * self.groups * self.group_channels,  # bytes of a pixel
            "Ho*Wo*G": outputs * self.groups,
            **points,
            **{f"{symbol} + 2*padding": size + 2 * pad for symbol, size, pad in padded},
        }

    @property
    def blended(self) -> int:
        return 4 * prod(self.shares) * self.group_channels

    @cached_property
    def results(self) -> tuple[Outline, ...]:
        channels = self.groups * self.group_channels
        shape = (self.batch, self.out_height, self.out_width, channels)
        return (Outline(shape, "(N, Ho, Wo, G*Cg)"),)

    @cached_property
    def gradients(self) -> dict[str, Outline]:
        channels = self.groups * self.group_channels
        outputs = (self.batch, self.out_height, self.out_width)
        outlines = {"input": Outline((self.batch, self.height, self.width, channels))}
        if self.packed:
            axes = "(N, Ho, Wo, 3*G*P up to a multiple of 8)"
            shape = (*outputs, self.packed_channels)
            return {**outlines, "offset_mask": Outline(shape, axes, "offset_mask")}
        points = self.groups * self.points
        outlines["offset"] = Outline((*outputs, 2 * points), "(N, Ho, Wo, 2*G*P)", "offset")
        outlines["mask"] = Outline((*outputs, points), "(N, Ho, Wo, G*P)", "mask")
        return outlines


_GRID = (
    pair("kernel_size"),
    STRIDE,
    pair("padding", 0, minimum=0),
    DILATION,
    Option("groups", "integer", partial(checks.integer, minimum=1), 1),
    Option("offset_scale", "number", checks.positive, 1.0),
    flag("remove_center"),
)


@planner(
    PIXELS,
    Argument("offset", ("N", "Ho", "Wo", "2*G*P"), "coordinates"),
    Argument("mask", ("N", "Ho", "Wo", "G*P"), "shares"),
    options=(*_GRID, SOFTMAX),
)
def dcnv3(
    op: str, options: Options, input: Outline, offset: Outline, mask: Outline
) -> AggregationPlan:
    """Check the shapes of DCNv3."""
    return _plan(op, options, input, offset=offset, mask=mask)


@planner(PIXELS, Argument("offset_mask", ("N", "Ho", "Wo", "3*G*P"), "coordinates"), options=_GRID)
def dcnv4(op: str, options: Options, input: Outline, offset_mask: Outline) -> AggregationPlan:
    """Check the shapes of DCNv4."""
    return _plan(op, options, input, offset_mask=offset_mask)


def _plan(op: str, options: Options, input: Outline, **of_points: Outline) -> AggregationPlan:
    sizes = image_sizes(op, input, "NHWC", "G*Cg")
    height, width, channels = sizes["height"], sizes["width"], sizes.pop("channels")
    if height * width > _MOST:
        got = f"{height} x {width}"
        checks.fail(op, "input", f"with H*W at most {_MOST}", got, "kernels count in 32 bits")
    groups = options["groups"]
    if channels % groups:
        expected = f"to divide the {channels} channels of `input` (N, H, W, G*Cg)"
        checks.fail(op, "groups", expected, groups)
    kernel, (down, across) = options["kernel_size"], options["padding"]
    padded = height + 2 * down, width + 2 * across
    outputs = out_sizes(op, "kernel_size", "to be a kernel", options, kernel, padded)
    if options["remove_center"] and (kernel == (1, 1) or not kernel[0] % 2 or not kernel[1] % 2):
        expected = "to be odd along both axes, and more than 1 x 1"
        checks.fail(op, "kernel_size", expected, kernel, "`remove_center` takes its middle tap out")
    return AggregationPlan(
        **sizes,
        **outputs,
        groups=groups,
        group_channels=channels // groups,
        kernel=kernel,
        scale=options["offset_scale"],
        **{n: options[n] for n in ("stride", "padding", "dilation", "remove_center")},
        softmax=options.get("softmax", False),
        packed="offset_mask" in of_points,
    ).fitting(op, **of_points)
