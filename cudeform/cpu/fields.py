"""The gradients of samples, field by field: images of any size, layout and dtype.

A field is a rectangle of the pixels of an image, and the points that read any of them, in their
order. A task sums up the gradient of one slice of the channels of a field in a copy of its own,
with a rim of a pixel around it, as a point of one field reads pixels of others. So every pixel has
the order of sums that it has where one task goes through all points, and the same bytes; and a few
numbers for each point are all that is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.bare import bare, give_back, lent, records
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.halves import element, put
from cudeform.cpu.language.rows import read_rows, write_rows
from cudeform.cpu.language.transpose import transpose
from cudeform.cpu.sample_gradients import measure, spread
from cudeform.cpu.sampler import (
    BOTTOM,
    LEFT,
    PLANE,
    RIGHT,
    TOP,
    Grid,
    Image,
    locate,
    point_memory,
    points_in,
    return_points,
)


class Fields(NamedTuple):
    """How the points of some images are cut up."""

    points: int  # of an image
    down: int  # fields of an image
    across: int
    high: int  # pixels of a field: 2**high rows of 2**wide
    wide: int
    slices: int
    widest: int  # channels of a slice
    channels: int
    channels_last: int
    blocks: int  # of the points of an image, for sorting them
    block: int  # points
    sort: int  # 0: a field is an image, and has all of its points
    above: int  # points whose y is not between the two are left out
    below: int
    adds: int  # 1: to what the gradient of the input has
    wants_input: int
    wants_points: int


class Lies(NamedTuple):
    """Where numbers lie in their arrays: the first one, and how far the next one is."""

    input: int
    image: int
    channel: int
    row: int
    pixel: int
    grad: int
    grad_image: int
    grad_channel: int
    grad_first: int  # the number of the first point of an image

    def of(self, image: int, channel: int = 0) -> Lies:
        """From an image and a channel on."""
        input = self.input + image * self.image + channel * self.channel
        grad = self.grad + image * self.grad_image + channel * self.grad_channel
        return self._replace(input=input, grad=grad)


class Memory(NamedTuple):
    """What the kernels read and write, flat."""

    input: np.ndarray
    grad_output: np.ndarray
    steps: np.ndarray  # of axes of points in it: how many there are, and how far the next one is
    points: np.ndarray  # (images, points, 2)
    order: np.ndarray  # the points of each field
    ends: np.ndarray  # (images, fields): where these end in `order`
    found: np.ndarray  # (slices, images, points, 2): the gradient of points
    grad_input: np.ndarray  # contiguous


_read = records(Grid, Fields)
_lie = records(Lies)


@inlined
def _block(how, task):
    """An image, and the first point and an end of those of a task that sorts."""
    image, block = task // how.blocks, task % how.blocks
    return image, block * how.block, min((block + 1) * how.block, how.points)


@kernel
def find_fields(numbers, points, keys, counts, first_task, last_task):
    """Which fields points read: four times the first one, and what is to the right and below.

    `counts` is (images, blocks, fields).
    """
    grid, how = _read(numbers)
    memory = point_memory(points, 1)
    located = points_in(memory)
    pixel, state, _ = located
    coordinates, indices = lent(2 * PLANE, points.dtype), lent(PLANE, np.int64)
    some, index = bare(coordinates, 0), bare(indices, 0)
    points, keys = bare(points, 0), bare(keys, 0)
    above, below = points.dtype.type(how.above), points.dtype.type(how.below)
    fields = how.down * how.across
    for task in range(first_task, last_task):
        image, begin, end = _block(how, task)
        own = bare(counts, task * fields)
        for f in range(fields):
            own[f] = 0
        at, end = image * how.points + begin, image * how.points + end
        while at < end:
            count = 0
            while at < end and count < PLANE:
                y = points[2 * at]
                keys[at] = -1
                if y > above and y < below:
                    some[2 * count], some[2 * count + 1] = y, points[2 * at + 1]
                    index[count] = at
                    count += 1
                at += 1
            locate(grid, some, some, (0, 0, count), 0, located)
            for p in range(count):
                key = _key(grid, how, state[p], pixel[p])
                keys[index[p]] = key
                if key >= 0:
                    for corner in range(4):
                        if corner & key == corner:
                            own[_field(how, key, corner)] += 1
    give_back(coordinates)
    give_back(indices)
    return_points(memory)


@inlined
def _key(grid, how, bits, pixel):
    """The number of `find_fields`; -1 for a point that reads nothing."""
    y = pixel // grid.width
    x = pixel - y * grid.width
    low, right = y, x
    if bits & (TOP | BOTTOM) == TOP | BOTTOM:
        low += 1
    if bits & (LEFT | RIGHT) == LEFT | RIGHT:
        right += 1
    down, across = y >> how.high, x >> how.wide
    beyond = 2 * ((low >> how.high) - down) + (right >> how.wide) - across
    return 4 * (down * how.across + across) + beyond if bits else -1


@inlined
def _field(how, key, corner):
    return (key >> 2) + (corner & 1) + (corner >> 1) * how.across


@kernel
def sort_points(numbers, keys, places, order, first_task, last_task):
    """The points of each field; `places` is as `counts` was, and says where the next one goes."""
    _, how = _read(numbers)
    fields = how.down * how.across
    keys, order = bare(keys, 0), bare(order, 0)
    for task in range(first_task, last_task):
        image, begin, end = _block(how, task)
        own = bare(places, task * fields)
        for p in range(begin, end):
            key = keys[image * how.points + p]
            if key >= 0:
                for corner in range(4):
                    if corner & key == corner:
                        f = _field(how, key, corner)
                        order[own[f]] = p
                        own[f] += 1


class _Frame(NamedTuple):
    """The pixels of a field, and of the copy of it with a rim, which begins at `top` and `left`."""

    y: int
    x: int
    rows: int
    columns: int
    top: int
    left: int
    bottom: int
    right: int


@kernel
def add_fields(numbers, lies, slices, memory, first_task, last_task):
    """The gradients of fields: a task is a slice of one."""
    grid, how = _read(numbers)
    (lies,) = _lie(lies)
    found_each = memory.found.size // how.slices
    memory = Memory(
        bare(memory.input, 0),
        bare(memory.grad_output, 0),
        memory.steps,
        bare(memory.points, 0),
        bare(memory.order, 0),
        bare(memory.ends, 0),
        bare(memory.found, 0),
        bare(memory.grad_input, 0),
    )
    found, widest = memory.found, how.widest
    points = point_memory(found, 1)
    located = points_in(points)
    wide = min(grid.width, (1 << how.wide) + 2)
    room = min(grid.height, (1 << how.high) + 2) * wide * widest
    gathered = lent((5 + widest) * PLANE + max(wide, PLANE) * widest, found.dtype)
    slopes, own = bare(gathered, 0), bare(gathered, 3 * PLANE)
    columns, line = bare(gathered, 5 * PLANE), bare(gathered, (5 + widest) * PLANE)
    pixels = lent(room * (how.wants_points + how.wants_input), found.dtype)
    source, target = bare(pixels, 0), bare(pixels, room * how.wants_points)
    indices, inside = lent(2 * PLANE, np.int64), lent(PLANE, np.uint8)
    index, spot, here = bare(indices, 0), bare(indices, PLANE), bare(inside, 0)
    fields = how.down * how.across
    for task in range(first_task, last_task):
        image, rest = task // (fields * how.slices), task % (fields * how.slices)
        s, field = rest // fields, rest % fields
        number = image * fields + field
        begin, end = 0, how.points
        if how.sort:
            begin = memory.ends[number - 1] if number else 0
            end = memory.ends[number]
            if begin == end:
                continue
        frame = _frame(grid, how, field)
        place = image, slices[s], slices[s + 1] - slices[s]
        view = Image(0, place[2], (frame.right - frame.left) * place[2], place[2])
        if how.wants_points:
            _read_frame(lies, frame, place, memory.input, source, line)
        if how.wants_input:
            for i in range((frame.bottom - frame.top) * view.line):
                target[i] = 0
            if how.adds:
                _use_pixels(grid, how, frame, place, target, memory.grad_input, line, True)
        for at in range(begin, end, PLANE):
            count = min(PLANE, end - at)
            _pick(how, memory, image, at, count, index, own)
            locate(grid, own, own, (0, 0, count), 0, located)
            for p in range(count):
                spot[p] = _spot(memory.steps, lies.grad_first + index[p])
            _read_grad(lies, place, memory, spot, count, columns, line)
            to = s * found_each + 2 * image * how.points
            _move(grid, frame, located, count, here)
            if how.wants_points:
                measure(grid, located, count, source, view, columns, view.channels, slopes, 0)
                for p in range(count):
                    if here[p]:
                        found[to + 2 * index[p]] = slopes[3 * p]
                        found[to + 2 * index[p] + 1] = slopes[3 * p + 1]
            if how.wants_input:
                spread(grid, located, count, columns, view.channels, target, view)
        if how.wants_input:
            _use_pixels(grid, how, frame, place, target, memory.grad_input, line, False)
    give_back(gathered)
    give_back(pixels)
    give_back(indices)
    give_back(inside)
    return_points(points)


@inlined
def _frame(grid, how, field):
    y, x = field // how.across << how.high, field % how.across << how.wide
    rows, columns = min(1 << how.high, grid.height - y), min(1 << how.wide, grid.width - x)
    bottom, right = min(y + rows + 1, grid.height), min(x + columns + 1, grid.width)
    return _Frame(y, x, rows, columns, max(y - 1, 0), max(x - 1, 0), bottom, right)


@inlined
def _pick(how, memory, image, at, count, index, own):
    """The numbers of points of a field, and where they are."""
    for p in range(count):
        index[p] = memory.order[at + p] if how.sort else at + p
        start = 2 * (image * how.points + index[p])
        own[2 * p], own[2 * p + 1] = memory.points[start], memory.points[start + 1]


@inlined
def _move(grid, frame, located, count, here):
    """Let points read the copy of a field; which of them have their first corner in the field."""
    pixel, _, _ = located
    width = frame.right - frame.left
    for p in range(count):
        y = pixel[p] // grid.width
        x = pixel[p] - y * grid.width
        row, column = y - frame.y, x - frame.x
        inside = (row >= 0) & (row < frame.rows) & (column >= 0) & (column < frame.columns)
        here[p] = 1 if inside else 0
        pixel[p] = (y - frame.top) * width + x - frame.left


@inlined
def _read_frame(lies, frame, place, source, target, line):
    """Copy the pixels of a field and its rim, with the channels of a slice last."""
    image, channel, channels = place
    width = frame.right - frame.left
    start = lies.input + image * lies.image + channel * lies.channel + frame.left * lies.pixel
    for y in range(frame.top, frame.bottom):
        at, to = start + y * lies.row, (y - frame.top) * width * channels
        if lies.channel == 1:
            read_rows(source, target, (at, lies.pixel, to, channels), (width, channels))
            continue
        if lies.pixel == 1:
            read_rows(source, line, (at, lies.channel, 0, width), (channels, width))
        else:
            for c in range(channels):
                for x in range(width):
                    line[c * width + x] = element(source, at + c * lies.channel + x * lies.pixel)
        transpose(line, 0, width, channels, width, target, to, channels)


@inlined
def _use_pixels(grid, how, frame, place, target, grad_input, line, back):
    """Write the gradient of the pixels of a field; or get `back` what was written."""
    image, channel, channels = place
    width, area = frame.right - frame.left, grid.height * grid.width
    for y in range(frame.y, frame.y + frame.rows):
        at = ((y - frame.top) * width + frame.x - frame.left) * channels
        pixel, size = y * grid.width + frame.x, (channels, frame.columns)
        if how.channels_last:
            to = (image * area + pixel) * how.channels + channel
            size = frame.columns, channels
            if back:
                read_rows(grad_input, target, (to, how.channels, at, channels), size)
            else:
                write_rows(target, grad_input, (at, channels, to, how.channels), size)
            continue
        to = (image * how.channels + channel) * area + pixel
        if back:
            read_rows(grad_input, line, (to, area, 0, frame.columns), size)
            transpose(line, 0, frame.columns, channels, frame.columns, target, at, channels)
        else:
            transpose(target, at, channels, frame.columns, channels, line, 0, frame.columns)
            write_rows(line, grad_input, (0, frame.columns, to, area), size)


@inlined
def _spot(steps, point):
    """How far a point is from the first one in the gradient of the samples."""
    spot = 0
    for axis in range(steps.size - 2, 0, -2):
        above = point // steps[axis]
        spot += (point - above * steps[axis]) * steps[axis + 1]
        point = above
    return spot + point * steps[1]


@inlined
def _read_grad(lies, place, memory, spot, count, columns, line):
    """The gradient of the samples of some points, as `sampler.blend` would write these."""
    grad = memory.grad_output
    image, channel, channels = place
    start = lies.grad + image * lies.grad_image + channel * lies.grad_channel
    side_by_side = True
    for p in range(1, count):
        side_by_side &= spot[p] == spot[0] + p
    if lies.grad_channel == 1:
        for p in range(count):
            read_rows(grad, columns, (start + spot[p], 0, p * channels, 0), (1, channels))
    elif side_by_side:
        read_rows(grad, line, (start + spot[0], lies.grad_channel, 0, PLANE), (channels, count))
        transpose(line, 0, PLANE, channels, count, columns, 0, channels)
    else:
        for c in range(channels):
            at = start + c * lies.grad_channel
            for p in range(count):
                columns[p * channels + c] = element(grad, at + spot[p])


@kernel
def collect(slices, found, target, first, last):
    """Add up what slices found for the gradient of points, in their order."""
    size = found.size // slices
    for i in range(first, last):
        value = found[i]
        for s in range(1, slices):
            value += found[s * size + i]
        put(target, i, value)
