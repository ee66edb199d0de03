"""Bilinear sampling at given points: the papers' equations 3 and 4 as an operator of its own."""

from __future__ import annotations

from math import prod
from typing import Any, Iterable, NamedTuple

from cudeform import arrays, checks
from cudeform.geometry import BORDERS, LAYOUTS, Points
from cudeform.ops import implementation

__all__ = ["BilinearSampleGradients", "bilinear_sample", "bilinear_sample_backward"]


class BilinearSampleGradients(NamedTuple):
    """Gradients by the argument they belong to; None where not needed."""

    input: Any = None
    points: Any = None


def _plan(
    op: str, input: Any, points: Any, border: str, layout: str, grad_output: Any = None
) -> Points:
    checks.choice(op, "border", border, BORDERS)
    checks.choice(op, "layout", layout, LAYOUTS)
    axes = "(N, H, W, C)" if layout == "NHWC" else "(N, C, H, W)"
    checks.rank(op, "input", input, axes)
    checks.non_empty(op, "input", input, axes, may_be_empty=1)
    if layout == "NHWC":
        batch, height, width, channels = input.shape
    else:
        batch, channels, height, width = input.shape
    if points.ndim < 2 or points.shape[0] != batch or points.shape[-1] != 2:
        checks.fail(
            op,
            "points",
            f"of shape ({batch}, ..., 2) = (N, ..., (y, x))",
            tuple(points.shape),
        )
    plan = Points(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        out_height=1,
        out_width=prod(points.shape[1:-1]),
        border=border,
        layout=layout,
        offset_layout="NHWC",
    )
    if grad_output is not None:
        axes = "(N, ..., C)" if layout == "NHWC" else "(N, C, ...)"
        checks.shape(op, "grad_output", grad_output, _out_shape(plan, points), axes)
    return plan


def _out_shape(plan: Points, points: Any) -> tuple[int, ...]:
    grid = tuple(points.shape[1:-1])
    if plan.channels_last:
        return (plan.batch, *grid, plan.channels)
    return (plan.batch, plan.channels, *grid)


def bilinear_sample(
    input: Any, points: Any, *, border: str = "zeros", layout: str = "NCHW"
) -> Any:
    """Docstring follows."""
    op = "bilinear_sample"
    kind = arrays.kind_of(op, dict(input=input, points=points))
    plan = _plan(op, input, points, border, layout)
    output = implementation(kind, "sampling").forward(
        plan, arrays.contiguous(input), arrays.contiguous(points)
    )
    return output.reshape(_out_shape(plan, points))


def bilinear_sample_backward(
    grad_output: Any,
    input: Any,
    points: Any,
    *,
    needs: Iterable[str] | None = None,
    border: str = "zeros",
    layout: str = "NCHW",
) -> BilinearSampleGradients:
    """Docstring follows."""
    op = "bilinear_sample_backward"
    kind = arrays.kind_of(op, dict(grad_output=grad_output, input=input, points=points))
    needed = checks.needs(op, needs, {}, BilinearSampleGradients._fields)
    plan = _plan(op, input, points, border, layout, grad_output)
    gradients = implementation(kind, "sampling").backward(
        plan, *map(arrays.contiguous, (grad_output, input, points)), needed
    )
    return BilinearSampleGradients(**gradients)
