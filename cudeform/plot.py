"""Pictures of what the operators do, on axes of Matplotlib: ``pip install 'cudeform[demo]'``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from cudeform import arrays, checks
from cudeform.plans import Outline, plan
from cudeform.plans.points import LAYOUTS, Points
from cudeform.plans.points import sampling_points as locate

__all__ = ["sampling_points"]

ORIGIN = "#00e5ff"
TAP = "#ffd400"
_CHANNELS = "2*offset_groups*kh*kw"


def sampling_points(
    axes: Axes,
    offset: Any,
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Any = None,
    layout: str = "NCHW",
    image: int = 0,
    group: int = 0,
    pixels: Iterable[tuple[int, int]] | None = None,
    marker_size: float = 12.0,
    origins: bool = True,
) -> Axes:
    """Draw where a deformable convolution reads its input.

    For each chosen output pixel: a cross at its origin, where the middle of an undeformed kernel
    would be, a disc where each tap reads, and a line from the one to the other. With a mask the
    discs are coloured by it, from 0, dark, to 1, bright. A tap outside the image is a ring.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw, in pixels of the input as ``imshow`` shows it.
    offset : array of shape (N, 2*offset_groups*kh*kw, Ho, Wo)
        As given to `deform_conv2d`; NumPy or CuPy.
    size : (int, int)
        Height and width of the input.
    kernel : (int, int)
        Height and width of the kernel.
    stride, padding, dilation, layout
        As given to `deform_conv2d`.
    mask : array of shape (N, offset_groups*kh*kw, Ho, Wo), optional
        As given to `deform_conv2d`.
    image, group : int
        Which image of the batch and which offset group to draw.
    pixels : iterable of (i, j), optional
        The output pixels to draw, row before column; by default about 8 x 8 of them, evenly
        spread.
    marker_size : float
        Area of a disc in square points.
    origins : bool
        Draw the crosses and the lines, too.

    Returns
    -------
    matplotlib.axes.Axes
        The axes given, with a `PathCollection` of label "taps" and one of label "origins".

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit the others; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().add_subplot()
    >>> offset = np.zeros((1, 18, 32, 32), np.float32)
    >>> axes = sampling_points(axes, offset, (32, 32), padding=1, pixels=[(5, 7)])
    >>> taps = [c for c in axes.collections if c.get_label() == "taps"]
    >>> np.asarray(taps[0].get_offsets())[:3].tolist()  # (x, y), as Matplotlib wants it
    [[6.0, 4.0], [7.0, 4.0], [8.0, 4.0]]
    """
    op = "sampling_points"
    if not isinstance(axes, Axes):
        checks.fail(op, "axes", "to be Matplotlib's", checks.shown(axes), error=TypeError)
    kind = arrays.kind_of(op, {"offset": offset, "mask": mask}, optional=("mask",))
    offset = kind.to_host(offset)
    mask = None if mask is None else kind.to_host(mask)
    size = checks.pair(op, "size", size, 1)
    options = dict(stride=stride, dilation=dilation, layout=layout)
    points = _points(offset, mask, size, kernel, padding, options)
    image = checks.integer(op, "image", image, 0, maximum=points.batch - 1)
    group = checks.integer(op, "group", group, 0, maximum=points.offset_groups - 1)
    marker_size = checks.positive(op, "marker_size", marker_size)
    origins = checks.flag(op, "origins", origins)
    rows, columns = _chosen(points, pixels)

    located = locate(points, offset)[image, group]  # (kh, kw, Ho, Wo, 2)
    taps = np.moveaxis(located[:, :, rows, columns], 2, 0).reshape(len(rows), points.taps, 2)
    if origins:
        _draw_origins(axes, _origins(points, rows, columns), taps, marker_size)
    values = None
    if mask is not None:
        values = _mask_values(points, mask, image, group)[:, rows, columns].T.reshape(-1)
    _draw_taps(axes, taps.reshape(-1, 2), size, values, marker_size)
    return axes


_NO_PIXELS = (str, bytes, bytearray, Mapping, np.ndarray)


def _chosen(points: Points, pixels: Any) -> np.ndarray:
    """The rows and the columns of the output pixels to draw.  # (2, pixels)"""
    if pixels is None:
        pixels = _spread(points.out_height, points.out_width)
    elif isinstance(pixels, np.ndarray) and pixels.ndim == 2:
        pixels = pixels.tolist()
    elif not isinstance(pixels, Iterable) or isinstance(pixels, _NO_PIXELS):
        expected = "to be pairs (i, j) of integers"
        checks.fail("sampling_points", "pixels", expected, checks.shown(pixels), error=TypeError)
    most = points.out_height * points.out_width
    chosen = []
    for pixel in islice(pixels, most + 1):  # an iterator may have no end
        if not isinstance(pixel, (tuple, list)):
            pixel = (pixel, None)
        i, j = checks.pair("sampling_points", "pixels", pixel, 0)
        if i >= points.out_height or j >= points.out_width:
            expected = f"to be inside the output, {points.out_height} x {points.out_width}"
            checks.fail("sampling_points", "pixels", expected, (i, j))
        chosen.append((i, j))
    if len(chosen) > most:
        checks.fail("sampling_points", "pixels", f"to be at most {most}", "more")
    return np.asarray(chosen, np.intp).reshape(-1, 2).T


