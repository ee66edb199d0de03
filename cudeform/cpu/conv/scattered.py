"""The gradients of samples at points that lie anywhere in a large image: some rows at a time.

Boxes of pixels would have few points each. Here points are sorted by the rows that they read, and
those of a window of rows are gone through for one channel after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.gradients import gradients
from cudeform.cpu.conv.large import Arrays, views
from cudeform.cpu.conv.pieces import Piece, Range, Rectangle, corners_of, fitted
from cudeform.cpu.language.dtypes import add, copied, rounded
from cudeform.plans.convolution import ConvPlan

__all__ = ["sample_gradients"]

_POINTS = 1 << 20  # that are sorted at a time


class _Window(NamedTuple):
    """Rows of an image, and the points that read any of them."""

    image: int
    rows: Range
    around: Range  # the rows that these points read
    points: np.ndarray  # their numbers, in the order in which they are added up
    own: np.ndarray  # which of them belong to no window before


def sample_gradients(
    plan: ConvPlan,
    given: dict[str, np.ndarray | None],
    result: dict[str, np.ndarray],
    wide: np.dtype,
) -> bool:
    """Fill the gradients in `result`, which are 0, from arrays of any dtype and strides.

    Returns False, and fills nothing, unless these are samples at points too far apart for boxes, as
    those that are looked at.
    """
    images = {"input": given["input"], "offset": given["offset"]}
    if given["weight"] is not None or images["offset"] is None:
        return False
    call = views(plan, wide, None, **images, output=given["grad_output"])
    if not _are_scattered(call, result):
        return False
    found = views(plan, wide, None, **{name: result.get(name) for name in images})
    for image in range(plan.points.batch):
        for first in range(0, plan.points.pixels, _POINTS):
            last = min(first + _POINTS, plan.points.pixels)
            for window in _windows(call, image, (first, last)):
                _add_window(call, found, window, result.keys())
    return True


def _are_scattered(call: Arrays, result: dict[str, np.ndarray]) -> bool:
    points = call.plan.points
    rounds = "input" in result and result["input"].dtype != call.wide  # sums of all points
    if 4 * points.width > call.room or (rounds and points.pixels > _POINTS):
        return False
    piece = Piece(0, next(call.channels()), next(call.taps()), next(call.rectangles()))
    boxes = fitted(call.plan, piece, call.points(piece)[0], call.room)
    return any(box is None for _, box in boxes)


def _windows(call: Arrays, image: int, pixels: Range) -> Iterator[_Window]:
    """All that a range of points reads."""
    height, width = call.plan.points.height, call.plan.points.width
    piece = Piece(image, (0, 1), Rectangle((0, 1), (0, 1)), Rectangle((0, 1), pixels))
    offset, _ = call.points(piece)
    corners = corners_of(call.plan, piece, offset)[0].reshape(-1)
    corners = np.clip(corners, -2, height).astype(np.int32)  # of points outside: in no window
    order = np.argsort(corners, kind="stable").astype(np.int32)
    corners = corners[order]
    step = max(call.room // width - 2, 1)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        begin, middle, end = np.searchsorted(corners, (top - 1, top if top else -1, bottom))
        if begin < end:
            around = max(top - 1, 0), min(bottom + 1, height)
            own = np.arange(begin, end) >= middle
            yield _Window(image, (top, bottom), around, pixels[0] + order[begin:end], own)


def _add_window(call: Arrays, found: Arrays, window: _Window, needs: set[str]) -> None:
    """Add the gradients of a window, a few channels at a time, in their order."""
    channels, together = call.plan.points.channels, threads.get_num_threads()
    offset = copied(_pairs(call, window)[:, window.points], call.wide)
    of_points = np.zeros(offset.shape, call.wide)
    for first in range(0, channels, together):
        some = range(first, min(first + together, channels))
        made: list[dict[str, np.ndarray]] = [{}] * len(some)

        def task(i: int, some: range = some, made: list = made) -> None:
            made[i] = _gradients_of(call, window, offset, some[i], needs)

        threads.run(task, len(some))
        for channel, gradient in zip(some, made, strict=True):
            if "offset" in gradient:
                add(gradient["offset"].reshape(of_points.shape), of_points)
            if "input" in gradient:
                _add_rows(found, window, channel, gradient["input"][0, :, :, 0])
    if "offset" in needs:
        values = rounded(of_points[:, window.own], found.offset.dtype)
        _pairs(found, window)[:, window.points[window.own]] = values


def _pairs(call: Arrays, window: _Window) -> np.ndarray:
    """The points of an image.  # (2, points)"""
    return call.offset[window.image, 0, 0, 0, :, 0]


def _gradients_of(
    call: Arrays, window: _Window, offset: np.ndarray, channel: int, needs: set[str]
) -> dict[str, np.ndarray]:
    """The gradients of one channel."""
    plan, (top, bottom) = call.plan, window.around
    own = replace(
        plan.points,
        batch=1,
        channels=1,
        height=bottom - top,
        out_height=1,
        out_width=len(window.points),
        origin=(plan.points.origin[0] - top, plan.points.origin[1]),
        layout="NHWC",
        offset_layout="NCHW",
    )
    image = np.empty((1, bottom - top, own.width, 1), call.wide)  # is read for points alone
    if "offset" in needs:
        image[0, :, :, 0] = call.input[window.image, channel, top:bottom]
    grad = call.output[window.image, channel, 0, window.points].astype(call.wide)
    plan = replace(plan, points=own, out_channels=1)
    shape = 1, 2, 1, len(window.points)
    given = grad.reshape(1, 1, -1, 1), image, offset.reshape(shape), None, None
    return gradients(plan, *given, frozenset(needs))


def _add_rows(found: Arrays, window: _Window, channel: int, values: np.ndarray) -> None:
    """Add to the rows of a window; to those of a window of fewer bits once, as they are 0."""
    (top, bottom), (above, _) = window.rows, window.around
    target = found.input[window.image, channel, top:bottom]
    values = values[top - above : bottom - above]
    if target.dtype == values.dtype:
        add(values, target)
    else:
        target[...] = rounded(values, target.dtype)
