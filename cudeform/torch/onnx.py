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
    onnx_convolution,
    onnx_regions,
)
from cudeform.torch.onnx_values import Target
from cudeform.torch.signatures import BRIDGES

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
        At export, for a call that the standard has no operator for: border "clamp", `roi_align`
        with mode "max", `roi_pool` with mode "avg", or a number of channels that is not known. For
        TensorRT's plugin: method "nearest", or different numbers of points.
    """
    import onnxscript

    known = [name.removeprefix("opset") for name in dir(onnxscript) if name.startswith("opset")]
    latest = max(int(number) for number in known if number.isdecimal())
    version = checks.integer("translations", "opset", opset, 19, maximum=latest)
    standard = getattr(onnxscript, f"opset{version}")
    decompose = checks.flag("translations", "decompose", decompose)
    plugin = _plugin() if checks.flag("translations", "tensorrt", tensorrt) else None
    linear = "bilinear" if version < 20 else "linear"  # one, under two names
    target = Target(standard, linear, plugin, decompose)
    ours = torch.ops.cudeform
    return {getattr(ours, f.__name__).default: _translation(f, target) for f in _FUNCTIONS}


_FUNCTIONS = (
    onnx_convolution.deform_conv2d,
    onnx_convolution.conv2d,
    onnx_aggregation.dcnv3,
    onnx_aggregation.dcnv4,
    onnx_attention.ms_deform_attn,
    onnx_regions.roi_align,
    onnx_regions.roi_pool,
)


def _translation(function: Callable[..., Any], target: Target) -> Callable[..., Any]:
    """What becomes of a call: a function with the signature of the operator, which exporters read.

    `function` takes the target, the options by name as the operator in torch has them, and arrays.
    """
    bridge = BRIDGES[function.__name__]
    signature = bridge.signature

    def translation(*values: Any, **named: Any) -> Any:
        given = signature.bind(*values, **named)
        given.apply_defaults()
        arrays = {name: given.arguments.pop(name) for name in bridge.names}
        return function(target, given.arguments, **arrays)

    hints = {name: p.annotation for name, p in signature.parameters.items()}
    translation.__annotations__ = {**hints, "return": signature.return_annotation}
    translation.__signature__ = signature  # type: ignore[attr-defined]
    return translation


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
