"""Convolutions in ONNX: the standard's own, or samples and a convolution of one tap."""

from __future__ import annotations

from typing import Any

from cudeform import checks
from cudeform.plans.arguments import Options
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


def deform_conv2d(
    target: Target, options: Options, input: Any, offset: Any, weight: Any, bias: Any, mask: Any
) -> Any:
    """DeformConv, or with `decompose` samples and a convolution of one tap."""
    standard = target.standard
    if options["border"] != "zeros":
        got = repr(options["border"])
        checks.fail("deform_conv2d", "border", "to be 'zeros' for ONNX", got)
    attributes = _convolution("deform_conv2d", options, input, weight)
    taps = attributes["kernel_shape"][0] * attributes["kernel_shape"][1]
    last = options["layout"] == "NHWC"
    offset_groups = _size("deform_conv2d", "offset", offset, 3 if last else 1) // (2 * taps)
    channels = _size("deform_conv2d", "input", input, 3 if last else 1)
    if target.decompose:  # GridSample's points are of the whole image
        offset = widened(standard, offset)
    wide, weight, bias, mask = beside(standard, offset, input, weight, bias, mask)
    narrow = wide is not input
    if last:
        wide, offset, mask = (_first(standard, array) for array in (wide, offset, mask))
    if target.decompose:
        images = _groups(standard, wide, channels // offset_groups)
        points = _points(standard, wide, offset, attributes)
        samples = standard.GridSample(images, points, mode=target.linear, align_corners=0)
        columns = _columns(standard, samples, offset, mask, channels, taps)
        weight = standard.Reshape(weight, indices(standard, 0, -1, 1, 1))
        output = standard.Conv(columns, weight, bias, group=attributes["group"])
    else:
        attributes["offset_group"] = offset_groups
        output = standard.DeformConv(wide, weight, offset, bias, mask, **attributes)
    output = _last(standard, output) if last else output
    return standard.CastLike(output, input) if narrow else output


def conv2d(target: Target, options: Options, input: Any, weight: Any, bias: Any) -> Any:
    """Conv."""
    standard, last = target.standard, options["layout"] == "NHWC"
    attributes = _convolution("conv2d", options, input, weight)
    input = _first(standard, input) if last else input
    output = standard.Conv(input, weight, bias, **attributes)
    return _last(standard, output) if last else output


def _first(standard: Any, array: Any) -> Any:
    """Images of layout "NHWC" with their channels first, as all operators of the standard take."""
    return None if array is None else standard.Transpose(array, perm=[0, 3, 1, 2])


def _last(standard: Any, array: Any) -> Any:
    return standard.Transpose(array, perm=[0, 2, 3, 1])


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


def _convolution(op: str, options: Options, input: Any, weight: Any) -> dict[str, Any]:
    """The attributes that Conv and DeformConv share."""
    channels = _size(op, "input", input, 3 if options["layout"] == "NHWC" else 1)
    padding = list(options["padding"])
    if len(padding) == 4:  # (top, bottom), (left, right)
        top, bottom, left, right = padding
    else:
        top, left = bottom, right = twice(padding)
    return {
        "kernel_shape": [_size(op, "weight", weight, axis) for axis in (2, 3)],
        "strides": list(twice(options["stride"])),
        "pads": [top, left, bottom, right],
        "dilations": list(twice(options["dilation"])),
        "group": channels // _size(op, "weight", weight, 1),
    }
