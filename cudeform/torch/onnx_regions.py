"""Poolings of regions in ONNX."""

from __future__ import annotations

from typing import Any

from cudeform import checks
from cudeform.plans.arguments import Options
from cudeform.torch.onnx_values import Target, beside, indices, twice

_INT64 = 7  # of onnx.TensorProto


def roi_align(target: Target, options: Options, input: Any, boxes: Any) -> Any:
    """RoiAlign."""
    standard = target.standard
    if options["mode"] != "avg":
        why = "ONNX's 'max' is the largest of a sample's corners times their weights"
        checks.fail("roi_align", "mode", "to be 'avg' for ONNX", repr(options["mode"]), why)
    height, width = twice(options["output_size"])
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
        sampling_ratio=max(options["sampling_ratio"], 0),
        spatial_scale=options["spatial_scale"],
        coordinate_transformation_mode=f"{'' if options['aligned'] else 'output_'}half_pixel",
        mode="avg",
    )
    return output if wide is input else standard.CastLike(output, input)


def roi_pool(target: Target, options: Options, input: Any, boxes: Any) -> Any:
    """MaxRoiPool."""
    if options["mode"] != "max":
        checks.fail("roi_pool", "mode", "to be 'max' for ONNX", repr(options["mode"]))
    bins, scale = list(twice(options["output_size"])), options["spatial_scale"]
    return target.standard.MaxRoiPool(input, boxes, pooled_shape=bins, spatial_scale=scale)