def _points(
    offset: np.ndarray,
    mask: np.ndarray | None,
    size: tuple[int, int],
    kernel: Any,
    padding: Any,
    options: dict[str, Any],
) -> Points:
    """Those of a convolution with such an offset, of an image as large as that asks for."""
    op = "sampling_points"
    kernel = checks.pair(op, "kernel", kernel, 1)
    (top, _), (left, _) = checks.pad_pairs(op, "padding", padding)
    stride, dilation = (checks.pair(op, n, options[n], 1) for n in ("stride", "dilation"))
    layout = checks.choice(op, "layout", options["layout"], LAYOUTS)
    checks.rank(op, "offset", offset, checks.image_axes(layout, _CHANNELS, "Ho", "Wo"))
    last = layout == "NHWC"
    batch, channels = offset.shape[0], offset.shape[3 if last else 1]
    groups = max(channels // (2 * kernel[0] * kernel[1]), 1)
    height, width = (
        max(pixels - 1, 0) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        for axis, pixels in enumerate(offset.shape[1:3] if last else offset.shape[2:])
    )
    shape = (batch, height, width, groups) if last else (batch, groups, height, width)
    given = {
        "input": Outline(shape),
        "offset": offset,
        "weight": Outline((1, groups, *kernel)),
        "mask": mask,
    }
    points = plan("deform_conv2d", given, options, op).points
    return replace(points, height=size[0], width=size[1], origin=(-top, -left))


def _mask_values(points: Points, mask: np.ndarray, image: int, group: int) -> np.ndarray:
    """The mask of one image and offset group.  # (kh*kw, Ho, Wo)"""
    values = np.moveaxis(mask[image], -1, 0) if points.channels_last else mask[image]
    return values[group * points.taps : (group + 1) * points.taps].astype(np.float64)


def _spread(height: int, width: int, count: int = 8) -> list[tuple[int, int]]:
    """About count x count pixels in the middles of equal cells."""
    rows, columns = (
        ((np.arange(min(count, n)) + 0.5) * n / min(count, n)).astype(int) for n in (height, width)
    )
    return [(i, j) for i in rows for j in columns]


def _origins(points: Points, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The middle of the undeformed kernel of each output pixel.  # (pixels, 2)"""
    axes = [
        pixel * points.stride[axis]
        + points.origin[axis]
        + points.dilation[axis] * (points.kernel[axis] - 1) / 2
        for axis, pixel in enumerate((rows, columns))
    ]
    return np.stack(axes, axis=-1)


def _draw_origins(axes: Axes, origins: np.ndarray, taps: np.ndarray, marker_size: float) -> None:
    start = np.broadcast_to(origins[:, None], taps.shape)
    lines = np.stack([start, taps], axis=2).reshape(-1, 2, 2)[..., ::-1]
    axes.add_collection(
        LineCollection(lines, colors="white", linewidths=0.6, alpha=0.8, zorder=2), autolim=False
    )
    axes.scatter(
        origins[:, 1],
        origins[:, 0],
        marker="+",
        s=2.5 * marker_size,
        linewidths=0.25 * marker_size**0.5,
        c=ORIGIN,
        zorder=3,
        label="origins",
    )


def _draw_taps(
    axes: Axes,
    taps: np.ndarray,
    size: tuple[int, int],
    values: np.ndarray | None,
    marker_size: float,
) -> None:
    """One disc a tap; a ring where the tap is outside the image."""
    drawn = axes.scatter(
        taps[:, 1],
        taps[:, 0],
        s=marker_size,
        c=TAP if values is None else values,
        cmap=None if values is None else "inferno",
        vmin=None if values is None else 0.0,
        vmax=None if values is None else max(1.0, values.max(initial=0.0)),
        edgecolors="black",
        linewidths=0.12 * marker_size**0.5,
        zorder=4,
        label="taps",
    )
    inside = ((taps > -1) & (taps < size)).all(axis=1)
    if inside.all():
        return
    drawn.update_scalarmappable()
    colours = np.resize(drawn.get_facecolors(), (len(taps), 4))
    edges = np.where(inside[:, None], (0.0, 0.0, 0.0, 1.0), colours)
    colours[~inside, 3] = 0.0
    drawn.set_array(None)
    drawn.set_facecolors(colours)
    drawn.set_edgecolors(edges)
