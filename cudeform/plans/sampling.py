"""The plan of bilinear sampling at given points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from cudeform import checks
from cudeform.plans.arguments import BORDER, IMAGE, LAYOUT, Argument, Options
from cudeform.plans.convolution import ConvPlan
from cudeform.plans.outlines import Outline, Plan, hashed_once, planner
from cudeform.plans.points import Points, image_sizes


@hashed_once
@dataclass(frozen=True)
class SamplePlan(Plan):
    """Samples that have passed all checks: a grid of one row, whatever the shape of the points."""

    points: Points
    grid: tuple[int, ...]  # axes of the points between the batch and the pair

    family = "sampling"

    def counts(self, backward: bool) -> dict[str, int]:
        return self.points.counts(backward)

    @property
    def blended(self) -> int:
        return self.points.blended

    @cached_property
    def convolution(self) -> ConvPlan:
        """The same as a convolution of one tap that has nothing to multiply."""
        channels = self.points.channels
        return ConvPlan(self.points, channels, 1, "ieee", deformable=True, modulated=False)

    @cached_property
    def results(self) -> tuple[Outline, ...]:
        points = self.points
        if points.channels_last:
            return (Outline((points.batch, *self.grid, points.channels), "(N, ..., C)"),)
        return (Outline((points.batch, points.channels, *self.grid), "(N, C, ...)"),)

    @cached_property
    def gradients(self) -> dict[str, Outline]:
        points = self.points
        shape = points.shape(points.channels, points.height, points.width)
        return {
            "input": Outline(shape),
            "points": Outline((points.batch, *self.grid, 2), "(N, ..., 2)", "points"),
        }


@planner(IMAGE, Argument("points", ("N", "...", "2"), "coordinates"), options=(BORDER, LAYOUT))
def bilinear_sample(op: str, options: Options, input: Outline, points: Outline) -> SamplePlan:
    """Check the shapes of bilinear sampling."""
    layout = options["layout"]
    sizes = image_sizes(op, input, layout)
    batch = sizes["batch"]
    if points.ndim < 2 or points.shape[0] != batch or points.shape[-1] != 2:
        expected = f"of shape ({batch}, ..., 2) = (N, ..., (y, x))"
        checks.fail(op, "points", expected, tuple(points.shape))
    grid = tuple(points.shape[1:-1])
    located = Points(
        **sizes,
        out_height=1,
        out_width=prod(grid),
        border=options["border"],
        layout=layout,
        offset_layout="NHWC",
    )
    return SamplePlan(located, grid)
