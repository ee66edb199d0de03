"""Poolings of regions in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cudeform import checks
from cudeform.torch.onnx_values import Target, beside, indices, twice

__all__ = ["roi_align", "roi_pool"]

_INT64 = 7  # of onnx.TensorProto


def roi_align(target: Target) -> Callable[..., Any]:
    """What becomes of a call."""
    standard = target.standard

    def translation(
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

    return translation


def roi_pool(target: Target) -> Callable[..., Any]:
    """What becomes of a call."""
    standard = target.standard

    def translation(
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

    return translation
