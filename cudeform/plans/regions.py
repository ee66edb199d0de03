"""The plans of poolings: which region a box becomes, and what its bins read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from cudeform import checks
from cudeform.arrays import sum_dtype
from cudeform.plans.arguments import (
    BOXES,
    IMAGE,
    REQUIRED,
    RETURN_ARGMAX,
    Argument,
    Option,
    Options,
    choice,
    flag,
    pair,
)
from cudeform.plans.outlines import Outline, Plan, hashed_once, planner
from cudeform.plans.points import image_sizes

_MOST_SAMPLES = 2**15  # along an axis: the kernels count those of a bin in 32 bits
_MOST_OF_ARGMAX = 2**31  # pixels: y*W + x is int32
# The region of each, and how many rows and columns at the far edges it leaves out.
_CONVENTIONS = {"torchvision": ("half_open", 1), "rfcn": ("half_open", 0), "msra": ("msra", 0)}


@hashed_once
@dataclass(frozen=True)
class RoiPlan(Plan):
    """A pooling of regions of interest that has passed all checks.

    A box (image, x1, y1, x2, y2) becomes a region of the input by the rule of `region`, with
    round() taking halves away from zero and s = `scale`:

    ==============  ==================  ========================  =============
    region          start               end                       size at least
    ==============  ==================  ========================  =============
    "aligned"       x1*s - 0.5          x2*s - 0.5
    "unaligned"     x1*s                x2*s                      1
    "closed"        round(x1*s)         round(x2*s) + 1           1
    "half_open"     round(x1*s)         round(x2*s)               1
    "msra"          round(x1)*s         (round(x2) + 1)*s         0.1
    "msra_aligned"  round(x1)*s - 0.5   (round(x2) + 1)*s - 0.5   0.1
    ==============  ==================  ========================  =============

    A region has ``bins`` bins of size b = size / bins, and what a bin reads is said by `reads`:

    "grid_centers"
        a grid of `samples` points (0: ceil(b)) at the centres of its cells, divided by
        max(points, 1); a point up to a pixel outside reads the edge, one further out 0.
    "grid_corners"
        a grid of `samples` points at the upper left corners of its cells, the mean of those that
        are up to half a pixel outside, which read the edge; 0 if there are none.
    "pixels"
        the mean of the pixels from floor(i*b + start) up to ceil((i + 1)*b + start), in the dtype
        of the boxes and in this order; the start of the regions "closed" and "half_open" is added
        after rounding. Clipped to the image without its last `unread` rows and columns; 0 if there
        are none.

    With `largest` a result is not the mean but the first that no other exceeds, NaN being the
    largest.

    Bin (i, j) of output channel c of a position-sensitive pooling reads input channel
    (c*groups[0] + gh)*groups[1] + gw, with gh = min(floor(i*groups[0]/bins[0]), groups[0] - 1).
    It is shifted by offset_scale * size * offset[r, 2*class + axis, py, px], x first, and its
    result multiplied by mask[r, class, py, px], where class = c // (output channels / classes) and
    (py, px) = floor(i/bins[0]*part_size[0]), floor(j/bins[1]*part_size[1]).
    """

    batch: int
    channels: int
    height: int
    width: int
    regions: int
    bins: tuple[int, int]
    scale: float
    region: str
    reads: str
    samples: int = 0
    largest: bool = False
    unread: int = 0
    groups: tuple[int, int] = (1, 1)
    classes: int = 1
    part_size: tuple[int, int] = (1, 1)
    offset_scale: float = 0.0
    deformable: bool = False
    modulated: bool = False

    family = "regions"

    @cached_property
    def out_channels(self) -> int:
        return self.channels // (self.groups[0] * self.groups[1])

    @cached_property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.regions, self.out_channels, *self.bins)

    def argmax_dtype(self, dtype: np.dtype) -> np.dtype:
        """Of the second result, for an input of `dtype`."""
        return np.dtype(np.int32) if self.reads == "pixels" else sum_dtype(dtype)

    def counts(self, backward: bool) -> dict[str, int]:
        return {"(H + 1)*(W + 1)": (self.height + 1) * (self.width + 1)}

    @cached_property
    def results(self) -> tuple[Outline, ...]:
        """For the largest also which pixel it is, or where that sample is: its y, its x."""
        output = Outline(self.out_shape, "(R, C, ph, pw)")
        if not self.largest:
            return (output,)
        if self.reads == "pixels":
            return output, output._replace(like="int32")
        shape = (self.regions, 2, *self.out_shape[1:])
        return output, Outline(shape, "(R, 2, C, ph, pw)", "sums")

    @cached_property
    def gradients(self) -> dict[str, Outline]:
        outlines = {"input": Outline((self.batch, self.channels, self.height, self.width))}
        one, two = ("1", "2") if self.classes == 1 else ("classes", "2*classes")
        if self.deformable:
            shape = (self.regions, 2 * self.classes, *self.part_size)
            outlines["offset"] = Outline(shape, f"(R, {two}, part_h, part_w)", "offset")
        if self.modulated:
            shape = (self.regions, self.classes, *self.part_size)
            outlines["mask"] = Outline(shape, f"(R, {one}, part_h, part_w)", "mask")
        return outlines


def _samples(op: str, name: str, value: Any, minimum: int = -1) -> int:
    """Samples of a bin along each axis: 0 for as many as follow from its size."""
    return max(checks.integer(op, name, value, minimum, maximum=_MOST_SAMPLES), 0)


OUTPUT_SIZE = pair("output_size")
SPATIAL_SCALE = Option("spatial_scale", "number", checks.positive, 1.0)
SAMPLING_RATIO = Option("sampling_ratio", "integer", _samples, -1)
GROUP_SIZE = pair("group_size")
PART_SIZE = pair("part_size", None)
SAMPLE_PER_PART = Option("sample_per_part", "integer", partial(_samples, minimum=1), 4)
_BINS = OUTPUT_SIZE, SPATIAL_SCALE


def _moves(classes: tuple[str, str], *elements: str) -> tuple[Argument, Argument]:
    """What moves bins and what weighs them, with the axes of both."""
    offset = Argument("offset", ("R", classes[0], *elements), "coordinates", optional=True)
    return offset, Argument("mask", ("R", classes[1], *elements), "factor", optional=True)


@planner(
    IMAGE,
    BOXES,
    options=(*_BINS, SAMPLING_RATIO, flag("aligned"), choice("mode", "avg", "max"), RETURN_ARGMAX),
)
def roi_align(
    op: str, options: Options, input: Outline, boxes: Outline, argmax: Outline | None = None
) -> RoiPlan:
    """Check the shapes of RoIAlign."""
    plan = RoiPlan(
        **_geometry(op, options, input, boxes),
        region="aligned" if options["aligned"] else "unaligned",
        reads="grid_centers",
        largest=options["mode"] == "max",
        samples=options["sampling_ratio"],
    )
    return _choosing(op, options, plan, argmax)


@planner(IMAGE, BOXES, options=(*_BINS, SAMPLING_RATIO))
def ps_roi_align(op: str, options: Options, input: Outline, boxes: Outline) -> RoiPlan:
    """Check the shapes of position-sensitive RoIAlign."""
    return RoiPlan(
        **_geometry(op, options, input, boxes),
        region="aligned",
        reads="grid_centers",
        samples=options["sampling_ratio"],
        groups=_bins_as_groups(op, options, input),
    )


@planner(IMAGE, BOXES, options=(*_BINS, choice("mode", "max", "avg"), RETURN_ARGMAX))
def roi_pool(
    op: str, options: Options, input: Outline, boxes: Outline, argmax: Outline | None = None
) -> RoiPlan:
    """Check the shapes of RoI pooling."""
    plan = RoiPlan(
        **_geometry(op, options, input, boxes),
        region="closed",
        reads="pixels",
        largest=options["mode"] == "max",
    )
    return _choosing(op, options, plan, argmax)


@planner(IMAGE, BOXES, options=(*_BINS, choice("convention", *_CONVENTIONS)))
def ps_roi_pool(op: str, options: Options, input: Outline, boxes: Outline) -> RoiPlan:
    """Check the shapes of position-sensitive RoI pooling."""
    region, unread = _CONVENTIONS[options["convention"]]
    return RoiPlan(
        **_geometry(op, options, input, boxes),
        region=region,
        reads="pixels",
        unread=unread,
        groups=_bins_as_groups(op, options, input),
    )


@planner(
    IMAGE,
    BOXES,
    *_moves(("2", "1"), "ph", "pw"),
    options=(
        *_BINS,
        replace(SAMPLING_RATIO, default=0),
        Option("gamma", "number", checks.number, 0.1),
    ),
)
def deform_roi_pool(
    op: str, options: Options, input: Outline, boxes: Outline, **moved: Outline
) -> RoiPlan:
    """Check the shapes of deformable RoI pooling."""
    return _moved(
        op,
        moved,
        **_geometry(op, options, input, boxes),
        region="aligned",
        reads="grid_centers",
        samples=options["sampling_ratio"],
        part_size=options["output_size"],
        offset_scale=options["gamma"],
    )


@planner(
    IMAGE,
    BOXES,
    *_moves(("2*classes", "classes"), "part_h", "part_w"),
    options=(
        OUTPUT_SIZE,
        replace(SPATIAL_SCALE, default=REQUIRED),
        Option("output_dim", "integer", partial(checks.integer, minimum=1)),
        GROUP_SIZE,
        PART_SIZE,
        SAMPLE_PER_PART,
        Option("trans_std", "number", checks.number, 0.1),
    ),
)
def deform_ps_roi_pool(
    op: str, options: Options, input: Outline, boxes: Outline, **moved: Outline
) -> RoiPlan:
    """Check the shapes of deformable position-sensitive RoI pooling."""
    checks.rank(op, "input", input, "(N, C, H, W)")
    output_dim, groups = options["output_dim"], options["group_size"]
    if input.shape[1] != output_dim * groups[0] * groups[1]:
        expected = f"{output_dim} * {groups[0]} * {groups[1]} = output_dim * group_size^2"
        checks.fail(op, "input", f"with {expected} channels", input.shape[1])
    return _moved(
        op,
        moved,
        **_geometry(op, options, input, boxes),
        region="msra_aligned",
        reads="grid_corners",
        samples=options["sample_per_part"],
        groups=groups,
        classes=_classes(op, moved, output_dim),
        part_size=options["part_size"] or options["output_size"],
        offset_scale=options["trans_std"],
    )


def _geometry(op: str, options: Options, input: Outline, boxes: Outline) -> dict[str, Any]:
    """The fields that every pooling has: images, regions and bins."""
    return dict(
        **image_sizes(op, input),
        regions=boxes.shape[0],
        bins=options["output_size"],
        scale=options["spatial_scale"],
    )


def _choosing(op: str, options: Options, plan: RoiPlan, argmax: Outline | None) -> RoiPlan:
    """The plan, once what a call asks or says of the largest is checked."""
    pixels = plan.height * plan.width
    if plan.largest and plan.reads == "pixels" and isinstance(pixels, int):
        if pixels > _MOST_OF_ARGMAX:
            most, why = f"of at most {_MOST_OF_ARGMAX} pixels", "argmax, y*W + x, is int32"
            checks.fail(op, "input", most, pixels, why)
    asked = {"return_argmax": options["return_argmax"], "argmax": argmax is not None}
    for name in asked:
        if asked[name] and not plan.largest:
            checks.fail(op, name, "only with mode 'max'", repr(options["mode"]))
    if argmax is not None:
        expected = plan.results[1]
        checks.shape(op, "argmax", argmax, expected.shape, expected.axes)
    return plan


def _bins_as_groups(op: str, options: Options, input: Outline) -> tuple[int, int]:
    """Groups of channels, one for each bin."""
    height, width = options["output_size"]
    if input.shape[1] % (height * width):
        expected = f"with a number of channels divisible by {height} * {width} = ph * pw"
        checks.fail(op, "input", expected, input.shape[1])
    return height, width


def _classes(op: str, moved: dict[str, Outline], output_dim: int) -> int:
    for name, components in (("offset", 2), ("mask", 1)):
        if name not in moved:
            continue
        axes = f"(R, {'2*' if components == 2 else ''}classes, part_h, part_w)"
        checks.rank(op, name, moved[name], axes)
        channels = moved[name].shape[1]
        classes = channels // components
        if classes < 1 or classes * components != channels or output_dim % classes:
            expected = f"of shape {axes} with classes that divide output_dim = {output_dim}"
            checks.fail(op, name, expected, tuple(moved[name].shape))
        return classes
    return 1


def _moved(op: str, moved: dict[str, Outline], **fields: Any) -> RoiPlan:
    """A plan, once the shapes of what moves and weighs its bins are checked."""
    plan = RoiPlan(**fields, deformable="offset" in moved, modulated="mask" in moved)
    return plan.fitting(op, **moved)
