"""The gradients of convolutions that are too large for a workspace, one piece at a time.

What has more bits than its gradient is summed up apart and rounded once: of an offset and a mask
while their pixels are gone through, and of an input, which points anywhere may read, in cells, each
with all pieces that reach it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from cudeform import threads
from cudeform.cpu.conv.gradients import gradients
from cudeform.cpu.conv.large import Arrays, Box, boxes, flat, only, views
from cudeform.cpu.conv.pieces import (
    Piece,
    Range,
    Rectangle,
    corners_of,
    fitted,
    plan_of,
    rectangles,
)
from cudeform.cpu.language.dtypes import add, copy
from cudeform.plans.convolution import ConvPlan

__all__ = ["piece_gradients"]

_CHANNELS = 32  # of a cell
_PARTS = 4  # as many pixels as there is room for, because what reaches two cells is computed twice
_STEPS = 4  # for each thread, at a time
_MOST_STEPS = 12  # whose gradients wait to be added up, but one for each thread
_OF_IMAGES = ("input", "offset", "mask")

Sums = dict[str, np.ndarray]
T = TypeVar("T")


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
            steps = _steps(call, found, sums, image, needs)
            _in_order(steps, partial(_gradients_of, call), partial(_finish, call))
        if apart:
            _add_cells(call, found.input[image], image)
    for name, values in sums.items():
        if values is not result[name]:
            copy(values, result[name])


def _steps(call: Arrays, found: Arrays, sums: Sums, image: int, needs: set[str]) -> Iterator[_Step]:
    """All of an image, in the order in which it is added up."""
    for pixels in call.rectangles():
        own, ends = dict(sums), {}
        if "input" in needs:
            own["input"] = found.input[image]
        for name in needs & {"offset", "mask"}:
            ends[name] = view = getattr(found, name)[image][(..., *pixels.place)]
            own[name] = view if view.dtype == call.wide else np.zeros(view.shape, call.wide)
        for piece in call.pieces(image, pixels):
            for box in boxes(call, piece, call.outputs):
                yield _Step(pixels, own, box, {})
        yield _Step(pixels, own, None, ends)


def _in_order(
    items: Iterable[T], compute: Callable[[T], Sums], finish: Callable[[T, Sums], None]
) -> None:
    """Compute several items at a time, each on one thread, and finish them in their order: so the
    number of threads does not change a bit of it.
    """
    items, count = iter(items), threads.get_num_threads()
    together = max(min(_STEPS * count, _MOST_STEPS), count)
    while some := list(islice(items, together)):
        made: list[Sums] = [{}] * len(some)

        def task(i: int, some: list[T] = some, made: list[Sums] = made) -> None:
            made[i] = compute(some[i])

        threads.run(task, len(some))
        for item, found in zip(some, made, strict=True):
            finish(item, found)


def _finish(call: Arrays, step: _Step, found: Sums) -> None:
    """Add what a step made; round what is complete."""
    places = _places(call, step) if found else {}
    for name, gradient in found.items():
        target = step.sums[name][places[name]]
        add(gradient.reshape(target.shape), target)
    for name, view in step.ends.items():
        if step.sums[name] is not view:
            copy(step.sums[name], view)


def _gradients_of(call: Arrays, step: _Step) -> Sums:
    """The gradients that the points of a piece in one box make."""
    if step.box is None:
        return {}
    plan = call.plan
    piece, box = step.box.part, step.box.pixels
    own = plan_of(plan, piece, box, call.dense)
    begins = step.box.first and piece.channels[0] % plan.in_channels == 0
    needs = step.sums.keys() - (set() if begins and piece.has_first_tap else {"bias"})
    if not needs:
        return {}
    if needs <= {"input", "bias"}:
        image = np.empty((1, own.points.channels, box.height, box.width), call.wide)  # is not read
    else:
        image = call.image(piece, box)
    grad = step.box.keep(call.outputs(piece))[None]
    given = grad, image, step.box.offset, call.weights(piece), step.box.mask
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
            compute = partial(_gradient_in_cell, call, image, channels, cell)
            _in_order(
                reach[overlap].tolist(), compute, partial(_add_to_cell, call.plan, cell, sums)
            )
            copy(sums, target[(slice(*channels), *cell.place)])


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


def _gradient_in_cell(
    call: Arrays, image: int, channels: Range, cell: Rectangle, entry: list[int]
) -> Sums:
    """The gradient of a box, by the points of a part, see `_reach`, that reach a cell."""
    _, taps, pixels, anywhere = _entry(entry)
    piece = Piece(image, channels, taps, pixels)
    offset, mask = call.points(piece)
    box = _box_in_cell(call.plan, cell, entry)
    if anywhere:
        here = np.ones((), bool)
        for at, (first, last) in zip(corners_of(call.plan, piece, offset), cell, strict=True):
            here = here & (at >= first - 1) & (at < last)
        if not here.any():
            return {}
        offset, mask = only(here, offset, mask)
    else:
        offset, mask = flat(offset), flat(mask)
    own = plan_of(call.plan, piece, box, call.dense)
    nothing = np.empty((1, own.points.channels, box.height, box.width), call.wide)  # is not read
    grad = call.outputs(piece)[None]
    given = grad, nothing, offset, call.weights(piece), mask
    return gradients(own, *given, frozenset({"input"}))


def _add_to_cell(
    plan: ConvPlan, cell: Rectangle, sums: np.ndarray, entry: list[int], found: Sums
) -> None:
    for gradient in found.values():
        box = _box_in_cell(plan, cell, entry)
        both = box.common(cell)
        add(gradient[0][(..., *both.within(box))], sums[(..., *both.within(cell))])


def _entry(entry: list[int]) -> tuple[Rectangle, Rectangle, Rectangle, int]:
    """Box, taps, pixels and whether the box is a guess."""
    *spans, anywhere = entry
    pairs = [tuple(spans[i : i + 2]) for i in range(0, len(spans), 2)]
    return Rectangle(*pairs[:2]), Rectangle(*pairs[2:4]), Rectangle(*pairs[4:]), anywhere


def _box_in_cell(plan: ConvPlan, cell: Rectangle, entry: list[int]) -> Rectangle:
    box, _, _, anywhere = _entry(entry)
    return cell.grown(plan.points) if anywhere else box
