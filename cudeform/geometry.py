"""Where a deformable operator reads its input: frozen values that every backend understands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cudeform.arrays import sum_dtype

__all__ = ["BORDERS", "LAYOUTS", "ConvPlan", "Points", "RoiPlan", "sampling_points"]

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


@dataclass(frozen=True)
class ConvPlan:
    """A convolution that has passed all checks: what a backend needs to know of it."""

    points: Points
    out_channels: int
    groups: int
    precision: str
    deformable: bool
    modulated: bool

    @property
    def in_channels(self) -> int:
        """Input channels of one weight group."""
        return self.points.channels // self.groups

    @property
    def offset_channels(self) -> int:
        return 2 * self.points.offset_groups * self.points.taps

    @property
    def mask_channels(self) -> int:
        return self.points.offset_groups * self.points.taps

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.points.out_shape(self.out_channels)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, *self.points.kernel)


@dataclass(frozen=True)
class RoiPlan:
    """A pooling of regions of interest that has passed all checks.

    A box (image, x1, y1, x2, y2) becomes a region of the input by the rule of `region`, with
    round() taking halves away from zero and s = `scale`:

    ==============  ==============================  ======================  ===============
    region          start                           end                     size at least
    ==============  ==============================  ======================  ===============
    "corner"        x1*s                            x2*s                    1
    "center"        x1*s - 0.5                      x2*s - 0.5
    "pixel"         round(x1*s)                     round(x2*s) + 1         1
    "half_open"     round(x1*s)                     round(x2*s)             1
    "msra"          round(x1)*s                     (round(x2) + 1)*s       0.1
    "msra_center"   round(x1)*s - 0.5               (round(x2) + 1)*s - 0.5 0.1
    ==============  ==============================  ======================  ===============

    A region has ``bins`` bins of size b = size / bins, and what a bin reads is said by `reads`:

    "centers"
        a grid of `samples` points (0: ceil(b)) at the centres of its cells, sampler "roi",
        divided by max(points, 1).
    "corners"
        a grid of `samples` points at the upper left corners of its cells, sampler "psroi", the
        mean of those that count, 0 if none does.
    "pixels"
        the mean of the pixels from floor(i*b + start) up to ceil((i + 1)*b + start), in the dtype
        of the boxes and in this order; the start of the regions "pixel" and "half_open" is added
        after rounding. Clipped to the image without its last `unread` rows and columns; 0 if there
        are none.

    With `largest` a result is not the mean but the first that no other exceeds, NaN being the
    largest.

    Bin (i, j) of output channel c of a position-sensitive pooling reads input channel
    (c*groups[0] + gh)*groups[1] + gw, with gh = min(floor(i*groups[0]/bins[0]), groups[0] - 1).
    It is shifted by offset_scale * size * offset[r, 2*class + axis, py, px], x first, and its
    result multiplied by mask[r, class, py, px], where class = c // (output channels / classes) and
    (py, px) = floor(i/bins[0]*part[0]), floor(j/bins[1]*part[1]).
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
    part: tuple[int, int] = (1, 1)
    offset_scale: float = 0.0
    deformable: bool = False
    modulated: bool = False

    @property
    def out_channels(self) -> int:
        return self.channels // (self.groups[0] * self.groups[1])

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.regions, self.out_channels, *self.bins)

    @property
    def argmax_shape(self) -> tuple[int, ...]:
        """Which pixel is the largest of a bin, or where the largest sample is: its y, its x."""
        if self.reads == "pixels":
            return self.out_shape
        return (self.regions, 2, *self.out_shape[1:])

    def argmax_dtype(self, dtype: np.dtype) -> np.dtype:
        """Of that, for an input of `dtype`."""
        return np.dtype(np.int32) if self.reads == "pixels" else sum_dtype(dtype)

    @property
    def offset_shape(self) -> tuple[int, int, int, int]:
        return (self.regions, 2 * self.classes, *self.part)

    @property
    def mask_shape(self) -> tuple[int, int, int, int]:
        return (self.regions, self.classes, *self.part)


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
