"""Deformable convolution v1 and v2, and the plain convolution that its blocks need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, NamedTuple

from cudeform import arrays, checks
from cudeform.geometry import BORDERS, LAYOUTS, Points
from cudeform.ops import implementation

__all__ = [
    "Conv2dGradients",
    "ConvPlan",
    "DeformConv2dGradients",
    "conv2d",
    "conv2d_backward",
    "deform_conv2d",
    "deform_conv2d_backward",
]

PRECISIONS = ("ieee", "tf32")


class DeformConv2dGradients(NamedTuple):
    """Gradients by the argument they belong to; None where not needed or not given."""

    input: Any = None
    offset: Any = None
    weight: Any = None
    bias: Any = None
    mask: Any = None


class Conv2dGradients(NamedTuple):
    """Gradients by the argument they belong to; None where not needed."""

    input: Any = None
    weight: Any = None
    bias: Any = None


@dataclass(frozen=True)
class ConvPlan:
    """A call that has passed all checks: backends need nothing else to know and cannot fail on it."""

    points: Points
    out_channels: int
    groups: int
    precision: str
    deformable: bool
    modulated: bool

    @property
    def in_channels(self) -> int:
        """Input channels of one weight group."""
        return self.points.channels // self.groups

    @property
    def offset_channels(self) -> int:
        return 2 * self.points.offset_groups * self.points.taps

    @property
    def mask_channels(self) -> int:
        return self.points.offset_groups * self.points.taps

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.points.out_shape(self.out_channels)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, *self.points.kernel)


def _axes(layout: str, channels: str = "C", height: str = "H", width: str = "W") -> str:
    names = (height, width, channels) if layout == "NHWC" else (channels, height, width)
    return "(N, " + ", ".join(names) + ")"


def _out_size(op: str, axis: str, size: int, pad: tuple[int, int], k: int, s: int, d: int) -> int:
    extent = d * (k - 1) + 1
    padded = size + pad[0] + pad[1]
    if extent > padded:
        checks.fail(
            op,
            "weight",
            f"to have a kernel that fits the padded input, {padded} pixels along {axis}",
            f"{extent} pixels",
            f"dilation*(k - 1) + 1 with k = {k}, dilation = {d}",
        )
    return (padded - extent) // s + 1


def _plan(
    op: str,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    layout: str,
    precision: str,
    *,
    offset: Any = None,
    deformable: bool = False,
    bias: Any = None,
    mask: Any = None,
    border: str = "zeros",
    grad_output: Any = None,
) -> ConvPlan:
    """Check every argument of a convolution; `deformable` says whether an offset must be there."""
    checks.choice(op, "layout", layout, LAYOUTS)
    checks.choice(op, "border", border, BORDERS)
    checks.choice(op, "precision", precision, PRECISIONS)
    checks.rank(op, "input", input, _axes(layout))
    checks.rank(op, "weight", weight, "(O, C/groups, kh, kw)")
    checks.non_empty(op, "input", input, _axes(layout), may_be_empty=1)
    checks.non_empty(op, "weight", weight, "(O, C/groups, kh, kw)")
    stride = checks.pair(op, "stride", stride, 1)
    dilation = checks.pair(op, "dilation", dilation, 1)
    pad = checks.pad_pairs(op, "padding", padding)

    if layout == "NHWC":
        batch, height, width, channels = input.shape
    else:
        batch, channels, height, width = input.shape
    out_channels, in_channels, *kernel = weight.shape
    groups = channels // in_channels
    if groups * in_channels != channels:
        checks.fail(
            op,
            "weight",
            f"with a second axis that divides the {channels} channels of `input`",
            tuple(weight.shape),
            "weight is (O, C/groups, kh, kw)",
        )
    if out_channels % groups:
        checks.fail(
            op,
            "weight",
            f"with a first axis divisible by {groups} = groups = C / weight.shape[1]",
            tuple(weight.shape),
        )
    out_height = _out_size(op, "y", height, pad[0], kernel[0], stride[0], dilation[0])
    out_width = _out_size(op, "x", width, pad[1], kernel[1], stride[1], dilation[1])

    points = Points(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        kernel=tuple(kernel),
        stride=stride,
        origin=(-pad[0][0], -pad[1][0]),
        dilation=dilation,
        offset_groups=_offset_groups(op, offset, channels, kernel, layout) if deformable else 1,
        border=border,
        layout=layout,
        offset_layout=layout,
    )
    plan = ConvPlan(points, out_channels, groups, precision, deformable, mask is not None)
    if deformable:
        axes = _axes(layout, "2*offset_groups*kh*kw", "Ho", "Wo")
        checks.shape(op, "offset", offset, points.out_shape(plan.offset_channels), axes)
    if mask is not None:
        axes = _axes(layout, "offset_groups*kh*kw", "Ho", "Wo")
        checks.rank(op, "mask", mask, axes)
        checks.shape(op, "mask", mask, points.out_shape(plan.mask_channels), axes)
    if bias is not None:
        checks.shape(op, "bias", bias, (out_channels,), "(O,)")
    if grad_output is not None:
        axes = _axes(layout, "O", "Ho", "Wo")
        checks.shape(op, "grad_output", grad_output, plan.out_shape, axes)
    return plan


def _offset_groups(op: str, offset: Any, channels: int, kernel: Iterable[int], layout: str) -> int:
    axes = _axes(layout, "2*offset_groups*kh*kw", "Ho", "Wo")
    checks.rank(op, "offset", offset, axes)
    kh, kw = kernel
    got = offset.shape[3 if layout == "NHWC" else 1]
    groups = got // (2 * kh * kw)
    if groups < 1 or groups * 2 * kh * kw != got:
        checks.fail(
            op,
            "offset",
            f"with channels a multiple of {2 * kh * kw} = 2*kh*kw",
            tuple(offset.shape),
            f"the axes are {axes}",
        )
    if channels % groups:
        checks.fail(
            op,
            "offset",
            f"with offset_groups that divide the {channels} channels of `input`",
            f"{groups} from shape {tuple(offset.shape)}",
            f"the axes are {axes}",
        )
    return groups


def deform_conv2d(
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Any = None,
    *,
    border: str = "zeros",
    layout: str = "NCHW",
    precision: str = "ieee",
) -> Any:
    """Docstring follows."""
    op = "deform_conv2d"
    given = dict(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    kind = arrays.kind_of(op, given, optional=("bias", "mask"))
    plan = _plan(
        op,
        input,
        weight,
        stride,
        padding,
        dilation,
        layout,
        precision,
        offset=offset,
        deformable=True,
        bias=bias,
        mask=mask,
        border=border,
    )
    return implementation(kind, "deform_conv").forward(
        plan, *map(arrays.contiguous, (input, offset, weight, bias, mask))
    )


def deform_conv2d_backward(
    grad_output: Any,
    input: Any,
    offset: Any,
    weight: Any,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Any = None,
    *,
    needs: Iterable[str] | None = None,
    border: str = "zeros",
    layout: str = "NCHW",
    precision: str = "ieee",
) -> DeformConv2dGradients:
    """Docstring follows."""
    op = "deform_conv2d_backward"
    given = dict(grad_output=grad_output, input=input, offset=offset, weight=weight, mask=mask)
    kind = arrays.kind_of(op, given, optional=("mask",))
    needed = checks.needs(op, needs, {"mask": mask}, DeformConv2dGradients._fields)
    plan = _plan(
        op,
        input,
        weight,
        stride,
        padding,
        dilation,
        layout,
        precision,
        offset=offset,
        deformable=True,
        mask=mask,
        border=border,
        grad_output=grad_output,
    )
    gradients = implementation(kind, "deform_conv").backward(
        plan, *map(arrays.contiguous, (grad_output, input, offset, weight, mask)), needed
    )
    return DeformConv2dGradients(**gradients)


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    *,
    layout: str = "NCHW",
    precision: str = "ieee",
) -> Any:
    """Docstring follows."""
    op = "conv2d"
    kind = arrays.kind_of(op, dict(input=input, weight=weight, bias=bias), optional=("bias",))
    plan = _plan(
        op, input, weight, stride, padding, dilation, layout, precision, bias=bias
    )
    contiguous = map(arrays.contiguous, (input, None, weight, bias, None))
    return implementation(kind, "deform_conv").forward(plan, *contiguous)


def conv2d_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    *,
    needs: Iterable[str] | None = None,
    layout: str = "NCHW",
    precision: str = "ieee",
) -> Conv2dGradients:
    """Docstring follows."""
    op = "conv2d_backward"
    kind = arrays.kind_of(op, dict(grad_output=grad_output, input=input, weight=weight))
    needed = checks.needs(op, needs, {}, Conv2dGradients._fields)
    plan = _plan(
        op,
        input,
        weight,
        stride,
        padding,
        dilation,
        layout,
        precision,
        grad_output=grad_output,
    )
    contiguous = map(arrays.contiguous, (grad_output, input, None, weight, None))
    gradients = implementation(kind, "deform_conv").backward(plan, *contiguous, needed)
    return Conv2dGradients(**gradients)
