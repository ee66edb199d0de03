"""The gradients of convolutions that are too large for a workspace, one piece at a time.

What has more bits than its gradient is summed up apart and rounded once: of an offset and a mask
while their pixels are gone through, of a weight while its taps are, or its channels where they are
many, and of an input, which points anywhere may read, in cells, each with all pieces that reach it.
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
from cudeform.cpu.language.dtypes import add, copied, copy, multiply
from cudeform.plans.convolution import ConvPlan

_CHANNELS = 32  # of a cell
_PARTS = 4  # as many pixels as there is room for, because what reaches two cells is computed twice
_STEPS = 4  # for each thread, at a time
_MOST_STEPS = 12  # whose gradients wait to be added up, but one for each thread
_OF_IMAGES = ("input", "offset", "mask")

Sums = dict[str, np.ndarray]
T = TypeVar("T")


class _Round(NamedTuple):
    """Some weights, of which all pixels of all images are gone through at once."""

    needs: frozenset[str]
    channels: list[Range]
    taps: Rectangle
    weights: tuple[slice, ...]


class _Step(NamedTuple):
    """A box to compute; or the end of some sums, to which nothing is added any more."""

    sums: Sums  # to add to
    box: Box | None
    ends: Sums  # what the sums are rounded to
    pixels: Rectangle | None = None  # that the sums of an offset and a mask are of
    round: _Round | None = None
    mask: np.ndarray | None = None  # that the sums of an offset are multiplied by at the end


def piece_gradients(
    plan: ConvPlan, given: dict[str, np.ndarray | None], result: Sums, wide: np.dtype
) -> None:
    """Fill the gradients in `result`, which are 0, from arrays of any dtype and strides."""
    images = {name: given[name] for name in _OF_IMAGES}
    call = views(plan, wide, given["weight"], **images, output=given["grad_output"])
    found = views(plan, wide, None, **{name: result.get(name) for name in _OF_IMAGES})
    apart = "input" in result and result["input"].dtype != wide
    needs = result.keys() - ({"input"} if apart else set())
    if needs:
        steps = _steps(call, found, result, needs)
        _in_order(steps, partial(_gradients_of, call), partial(_finish, call))
    for image in range(plan.points.batch if apart else 0):
        _add_cells(call, found.input[image], image)


def _rounds(call: Arrays, needs: set[str], result: Sums) -> Iterator[_Round]:
    """Of some taps; where their weights are many and summed up apart, of each range of channels."""
    plan, every, weight = call.plan, list(call.channels()), result.get("weight")
    for taps in call.taps():
        window = slice(0, plan.out_channels), slice(0, plan.in_channels), *taps.place
        apart = "weight" in needs and weight.dtype != call.wide
        if not apart or weight[window].size <= call.room:
            yield _Round(frozenset(needs), every, taps, window)
            continue
        if needs > {"weight"}:
            yield _Round(frozenset(needs - {"weight"}), every, taps, window)
        for channels in every:
            window = Piece(0, channels, taps, taps).weights(plan)
            yield _Round(frozenset({"weight"}), [channels], taps, window)


def _steps(call: Arrays, found: Arrays, result: Sums, needs: set[str]) -> Iterator[_Step]:
    """All that is computed, in the order in which it is added up."""
    of_bias, rounded_bias = _begun(call, {name: result[name] for name in needs & {"bias"}})
    for round in _rounds(call, needs, result):
        some = {"weight": result["weight"][round.weights]} if "weight" in round.needs else {}
        of_weight, rounded_weight = _begun(call, some)
        fixed = {**of_weight, **(of_bias if "bias" in round.needs else {})}
        for image in range(call.plan.points.batch):
            if "input" in round.needs:
                fixed["input"] = found.input[image]
            for pixels in call.rectangles():
                place = slice(None), *round.taps.place, ..., *pixels.place
                names = round.needs & {"offset", "mask"}
                own, ends = _begun(call, {n: getattr(found, n)[image][place] for n in names})
                for channels in round.channels:
                    piece = Piece(image, channels, round.taps, pixels)
                    for box in boxes(call, piece, call.outputs):
                        yield _Step({**fixed, **own}, box, {}, pixels, round)
                mask = None if call.mask is None else call.mask[image][place]
                yield _Step(own, None, ends, mask=mask)
        yield _Step(of_weight, None, rounded_weight)
    yield _Step(of_bias, None, rounded_bias)


def _begun(call: Arrays, targets: Sums) -> tuple[Sums, Sums]:
    """Sums to add to, the targets themselves if they have as many bits; and those that have not."""
    ends = {name: target for name, target in targets.items() if target.dtype != call.wide}
    sums = {name: np.zeros(target.shape, call.wide) for name, target in ends.items()}
    return {**targets, **sums}, ends


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
    if step.mask is not None and "offset" in step.sums:
        multiply(copied(step.mask, call.wide)[:, :, :, None], step.sums["offset"])
    for name, view in step.ends.items():
        copy(step.sums[name], view)


def _gradients_of(call: Arrays, step: _Step) -> Sums:
    """The gradients that the points of a piece in one box make."""
    if step.box is None:
        return {}
    plan = call.plan
    piece, box = step.box.part, step.box.pixels
    own = plan_of(plan, piece, box, True)
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
    return gradients(own, *given, frozenset(needs), times_mask=False)


def _places(call: Arrays, step: _Step) -> dict[str, tuple]:
    """Where in the sums these are added."""
    plan, (piece, box, *_) = call.plan, step.box
    within = piece.pixels.within(step.pixels)
    points = piece.offset_groups(plan), *piece.taps.within(step.round.taps), ..., *within
    both = zip(piece.weights(plan), step.round.weights, strict=True)
    return {
        "input": (slice(*piece.channels), *box.place),
        "offset": points,
        "mask": points,
        "weight": tuple(slice(own.start - all.start, own.stop - all.start) for own, all in both),
        "bias": piece.outputs(plan, True),
    }


def _add_cells(call: Arrays, target: np.ndarray, image: int) -> None:
    """Fill the gradient of an image of fewer bits, cell by cell."""
    points = call.plan.points
    most = min(_CHANNELS, points.channels)
    for channels in call.channels(most):
        reach = _reach(call, image, channels)
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


def _reach(call: Arrays, image: int, channels: Range) -> np.ndarray:
    """A row for each part of the pieces of some channels: its box, whether that is no more than a
    guess, taps and output pixels.
    """
    found = array("q")  # millions of them would take gigabytes as tuples
    everywhere = Rectangle((0, call.plan.points.height), (0, call.plan.points.width))
    for pixels in call.rectangles(_PARTS):
        for kernel in call.taps():
            piece = Piece(image, channels, kernel, pixels)
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
    own = plan_of(call.plan, piece, box, True)
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
