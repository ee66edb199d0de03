"""Sampling points: where a deformable operator reads its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform import checks

BORDERS = ("zeros", "clamp")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Points:
    """The sampling points of a call, in pixels of the input, centres on integers.

    Tap (a, b) of output pixel (i, j) of image n and offset group t reads at::

        y = i * stride[0] + origin[0] + a * dilation[0] + offset[n, t, a, b, "y", i, j]
        x = j * stride[1] + origin[1] + b * dilation[1] + offset[n, t, a, b, "x", i, j]

    A padding of p is an origin of -p. Absolute coordinates are offsets with a stride of 0.
    """

    batch: int
    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (0, 0)
    origin: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    offset_groups: int = 1
    border: str = "zeros"
    layout: str = "NCHW"  # of input and output
    offset_layout: str = "NCHW"  # of offset and mask

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Output pixels of one image."""
        return self.out_height * self.out_width

    @property
    def channels_last(self) -> bool:
        return self.layout == "NHWC"

    @property
    def group_channels(self) -> int:
        """Input channels that share one offset."""
        return self.channels // self.offset_groups

    @property
    def blended(self) -> int:
        """Pixels that all samples are blended of, each of all channels counted."""
        return 4 * self.batch * self.pixels * self.taps * self.channels

    def counts(self, backward: bool) -> dict[str, int]:
        """What kernels count: in a backward with the cells between the pixels of all planes."""
        cells, symbols = (self.height + 1) * (self.width + 1), "(H + 1)*(W + 1)"
        if backward:
            cells, symbols = cells * self.offset_groups, "offset_groups*" + symbols
        return {
            symbols: cells,
            "Ho*Wo": self.pixels,
            "the padded height": self.height - self.origin[0],
            "the padded width": self.width - self.origin[1],
        }

    def offset_strides(self, channels: int) -> tuple[int, int, int]:
        """(image, channel, pixel) strides of an offset or mask of so many channels, in elements."""
        if self.offset_layout == "NHWC":
            return channels * self.pixels, 1, channels
        return channels * self.pixels, self.pixels, 1

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape in this layout of a batch of images."""
        if self.channels_last:
            return self.batch, height, width, channels
        return self.batch, channels, height, width

    def out_shape(self, channels: int) -> tuple[int, int, int, int]:
        """The shape in this layout of a batch of output-sized images."""
        return self.shape(channels, self.out_height, self.out_width)


def sampling_points(points: Points, offset: np.ndarray) -> np.ndarray:
    """Where every tap of every output pixel reads, as (y, x) in pixels of the input.

    `offset` is a NumPy array in the points' offset layout; the result does not depend on the
    layout.  # (N, offset_groups, kh, kw, Ho, Wo, 2)
    """
    if points.offset_layout == "NHWC":
        offset = np.moveaxis(offset, -1, 1)
    pixels = (points.out_height, points.out_width)
    offset = offset.reshape(points.batch, points.offset_groups, *points.kernel, 2, *pixels)
    located = np.moveaxis(offset, 4, -1).astype(np.float64)
    for axis in (0, 1):  # y, x
        shape = [1] * 6
        shape[2 + axis], shape[4 + axis] = points.kernel[axis], pixels[axis]
        taps = np.arange(points.kernel[axis])[:, None] * points.dilation[axis]
        grid = np.arange(pixels[axis]) * points.stride[axis] + points.origin[axis]
        located[..., axis] += (taps + grid).reshape(shape)
    return located


def image_sizes(op: str, input: Any, layout: str = "NCHW", channels: str = "C") -> dict[str, int]:
    """How many images, channels, rows and columns the input has: more than none, but for images."""
    axes = checks.image_axes(layout, channels)
    checks.rank(op, "input", input, axes)
    checks.non_empty(op, "input", input, axes, may_be_empty=1)
    sizes = {"N": "batch", "C": "channels", "H": "height", "W": "width"}
    return {sizes[axis]: size for axis, size in zip(layout, input.shape, strict=True)}


def out_sizes(
    op: str, argument: str, expected: str, options: Mapping[str, Any], kernel: Any, padded: Any
) -> dict[str, int]:
    """Rows and columns of the output, from those of the input with its padding."""
    sizes = []
    for axis, k, size, s, d in zip(
        "yx", kernel, padded, options["stride"], options["dilation"], strict=True
    ):
        extent = d * (k - 1) + 1
        if extent > size:
            expected = f"{expected} that fits the padded input, {size} pixels along {axis}"
            why = f"dilation*(k - 1) + 1 with k = {k}, dilation = {d}"
            checks.fail(op, argument, expected, f"{extent} pixels", why)
        sizes.append((size - extent) // s + 1)
    return dict(zip(("out_height", "out_width"), sizes, strict=True))
