"""The images of a round of regions with their channels last, slice by slice, and back again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.language.compiler import inlined, kernel, record
from cudeform.cpu.language.dtypes import rounded
from cudeform.cpu.language.transpose import copy_plain, frozen, transpose
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.regions.blocking import AFTER_ROUND, Job, Round, job_and_round
from cudeform.cpu.regions.extents import Regions

__all__ = ["View", "reading", "result_at", "room", "stage", "start_of", "unstage", "writing"]

_PIXELS = 256  # laid out in one go


class View(NamedTuple):
    """Strides of images (images, classes, channels, groups, pixels), with the pixels in a row."""

    image: int
    of_class: int
    channel: int
    group: int
    start: int  # of (0, 0, 0, 0, 0)


_read_view = record(View)


@lru_cache(maxsize=256)
def room(job: Job, part: Round) -> int:
    """Elements of the images of a round, slice by slice."""
    images, classes, _, groups, pixels = part.shape(job)
    slices = part.slice_end - part.slice_begin
    return images * classes * groups * slices * pixels * job.pitch


def stage(job: Job, regions: Regions, part: Round, input: np.ndarray, staged: np.ndarray) -> None:
    """Lay the images of a round out with the channels of each slice last."""
    images, view, source = reading(job, regions, part, input, staged.dtype)
    task = partial(_stage, numbers_of(job, part, view), images, source, staged)
    _share(task, job, part)


def unstage(
    job: Job, part: Round, staged: np.ndarray, images: np.ndarray, view: View, output: np.ndarray
) -> None:
    """Write the images of a round, laid out as by `stage`, to what `writing` gave."""
    task = partial(_unstage, numbers_of(job, part, view), images, staged, output)
    _share(task, job, part)


def _share(task: Callable[[int, int], None], job: Job, part: Round) -> None:
    """Share the pixels of the slices of a round out."""
    elements, area = room(job, part), job.height * job.width
    threads.share(task, elements // (job.pitch * area) * -(-area // _PIXELS), elements)


def reading(
    job: Job, regions: Regions, part: Round, input: np.ndarray, dtype: np.dtype
) -> tuple[np.ndarray, View, np.ndarray]:
    """Images to read those of a round from, in a dtype; which image each is comes first."""
    images, place = _strided(job, input), regions.images
    if input.dtype != dtype:
        images = images[place[part.images], part.classes, part.channels(job), part.groups]
        images = images.astype(dtype)
        place = np.arange(len(place)) - part.image_begin
    return place, _view(job, part, images), frozen(images, images)


@contextmanager
def writing(
    job: Job, regions: Regions, part: Round, output: np.ndarray, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, View, np.ndarray]]:
    """The same to write to: `output`, or zeros that are rounded to it at the end."""
    if output.dtype == dtype:
        images = _strided(job, output)
        yield regions.images, _view(job, part, images), output.reshape(-1)
        return
    images = np.zeros(part.shape(job), dtype)
    place = np.arange(len(regions.images)) - part.image_begin
    yield place, _view(job, part, images), images.reshape(-1)
    place = regions.images[part.images], part.classes, part.channels(job), part.groups
    _strided(job, output)[place] = rounded(images, output.dtype)


def _strided(job: Job, images: np.ndarray) -> np.ndarray:
    groups = job.groups_y * job.groups_x
    return images.reshape(-1, job.classes, job.channels, groups, job.height * job.width)


def _view(job: Job, part: Round, images: np.ndarray) -> View:
    strides = [stride // images.itemsize for stride in images.strides[:4]]
    start = 0
    if images.shape[1:4] != (job.classes, job.channels, job.groups_y * job.groups_x):
        begins = part.class_begin, part.slice_begin * job.slice_channels, part.group_begin
        start = -sum(begin * stride for begin, stride in zip(begins, strides[1:], strict=True))
    return View(*strides, start)


@inlined
def start_of(job, part, u, c, g, s):
    """Where a slice of an image with boxes begins in the images of a round."""
    at = (u - part.image_begin) * (part.class_end - part.class_begin) + c - part.class_begin
    at = at * (part.group_end - part.group_begin) + g - part.group_begin
    at = at * (part.slice_end - part.slice_begin) + s - part.slice_begin
    return at * job.height * job.width * job.pitch


@inlined
def result_at(work, t, c, s):
    """Where the results of a slice of a region begin."""
    job, _, _, piece = work
    at = piece.start + piece.rows[t] * piece.region + c * piece.of_class
    return at + s * job.slice_channels * job.bins_y * job.bins_x


@inlined
def _chunk(job, part, images, view, task):
    """Where a few pixels of a slice lie in the images of a round and in others."""
    area = job.height * job.width
    chunks = (area + _PIXELS - 1) // _PIXELS
    block = task // chunks
    pixel = (task - block * chunks) * _PIXELS
    at = (block * area + pixel) * job.pitch
    spans = part.slice_end - part.slice_begin
    s = part.slice_begin + block % spans
    block = block // spans
    spans = part.group_end - part.group_begin
    g = part.group_begin + block % spans
    block = block // spans
    spans = part.class_end - part.class_begin
    c = part.class_begin + block % spans
    first = s * job.slice_channels
    other = view.start + images[part.image_begin + block // spans] * view.image
    other += c * view.of_class + first * view.channel + g * view.group + pixel
    channels = min(job.slice_channels, job.channels - first)
    return at, other, min(_PIXELS, area - pixel), channels


@kernel
def _stage(numbers, images, source, staged, first, last):
    """Pieces `first` to `last`, each a few pixels of a slice of an image."""
    job, part = job_and_round(numbers)
    view = _read_view(numbers, AFTER_ROUND)
    rows = np.zeros(job.pitch * _PIXELS, staged.dtype)
    start = np.int64(0)
    for task in range(first, last):
        to, at, pixels, channels = _chunk(job, part, images, view, task)
        if job.pitch == 1:
            copy_plain(source, at, staged, to, pixels)
        elif channels == job.pitch:
            transpose(source, at, view.channel, channels, pixels, staged, to, job.pitch)
        else:  # whole vectors are quicker, and what is no channel must not be NaN
            for k in range(channels):
                copy_plain(source, at + k * view.channel, rows, k * _PIXELS, pixels)
            rows[channels * _PIXELS :] = 0
            transpose(rows, start, _PIXELS, job.pitch, pixels, staged, to, job.pitch)


@kernel
def _unstage(numbers, images, staged, output, first, last):
    """Pieces `first` to `last`, each a few pixels of a slice of an image."""
    job, part = job_and_round(numbers)
    view = _read_view(numbers, AFTER_ROUND)
    rows = np.empty(job.pitch * _PIXELS, staged.dtype)
    start = np.int64(0)
    for task in range(first, last):
        at, to, pixels, channels = _chunk(job, part, images, view, task)
        if job.pitch == 1:
            copy_plain(staged, at, output, to, pixels)
        elif channels == job.pitch:
            transpose(staged, at, job.pitch, pixels, channels, output, to, view.channel)
        else:
            transpose(staged, at, job.pitch, pixels, job.pitch, rows, start, _PIXELS)
            for k in range(channels):
                copy_plain(rows, k * _PIXELS, output, to + k * view.channel, pixels)
