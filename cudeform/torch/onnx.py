"""Export to ONNX: the standard's own operators in place of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cudeform import checks
from cudeform.torch import library  # noqa: F401  defines torch.ops.cudeform

__all__ = ["translations"]


def translations(opset: int = 19) -> dict[Any, Callable[..., Any]]:
    """The table that ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)`` takes.

    `deform_conv2d` becomes DeformConv, `conv2d` Conv, `roi_align` RoiAlign and `roi_pool`
    MaxRoiPool. Needs onnxscript.

    Parameters
    ----------
    opset : int
        The version of the standard to export to, from 19 on; give `export` the same as
        `opset_version`.

    Returns
    -------
    dict
        torch operators and what they become.

    Raises
    ------
    ValueError
        At export, for a call that the standard has no operator for: layout "NHWC", border "clamp",
        `roi_align` with mode "max", `roi_pool` with mode "avg", or a number of channels that is
        not known.
    """
    import onnxscript

    known = [name.removeprefix("opset") for name in dir(onnxscript) if name.startswith("opset")]
    latest = max(int(number) for number in known if number.isdecimal())
    version = checks.integer("translations", "opset", opset, 19, maximum=latest)
    standard = getattr(onnxscript, f"opset{version}")

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
        attributes["offset_group"] = _size("deform_conv2d", "offset", offset, 1) // (2 * taps)
        wide, weight, bias, mask = _beside(standard, offset, input, weight, bias, mask)
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
        height, width = _twice(output_size)
        images, corners = (
            standard.Slice(boxes, *(_indices(standard, i) for i in (begin, end, 1)))
            for begin, end in ((0, 1), (1, 5))
        )
        (wide,) = _beside(standard, boxes, input)
        output = standard.RoiAlign(
            wide,
            corners,
            standard.Cast(standard.Squeeze(images, _indices(standard, 1)), to=_INT64),
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
        bins = list(_twice(output_size))
        return standard.MaxRoiPool(input, boxes, pooled_shape=bins, spatial_scale=spatial_scale)

    ours = torch.ops.cudeform
    return {
        ours.deform_conv2d.default: deform_conv2d,
        ours.conv2d.default: conv2d,
        ours.roi_align.default: roi_align,
        ours.roi_pool.default: roi_pool,
    }


_INT64 = 7  # onnx.TensorProto.INT64


def _beside(standard: Any, coordinates: Any, *arrays: Any) -> list[Any]:
    """Arrays of one dtype with their coordinates, as the standard wants them: that in which all is
    computed here too, where the coordinates are finer.
    """
    if coordinates.dtype == arrays[0].dtype:
        return list(arrays)
    return [a if a is None else standard.CastLike(a, coordinates) for a in arrays]


def _indices(standard: Any, value: int) -> Any:
    return standard.Constant(value_ints=[value])


def _size(op: str, name: str, value: Any, axis: int) -> int:
    size = value.shape[axis]
    if not isinstance(size, int):
        checks.fail(op, name, f"with axis {axis} of a known size for ONNX", size)
    return size


def _twice(values: Any) -> tuple[int, int]:
    values = tuple(values)
    return (values[0], values[-1]) if values else (0, 0)


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
        top, left = bottom, right = _twice(padding)
    return {
        "kernel_shape": [_size(op, "weight", weight, axis) for axis in (2, 3)],
        "strides": list(_twice(stride)),
        "pads": [top, left, bottom, right],
        "dilations": list(_twice(dilation)),
        "group": _size(op, "input", input, 1) // _size(op, "weight", weight, 1),
    }
