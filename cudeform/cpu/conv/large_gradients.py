"""The gradients of convolutions that are too large for a workspace, one piece at a time.

What has more bits than its gradient is summed up apart and rounded once: of an offset and a mask
while their pixels are gone through, and of an input, which points anywhere may read, in cells, each
with all pieces that reach it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.gradients import gradients
from cudeform.cpu.conv.large import Arrays, Box, add, boxes, copied, flat, only, views
from cudeform.cpu.conv.pieces import (
    Piece,
    Range,
    Rectangle,
    corners_of,
    fitted,
    plan_of,
    rectangles,
)
from cudeform.cpu.language.dtypes import rounded
from cudeform.plans.convolution import ConvPlan

__all__ = ["piece_gradients"]

_CHANNELS = 32  # of a cell
_PARTS = 4  # as many pixels as there is room for, because what reaches two cells is computed twice
_STEPS = 4  # for each thread, at a time
_MOST_STEPS = 12  # whose gradients wait to be added up, but one for each thread
_OF_IMAGES = ("input", "offset", "mask")

Sums = dict[str, np.ndarray]


class _Step(NamedTuple):
    """A box to compute; or the end of some output pixels, of which nothing is to come any more."""

    pixels: Rectangle
    sums: Sums  # to add to
    box: Box | None
    ends: Sums  # what the sums of these pixels are rounded to


def piece_gradients(
    plan: ConvPlan, given: dict[str, np.ndarray | None], result: Sums, wide: np.dtype
) -> None:
    """Fill the gradients in `result`, which are 0, from arrays of any dtype and strides."""
    images = {name: given.get(name) for name in _OF_IMAGES}
    call = views(plan, wide, given.get("weight"), **images, output=given["grad_output"])
    found = views(plan, wide, None, **{name: result.get(name) for name in _OF_IMAGES})
    sums = {}
    for name in result.keys() - {*_OF_IMAGES}:
        own = result[name].dtype == wide
        sums[name] = result[name] if own else np.zeros(result[name].shape, wide)
    apart = "input" in result and result["input"].dtype != wide
    needs = result.keys() - ({"input"} if apart else set())
    for image in range(plan.points.batch):
        if needs:
            _add_together(call, _steps(call, found, sums, image, needs))
        if apart:
            _add_cells(call, found.input[image], image)
    for name, values in sums.items():
        if values is not result[name]:
            result[name][...] = rounded(values, result[name].dtype)


def _steps(call: Arrays, found: Arrays, sums: Sums, image: int, needs: set[str]) -> Iterator[_Step]:
    """All of an image, in the order in which it is added up."""
    for pixels in call.rectangles():
        own, views = dict(sums), {}
        if "input" in needs:
            own["input"] = found.input[image]
        for name in needs & {"offset", "mask"}:
            views[name] = view = getattr(found, name)[image][(..., *pixels.place)]
            own[name] = view if view.dtype == call.wide else np.zeros(view.shape, call.wide)
        for piece in call.pieces(image, pixels):
            for box in boxes(call, piece):
                yield _Step(pixels, own, box, {})
        yield _Step(pixels, own, None, views)


def _add_together(call: Arrays, steps: Iterator[_Step]) -> None:
    """Compute several steps at a time, each on one thread, and add what they make in their order:
    so the number of threads does not change a bit of it.
    """
    count = threads.get_num_threads()
    together = max(min(_STEPS * count, _MOST_STEPS), count)
    while some := list(islice(steps, together)):
        made: list[Sums] = [{}] * len(some)

        def compute(i: int, some: list[_Step] = some, made: list[Sums] = made) -> None:
            made[i] = _gradients_of(call, some[i])

        threads.run(compute, len(some))
        for step, found in zip(some, made, strict=True):
            places = _places(call, step) if found else {}
            for name, gradient in found.items():
                target = step.sums[name][places[name]]
                add(gradient.reshape(target.shape), target)
            for name, view in step.ends.items():
                if step.sums[name] is not view:
                    view[...] = rounded(step.sums[name], view.dtype)


def _gradients_of(call: Arrays, step: _Step) -> Sums:
    """The gradients that the points of a piece in one box make."""
    if step.box is None:
        return {}
    plan = call.plan
    piece, box, offset, mask, first = step.box
    own = plan_of(plan, piece, box, call.dense)
    begins = first and piece.channels[0] % plan.in_channels == 0
    needs = step.sums.keys() - (set() if begins and piece.has_first_tap else {"bias"})
    if not needs:
        return {}
    if needs <= {"input", "bias"}:
        image = np.empty((1, own.points.channels, box.height, box.width), call.wide)  # is not read
    else:
        image = call.image(piece, box)
    grad = copied(call.output[call.outputs(piece)], call.wide)[None]
    given = grad, image, offset, call.weights(piece), mask
    return gradients(own, *given, frozenset(needs))


def _places(call: Arrays, step: _Step) -> dict[str, tuple]:
    """Where in the sums these are added."""
    plan, (piece, box, *_) = call.plan, step.box
    within = piece.pixels.within(step.pixels)
    points = piece.offset_groups(plan), *piece.taps.place, ..., *within
    places = {
        "input": (slice(*piece.channels), *box.place),
        "offset": points,
        "mask": points,
        "bias": piece.outputs(plan, call.dense),
    }
    return {**places, "weight": piece.weights(plan)} if call.dense else places


def _add_cells(call: Arrays, target: np.ndarray, image: int) -> None:
    """Fill the gradient of an image of fewer bits, cell by cell."""
    points = call.plan.points
    most = min(_CHANNELS, points.channels)
    somewhere = next(call.rectangles())
    for channels in dict.fromkeys(p.channels for p in call.pieces(image, somewhere, most)):
        reach = _reach(call, image, channels, most)
        for cell in rectangles(points.height, points.width, 2 * call.room // most):
            (top, bottom), (left, right) = cell
            overlap = (reach[:, 0] < bottom) & (reach[:, 1] > top)
            overlap &= (reach[:, 2] < right) & (reach[:, 3] > left)
            if not overlap.any():
                continue
            sums = np.zeros((channels[1] - channels[0], cell.height, cell.width), call.wide)
            for entry in reach[overlap].tolist():
                _add_to_cell(call, image, channels, entry, cell, sums)
            target[(slice(*channels), *cell.place)] = rounded(sums, target.dtype)


def _reach(call: Arrays, image: int, channels: Range, most: int) -> np.ndarray:
    """A row for each part of the pieces of some channels: its box, whether that is no more than a
    guess, taps and output pixels.
    """
    found = array("q")  # millions of them would take gigabytes as tuples
    everywhere = Rectangle((0, call.plan.points.height), (0, call.plan.points.width))
    for pixels in call.rectangles(_PARTS):
        for piece in call.pieces(image, pixels, most):
            if piece.channels != channels:
                continue
            for part, box in fitted(call.plan, piece, call.points(piece)[0], call.room):
                spans = box or everywhere, part.taps, part.pixels
                numbers = [n for whole in spans for span in whole for n in span]
                found.extend([*numbers, box is None])
    return np.frombuffer(found, np.int64).reshape(-1, 13)


def _add_to_cell(
    call: Arrays, image: int, channels: Range, entry: list, cell: Rectangle, sums: np.ndarray
) -> None:
    """Add what a part, as `_reach` describes it, adds to the gradient of a cell."""
    *spans, anywhere = entry
    box, taps, pixels = (
        Rectangle(tuple(spans[i : i + 2]), tuple(spans[i + 2 : i + 4])) for i in (0, 4, 8)
    )
    piece = Piece(image, channels, taps, pixels)
    offset, mask = call.points(piece)
    if anywhere:
        box = cell.grown(call.plan.points)
        here = np.ones((), bool)
        for at, (first, last) in zip(corners_of(call.plan, piece, offset), cell, strict=True):
            here = here & (at >= first - 1) & (at < last)
        if not here.any():
            return
        offset, mask = only(here, offset, mask)
    else:
        offset, mask = flat(offset), flat(mask)
    own = plan_of(call.plan, piece, box, call.dense)
    nothing = np.empty((1, own.points.channels, box.height, box.width), call.wide)  # is not read
    grad = copied(call.output[call.outputs(piece)], call.wide)[None]
    given = grad, nothing, offset, call.weights(piece), mask
    gradient = gradients(own, *given, frozenset({"input"}))["input"][0]
    both = box.common(cell)
    add(gradient[(..., *both.within(box))], sums[(..., *both.within(cell))])
