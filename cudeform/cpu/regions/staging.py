"""Frames with their channels last, slice by slice, and back again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.language.bare import bare, cleared, give_back, records
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.dtypes import copy
from cudeform.cpu.language.halves import words
from cudeform.cpu.language.rows import read_rows
from cudeform.cpu.language.strided import aligned, lying
from cudeform.cpu.language.transpose import frozen, transpose
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.regions.blocking import Job, Round, count_slices, one_round, place_of, rounds
from cudeform.cpu.regions.extents import Regions

_PIXELS = 256  # laid out in one go


class View(NamedTuple):
    """Strides of images (images, classes, channels, groups, rows, columns), without the first."""

    of_class: int
    channel: int
    group: int
    row: int
    column: int


# Where (0, 0, 0, 0, 0) of the image of each frame is in an array, its strides, and the array, flat
Planes = tuple[np.ndarray, View, np.ndarray]
_read = records(Job, Round, View)


@lru_cache(maxsize=256)
def room(job: Job, part: Round) -> int:
    """Elements of the frames of a round, slice by slice."""
    return count_slices(part) * job.rows * job.columns * job.pitch


def _fill(job: Job, regions: Regions, part: Round, input: np.ndarray, staged: np.ndarray) -> None:
    """Lay the images of a round out with the channels of each slice last."""
    row = job.width * input.itemsize
    if input.flags.c_contiguous or input.strides[2:] == (row, input.itemsize):
        starts, view, flat = reading(job, regions, input)
    else:
        place = regions.images[part.images], part.classes, part.channels(job), part.groups
        images = np.ascontiguousarray(_split(job, input)[place])
        starts, view, flat = _planes_of_round(job, part, regions, images)
    copy = _stage if flat.dtype == staged.dtype else _widen
    task = partial(copy, numbers_of(job, part, view), regions.origin, starts, flat, staged)
    threads.share(task, count_chunks(job, part), room(job, part))


def staged_rounds(
    job: Job, regions: Regions, input: np.ndarray, dtype: np.dtype, as_planes: bool
) -> Iterator[tuple[Round, Planes | tuple[np.ndarray]]]:
    """Each round, and what its kernels read: the planes as they lie, or frames laid out."""
    frames = len(regions.images)
    if as_planes:
        yield one_round(job, frames), reading(job, regions, input)
        return
    parts = rounds(job, frames, dtype.itemsize)
    staged = np.empty(max(room(job, part) for part in parts), dtype)
    for part in parts:
        _fill(job, regions, part, input, staged)
        yield part, (staged,)


@lru_cache(maxsize=256)
def count_chunks(job: Job, part: Round) -> int:
    """Pieces in which the pixels of a round are laid out, image by image."""
    return count_slices(part) * _chunks(job)


def reading(job: Job, regions: Regions, input: np.ndarray) -> Planes:
    """The planes of an input of any strides, as they lie; of 16 bits as `words`."""
    if input.flags.c_contiguous:
        view, image = contiguous(job)
        return regions.images * image, view, frozen(words(input), input)
    flat, start, (image, *strides) = lying(_split(job, input))
    return start + regions.images * image, View(*strides), flat


@lru_cache(maxsize=256)
def contiguous(job: Job) -> tuple[View, int]:
    """The strides of planes without gaps, and that of images."""
    area = job.height * job.width
    group = job.groups_y * job.groups_x * area
    return View(job.channels * group, group, area, job.width, 1), job.classes * job.channels * group


@contextmanager
def writing(
    job: Job, regions: Regions, part: Round, output: np.ndarray, dtype: np.dtype
) -> Iterator[Planes]:
    """The planes of an output to add to: its own, or of frames that are rounded to it at the end.

    Each pixel is in one frame at most.
    """
    if output.dtype == dtype:
        view, image = contiguous(job)
        yield regions.images * image, view, output.reshape(-1)
        return
    images = _split(job, output)
    frames = np.zeros((*part.shape(job)[:4], job.rows, job.columns), dtype)
    yield _planes_of_round(job, part, regions, frames)
    for values, u in zip(frames, range(part.image_begin, part.image_end), strict=True):
        y, x = (int(at) for at in regions.origin[2 * u : 2 * u + 2])
        place = regions.images[u], part.classes, part.channels(job), part.groups
        target = images[(*place, slice(y, y + job.rows), slice(x, x + job.columns))]
        copy(values[..., : target.shape[3], : target.shape[4]], target)


def _split(job: Job, images: np.ndarray) -> np.ndarray:
    """(N, classes, channels of one, groups, H, W)."""
    groups = job.groups_y * job.groups_x
    return aligned(images).reshape(-1, job.classes, job.channels, groups, job.height, job.width)


def _planes_of_round(job: Job, part: Round, regions: Regions, frames: np.ndarray) -> Planes:
    """The planes of an array of the frames of a round alone."""
    strides = [stride // frames.itemsize for stride in frames.strides]
    view = View(*strides[1:])
    begins = part.class_begin, part.slice_begin * job.slice_channels, part.group_begin
    before = sum(begin * stride for begin, stride in zip(begins, view, strict=False))
    starts = (np.arange(len(regions.images)) - part.image_begin) * strides[0] - before
    starts -= regions.origin[::2] * view.row + regions.origin[1::2] * view.column
    return starts, view, words(frames).reshape(-1)


@inlined
def slice_of(job, part, origin, u, c, s):
    """Where pixel (0, 0) of group 0 of a slice would be in the frames of a round, and how far the
    groups are from each other.
    """
    area = job.rows * job.columns * job.pitch
    slices = part.slice_end - part.slice_begin
    at = (u - part.image_begin) * (part.class_end - part.class_begin) + c - part.class_begin
    at = at * (part.group_end - part.group_begin) - part.group_begin
    at = (at * slices + s - part.slice_begin) * area
    return at - (origin[2 * u] * job.columns + origin[2 * u + 1]) * job.pitch, slices * area


def _lines(job: Job) -> tuple[int, int, int]:
    """Runs of pixels that follow each other in a frame and in its image, how long they are, and in
    how many pieces they are laid out.
    """
    lines, length = job.rows, job.columns
    if length == job.width:  # the rows of the image follow each other
        lines, length = 1, lines * length
    return lines, length, (length + _PIXELS - 1) // _PIXELS


_lines_of = inlined(_lines)


def _chunks(job: Job) -> int:
    """Pieces in which the pixels of a slice are laid out."""
    lines, _, chunks = _lines(job)
    return lines * chunks


@inlined
def _copy_chunk(views, place, chunk, frame, planes, copy, rows):
    """Copy a few pixels of a slice, (frame, class, group, slice), between planes and where it lies
    in a frame: those of the frame that are in its image.
    """
    job, view, origin, starts = views
    (u, c, g, s), (staged, at) = place, frame
    _, length, chunks = _lines_of(job)
    line = chunk // chunks
    pixel = (chunk - line * chunks) * _PIXELS
    at += (line * length + pixel) * job.pitch
    first = s * job.slice_channels
    y, x = origin[2 * u] + line, origin[2 * u + 1] + pixel
    other = starts[u] + c * view.of_class + first * view.channel + g * view.group
    other += y * view.row + x
    inside = job.width - x if y < job.height else 0
    if job.columns == job.width:
        inside = (job.height - y) * job.width - x
    pixels = max(min(min(_PIXELS, length - pixel), inside), 0)
    size = min(job.slice_channels, job.channels - first), pixels
    copy(staged, planes, (at, job.pitch), (other, view.channel), size, rows)


@inlined
def _visit(numbers, origin, starts, staged, flat, first, last, copy):
    """Copy pieces `first` to `last` of a round, each a few pixels of a slice of a frame."""
    job, part, view = numbers
    memory = cleared(job.pitch * _PIXELS, staged.dtype)
    rows, staged, planes = bare(memory, 0), bare(staged, 0), bare(flat, 0)
    views = job, view, bare(origin, 0), bare(starts, 0)
    lines, _, chunks = _lines_of(job)
    area = job.rows * job.columns * job.pitch
    for task in range(first, last):
        block = task // (lines * chunks)
        place = place_of(part, (part.group_begin, part.group_end), block)
        frame = staged, block * area
        _copy_chunk(views, place, task - block * lines * chunks, frame, planes, copy, rows)
    give_back(memory)


@kernel
def _stage(numbers, origin, starts, source, staged, first, last):
    stage(_read(numbers), origin, starts, source, staged, first, last)


@inlined
def stage(numbers, origin, starts, source, staged, first, last):
    """Pieces `first` to `last` of the pixels of a round, not of 16 bits."""
    _visit(numbers, origin, starts, staged, source, first, last, lay_out)


@kernel
def _widen(numbers, origin, starts, source, staged, first, last):
    _visit(_read(numbers), origin, starts, staged, source, first, last, _lay_out_wide)


@inlined
def room_for_rows(job):
    """Elements that `copy_groups` wants beside a frame."""
    return job.pitch * _PIXELS


@inlined
def copy_groups(views, place, groups, staged, planes, copy, rows):
    """Copy a slice, (frame, class, slice), in groups from one up to another, that lie in a frame
    one after the other.
    """
    job = views[0]
    lines, _, chunks = _lines_of(job)
    for g in range(groups[0], groups[1]):
        frame = staged, (g - groups[0]) * job.rows * job.columns * job.pitch
        where = place[0], place[1], g, place[2]
        for chunk in range(lines * chunks):
            _copy_chunk(views, where, chunk, frame, planes, copy, rows)


@inlined
def _copy(source, at, target, to, count):
    for i in range(count):
        target[to + i] = source[at + i]


@inlined
def _clear(rows, channels, pitch):
    """What is no channel must not be NaN."""
    for i in range(channels * _PIXELS, pitch * _PIXELS):
        rows[i] = 0


@inlined
def lay_out(staged, source, frame, plane, size, rows):
    """From planes into a frame; `size` is (channels, pixels)."""
    (to, pitch), (at, of_channel), (channels, pixels) = frame, plane, size
    if channels == pitch:
        transpose(source, at, of_channel, channels, pixels, staged, to, pitch)
    else:  # whole vectors are quicker
        for k in range(channels):
            _copy(source, at + k * of_channel, rows, k * _PIXELS, pixels)
        _clear(rows, channels, pitch)
        transpose(rows, 0, _PIXELS, pitch, pixels, staged, to, pitch)


@inlined
def _lay_out_wide(staged, source, frame, plane, size, rows):
    """The same from 16 bits."""
    (to, pitch), (at, of_channel), (channels, pixels) = frame, plane, size
    read_rows(source, rows, (at, of_channel, 0, _PIXELS), size)
    _clear(rows, channels, pitch)
    transpose(rows, 0, _PIXELS, pitch, pixels, staged, to, pitch)


@inlined
def lay_back(staged, output, frame, plane, size, rows):
    """From a frame into planes."""
    (at, pitch), (to, of_channel), (channels, pixels) = frame, plane, size
    if channels == pitch:
        transpose(staged, at, pitch, pixels, channels, output, to, of_channel)
    else:
        transpose(staged, at, pitch, pixels, pitch, rows, 0, _PIXELS)
        for k in range(channels):
            _copy(rows, k * _PIXELS, output, to + k * of_channel, pixels)
