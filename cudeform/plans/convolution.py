"""The plans of convolutions: deformable, modulated and plain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from cudeform import checks
from cudeform.plans.arguments import (
    BIAS,
    BORDER,
    DILATION,
    IMAGE,
    LAYOUT,
    STRIDE,
    WEIGHT,
    Argument,
    Option,
    Options,
    choice,
)
from cudeform.plans.outlines import Outline, Plan, hashed_once, planner
from cudeform.plans.points import Points, image_sizes, out_sizes

_WEIGHT = "(O, C/groups, kh, kw)"


@hashed_once
@dataclass(frozen=True)
class ConvPlan(Plan):
    """A convolution that has passed all checks: what a backend needs to know of it."""

    points: Points
    out_channels: int
    groups: int
    precision: str
    deformable: bool
    modulated: bool

    family = "conv"

    @property
    def in_channels(self) -> int:
        """Input channels of one weight group."""
        return self.points.channels // self.groups

    @cached_property
    def out_shape(self) -> tuple[int, ...]:
        return self.points.out_shape(self.out_channels)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, *self.points.kernel)

    def counts(self, backward: bool) -> dict[str, int]:
        columns = self.points.taps * self.points.channels  # of a pixel, which cuBLAS counts
        return {**self.points.counts(backward), "kh*kw*C": columns}

    @property
    def blended(self) -> int:
        return self.points.blended if self.deformable else 0

    @property
    def products(self) -> int:
        return prod(self.out_shape) * self.in_channels * self.points.taps

    @cached_property
    def results(self) -> tuple[Outline, ...]:
        return (Outline(self.out_shape, self._axes("O")),)

    @cached_property
    def gradients(self) -> dict[str, Outline]:
        points = self.points
        outlines = {
            "input": Outline(points.shape(points.channels, points.height, points.width)),
            "weight": Outline(self.weight_shape, _WEIGHT, "weight"),
            "bias": Outline((self.out_channels,), "(O,)", "weight"),
        }
        if self.deformable:
            outlines["offset"] = self._of_taps("offset", 2)
        if self.modulated:
            outlines["mask"] = self._of_taps("mask", 1)
        return outlines

    def _axes(self, channels: str) -> str:
        return checks.image_axes(self.points.layout, channels, "Ho", "Wo")

    def _of_taps(self, name: str, each: int) -> Outline:
        channels = each * self.points.offset_groups * self.points.taps
        axes = self._axes(f"{'2*' if each == 2 else ''}offset_groups*kh*kw")
        return Outline(self.points.out_shape(channels), axes, name)


_GRID = (STRIDE, Option("padding", "padding", checks.pad_pairs, 0), DILATION)
_PRECISION = choice("precision", "ieee", "tf32")


@planner(
    IMAGE,
    Argument("offset", ("N", "2*offset_groups*kh*kw", "Ho", "Wo"), "coordinates"),
    WEIGHT,
    BIAS,
    Argument("mask", ("N", "offset_groups*kh*kw", "Ho", "Wo"), "factor", optional=True),
    options=(*_GRID, BORDER, LAYOUT, _PRECISION),
)
def deform_conv2d(
    op: str, options: Options, input: Outline, offset: Outline, weight: Outline,
    bias: Outline | None = None, mask: Outline | None = None,
) -> ConvPlan:  # fmt: skip
    """Check the shapes of a deformable convolution."""
    fields = _points(op, options, input, weight)
    groups = _offset_groups(op, offset, fields["channels"], fields["kernel"], options["layout"])
    points = Points(**fields, offset_groups=groups, border=options["border"])
    plan = _plan(op, options, points, weight, bias, True, mask is not None)
    if mask is not None:
        checks.rank(op, "mask", mask, plan.gradients["mask"].axes)
    return plan.fitting(op, offset=offset, mask=mask)


@planner(IMAGE, WEIGHT, BIAS, options=(*_GRID, LAYOUT, _PRECISION))
def conv2d(
    op: str, options: Options, input: Outline, weight: Outline, bias: Outline | None = None
) -> ConvPlan:
    """Check the shapes of a convolution without offsets."""
    return _plan(op, options, Points(**_points(op, options, input, weight)), weight, bias)


def _points(op: str, options: Options, input: Outline, weight: Outline) -> dict[str, Any]:
    """The fields of the points that do not depend on an offset."""
    layout, pad = options["layout"], options["padding"]
    sizes = image_sizes(op, input, layout)
    checks.rank(op, "weight", weight, _WEIGHT)
    checks.non_empty(op, "weight", weight, _WEIGHT)
    kernel = tuple(weight.shape[2:])
    padded = sizes["height"] + sum(pad[0]), sizes["width"] + sum(pad[1])
    return dict(
        **sizes,
        **out_sizes(op, "weight", "to have a kernel", options, kernel, padded),
        kernel=kernel,
        stride=options["stride"],
        origin=(-pad[0][0], -pad[1][0]),
        dilation=options["dilation"],
        layout=layout,
        offset_layout=layout,
    )


def _plan(
    op: str, options: Options, points: Points, weight: Outline, bias: Outline | None,
    deformable: bool = False, modulated: bool = False,
) -> ConvPlan:  # fmt: skip
    out_channels, in_channels = weight.shape[:2]
    groups = points.channels // in_channels
    if groups * in_channels != points.channels:
        expected = f"with a second axis that divides the {points.channels} channels of `input`"
        checks.fail(op, "weight", expected, tuple(weight.shape), f"weight is {_WEIGHT}")
    if out_channels % groups:
        expected = f"with a first axis divisible by {groups} = groups = C / weight.shape[1]"
        checks.fail(op, "weight", expected, tuple(weight.shape))
    if bias is not None:
        checks.shape(op, "bias", bias, (out_channels,), "(O,)")
    precision = options["precision"]
    return ConvPlan(points, out_channels, groups, precision, deformable, modulated)


def _offset_groups(op: str, offset: Any, channels: int, kernel: Iterable[int], layout: str) -> int:
    axes = checks.image_axes(layout, "2*offset_groups*kh*kw", "Ho", "Wo")
    checks.rank(op, "offset", offset, axes)
    kh, kw = kernel
    got = offset.shape[3 if layout == "NHWC" else 1]
    groups = got // (2 * kh * kw)
    if groups < 1 or groups * 2 * kh * kw != got:
        expected = f"with channels a multiple of {2 * kh * kw} = 2*kh*kw"
        checks.fail(op, "offset", expected, tuple(offset.shape), f"the axes are {axes}")
    if channels % groups:
        expected = f"with offset_groups that divide the {channels} channels of `input`"
        given = f"{groups} from shape {tuple(offset.shape)}"
        checks.fail(op, "offset", expected, given, f"the axes are {axes}")
    return groups
