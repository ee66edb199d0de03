"""Export to ONNX: the standard's own operators in place of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cudeform import checks
from cudeform.torch import (
    library,  # noqa: F401  defines torch.ops.cudeform
    onnx_aggregation,
    onnx_attention,
)
from cudeform.torch.onnx_values import (
    Target,
    beside,
    indices,
    shaped,
    sizes,
    starts,
    twice,
    widened,
)

__all__ = ["translations"]


def translations(
    opset: int = 19, decompose: bool = False, tensorrt: bool = False
) -> dict[Any, Callable[..., Any]]:
    """The table that ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)`` takes.

    `deform_conv2d` becomes DeformConv, `conv2d` Conv, `roi_align` RoiAlign and `roi_pool`
    MaxRoiPool; `ms_deform_attn` a GridSample for each level, or a gather with method "nearest";
    `dcnv3` and `dcnv4` one GridSample. Needs onnxscript.

    Parameters
    ----------
    opset : int
        The version of the standard to export to, from 19 on; give `export` the same as
        `opset_version`.
    decompose : bool
        `deform_conv2d` becomes GridSample and Conv: for runtimes that lack DeformConv, at the cost
        of an array of all samples, C kH kW H_out W_out elements per image. Points are rounded to
        float32 (of float64 arrays float64), at W pixels to about W / 2**24.
    tensorrt : bool
        `ms_deform_attn`, `dcnv3` and `dcnv4` become TensorRT's MultiscaleDeformableAttnPlugin_TRT,
        which its libraries have and other runtimes lack, in the domain "trt.plugins".

    Returns
    -------
    dict
        torch operators and what they become.

    Raises
    ------
    ValueError
        At export, for a call that the standard has no operator for: layout "NHWC", border "clamp",
        `roi_align` with mode "max", `roi_pool` with mode "avg", or a number of channels that is
        not known. For TensorRT's plugin: method "nearest", or different numbers of points.
    """
    import onnxscript

    known = [name.removeprefix("opset") for name in dir(onnxscript) if name.startswith("opset")]
    latest = max(int(number) for number in known if number.isdecimal())
    version = checks.integer("translations", "opset", opset, 19, maximum=latest)
    standard = getattr(onnxscript, f"opset{version}")
    decompose = checks.flag("translations", "decompose", decompose)
    plugin = _plugin() if checks.flag("translations", "tensorrt", tensorrt) else None
    linear = "bilinear" if version < 20 else "linear"  # one, under two names
    target = Target(standard, linear, plugin)

    def deform_conv2d(
        input: Any,
        offset: Any,
        weight: Any,
        bias: Any = None,
        mask: Any = None,
        stride: Any = (1,),
        padding: Any = (0,),
        dilation: Any = (1,),
        border: str = "zeros",
        layout: str = "NCHW",
        precision: str = "ieee",
    ) -> Any:
        if border != "zeros":
            checks.fail("deform_conv2d", "border", "to be 'zeros' for ONNX", repr(border))
        attributes = _convolution("deform_conv2d", input, weight, stride, padding, dilation, layout)
        taps = attributes["kernel_shape"][0] * attributes["kernel_shape"][1]
        offset_groups = _size("deform_conv2d", "offset", offset, 1) // (2 * taps)
        channels = _size("deform_conv2d", "input", input, 1)
        if decompose:  # GridSample's points are of the whole image
            offset = widened(standard, offset)
        wide, weight, bias, mask = beside(standard, offset, input, weight, bias, mask)
        if decompose:
            images = _groups(standard, wide, channels // offset_groups)
            points = _points(standard, wide, offset, attributes)
            samples = standard.GridSample(images, points, mode=linear, align_corners=0)
            columns = _columns(standard, samples, offset, mask, channels, taps)
            weight = standard.Reshape(weight, indices(standard, 0, -1, 1, 1))
            output = standard.Conv(columns, weight, bias, group=attributes["group"])
        else:
            attributes["offset_group"] = offset_groups
            output = standard.DeformConv(wide, weight, offset, bias, mask, **attributes)
        return output if wide is input else standard.CastLike(output, input)

    def conv2d(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = (1,),
        padding: Any = (0,),
        dilation: Any = (1,),
        layout: str = "NCHW",
        precision: str = "ieee",
    ) -> Any:
        attributes = _convolution("conv2d", input, weight, stride, padding, dilation, layout)
        return standard.Conv(input, weight, bias, **attributes)

    def roi_align(
        input: Any,
        boxes: Any,
        output_size: Any,
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
        mode: str = "avg",
    ) -> Any:
        if mode != "avg":
            why = "ONNX's 'max' is the largest of a sample's corners times their weights"
            checks.fail("roi_align", "mode", "to be 'avg' for ONNX", repr(mode), why)
        height, width = twice(output_size)
        images, corners = (
            standard.Slice(boxes, *(indices(standard, i) for i in (begin, end, 1)))
            for begin, end in ((0, 1), (1, 5))
        )
        (wide,) = beside(standard, boxes, input)
        output = standard.RoiAlign(
            wide,
            corners,
            standard.Cast(standard.Squeeze(images, indices(standard, 1)), to=_INT64),
            output_height=height,
            output_width=width,
            sampling_ratio=max(sampling_ratio, 0),
            spatial_scale=spatial_scale,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
        )
        return output if wide is input else standard.CastLike(output, input)

    def roi_pool(
        input: Any,
        boxes: Any,
        output_size: Any,
        spatial_scale: float = 1.0,
        mode: str = "max",
    ) -> Any:
        if mode != "max":
            checks.fail("roi_pool", "mode", "to be 'max' for ONNX", repr(mode))
        bins = list(twice(output_size))
        return standard.MaxRoiPool(input, boxes, pooled_shape=bins, spatial_scale=spatial_scale)

    ours = torch.ops.cudeform
    return {
        ours.deform_conv2d.default: deform_conv2d,
        ours.conv2d.default: conv2d,
        ours.dcnv3.default: onnx_aggregation.dcnv3(target),
        ours.dcnv4.default: onnx_aggregation.dcnv4(target),
        ours.ms_deform_attn.default: onnx_attention.ms_deform_attn(target),
        ours.roi_align.default: roi_align,
        ours.roi_pool.default: roi_pool,
    }


_INT64 = 7  # of onnx.TensorProto


def _plugin() -> Any:
    """TensorRT's operator, which no schema of ONNX declares."""
    import onnxscript
    from onnx import defs

    def floats(name: str) -> Any:
        return defs.OpSchema.FormalParameter(name, "T")

    def integers(name: str) -> Any:
        return defs.OpSchema.FormalParameter(name, "tensor(int32)")

    domain, name = "trt.plugins", "MultiscaleDeformableAttnPlugin_TRT"
    schema = defs.OpSchema(
        name,
        domain,
        1,
        inputs=[
            floats("value"),
            integers("spatial_shapes"),
            integers("level_start_index"),
            floats("sampling_locations"),
            floats("attention_weights"),
        ],
        outputs=[floats("output")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(domain, 1), name, schema)


def _groups(standard: Any, input: Any, channels: int) -> Any:
    """Images as GridSample reads them: (N offset_groups, C / offset_groups, H, W)."""
    return shaped(standard, input, -1, channels, sizes(standard, input, 2, 4))


def _points(standard: Any, input: Any, offset: Any, attributes: dict[str, Any]) -> Any:
    """Where every tap samples, (N offset_groups, kH kW H_out, W_out, 2), as GridSample counts: x
    before y, from -1 to 1 between the outer edges of the outer pixels.
    """

    def number(value: float) -> Any:
        return standard.CastLike(standard.Constant(value_float=value), offset)

    height, width = attributes["kernel_shape"]
    taps = height * width
    output_size = sizes(standard, offset, 2, 4)
    shifts = standard.Split(
        shaped(standard, offset, -1, taps, 2, output_size), axis=2, num_outputs=2
    )
    points = []
    for axis in (1, 0):
        size = standard.Squeeze(sizes(standard, input, 2 + axis, 3 + axis))
        origins = starts(standard, offset, 2 + axis, attributes["strides"][axis], 1 - axis)
        steps = [divmod(tap, width)[axis] * attributes["dilations"][axis] for tap in range(taps)]
        steps = indices(standard, *(step - attributes["pads"][axis] for step in steps))
        plain = standard.Add(shaped(standard, steps, -1, 1, 1), origins)
        shift = standard.Squeeze(shifts[axis], indices(standard, 2))
        pixel = standard.Add(standard.CastLike(plain, offset), shift)
        edges = standard.Add(standard.Mul(pixel, number(2.0)), number(1.0))
        scaled = standard.Div(edges, standard.CastLike(size, offset))
        scaled = standard.Sub(scaled, number(1.0))
        points.append(standard.Unsqueeze(scaled, indices(standard, -1)))
    joined = standard.Concat(*points, axis=-1)
    return shaped(standard, joined, 0, -1, sizes(standard, offset, 3, 4), 2)


def _columns(standard: Any, samples: Any, offset: Any, mask: Any, channels: int, taps: int) -> Any:
    """GridSample's samples, times the mask, as a convolution reads them: (N, C kH kW, ...)."""
    output_size = sizes(standard, offset, 2, 4)
    samples = shaped(standard, samples, 0, 0, taps, output_size)
    if mask is not None:
        samples = standard.Mul(samples, shaped(standard, mask, -1, 1, taps, output_size))
    return shaped(standard, samples, -1, channels * taps, output_size)


def _size(op: str, name: str, value: Any, axis: int) -> int:
    size = value.shape[axis]
    if not isinstance(size, int):
        checks.fail(op, name, f"with axis {axis} of a known size for ONNX", size)
    return size


def _convolution(
    op: str, input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, layout: str
) -> dict[str, Any]:
    """The attributes that Conv and DeformConv share."""
    if layout != "NCHW":
        checks.fail(op, "layout", "to be 'NCHW' for ONNX", repr(layout))
    padding = list(padding)
    if len(padding) == 4:  # (top, bottom), (left, right)
        top, bottom, left, right = padding
    else:
        top, left = bottom, right = twice(padding)
    return {
        "kernel_shape": [_size(op, "weight", weight, axis) for axis in (2, 3)],
        "strides": list(twice(stride)),
        "pads": [top, left, bottom, right],
        "dilations": list(twice(dilation)),
        "group": _size(op, "input", input, 1) // _size(op, "weight", weight, 1),
    }
