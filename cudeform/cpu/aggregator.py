"""Sums of samples of the heads of queries: a head of an image at a time, a block of its queries.

The pixels of a head lie apart in memory, among those of the others. Where they are read often they
are first copied side by side, so that they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.cpu.gathered import CORNERS
from cudeform.cpu.language.halves import words
from cudeform.cpu.language.memory import remembered
from cudeform.cpu.language.strided import aligned, lying
from cudeform.cpu.language.transpose import frozen
from cudeform.cpu.language.workspace import SCRATCH_BYTES
from cudeform.cpu.queries import (
    Extent,
    aggregate,
    pack,
    point_gradients,
)
from cudeform.cpu.sizes import At, Sizes, job_of, rows_of
from cudeform.cpu.sorting import GRAIN, add_corners, list_corners
from cudeform.cpu.spreading import NOTHING, ZEROS, Spread, survey, value_gradients

_FEW = 16  # queries that are not worth a task of their own
_CACHED = 1 << 20  # bytes of copies that are worked on together, however few threads there are
_EVEN = 1.1  # times the work of a thread, the most that one may have if each does whole slices
_RANGE_BYTES = 4 << 20  # of the sums of a range of pixels, which a thread has at a time
_RANGES = 2  # of a slice, and tasks for each thread where these take more: each locates all points
_WIDE = 4  # ranges from which on it pays to know which pixels queries reach
_BUNDLES = 2**16  # of queries of which that is known, in all slices
_PAGE = 1024  # pixels of which it is known whether they are reached
_TINY = 1 << 14  # bytes of an image that the nearest cache holds as it lies
_SPARSE = 2  # corners for each pixel, up to which sums are made where they stay
_LISTED = 16 << 20  # bytes of lists of corners
_LISTING = 8  # ranges of a slice, which take less time than lists: about twice that of one range
_BUNDLE = 2048  # points that are listed together


class Room(NamedTuple):
    """For the gradient of values."""

    array: np.ndarray
    holds: int  # NOTHING, ZEROS, or SUMS to add to

    @classmethod
    def like(cls, value: np.ndarray, sizes: Sizes) -> Room:
        """Zeros where values are many or points few: what no point reads is left as it is."""
        large = value.size * sizes.scale.itemsize > _WIDE * _RANGE_BYTES
        if large or _in_place(sizes, value.dtype):
            return cls(np.zeros(value.shape, value.dtype), ZEROS)
        return cls(np.empty(value.shape, value.dtype), NOTHING)


def _in_place(sizes: Sizes, dtype: np.dtype) -> bool:
    """Whether sums are made where they stay, among those of other heads."""
    extent = sizes.extent
    few = CORNERS * extent.queries * extent.points <= _SPARSE * extent.pixels
    return few and dtype == sizes.scale.dtype


class _Part(NamedTuple):
    """Slices that are worked on together."""

    first: int
    last: int
    packed: bool
    tasks: int = 0
    numbers: np.ndarray | None = None  # for kernels


@remembered
def _parts(
    extent: Extent, slices: int, at: At, itemsize: int, count: int, alone: bool = False
) -> list[_Part]:
    """All slices, so many at a time that copies of them are small, for so many threads: to share
    each part, or `alone` to do whole parts; none if that is uneven.
    """
    size = extent.pixels * extent.channels * itemsize
    often = extent.queries * extent.points >= extent.pixels
    packed = often and size <= SCRATCH_BYTES and size * extent.heads > _TINY
    most = max(slices // threads.wanted_tasks(count=count), 1) if alone else slices
    if packed:
        cached = _CACHED // size
        most = max(min(most, cached if alone else max(count, cached), SCRATCH_BYTES // size), 1)
        each = extent.pixels * extent.channels
        at = At(0, each * extent.heads, each, extent.channels, 1, 0)
    if alone:
        tasks = -(-slices // most)
        longest = -(-tasks // count)
        large = packed and count * most * size > SCRATCH_BYTES
        if large or tasks < 2 * count or longest * count > _EVEN * tasks:
            return []
    parts = []
    for first in range(0, slices, most):
        last = min(first + most, slices)
        pieces = 1 if alone else _pieces(last - first, extent.queries, count)
        numbers = job_of(extent, first, pieces, at)
        parts.append(_Part(first, last, packed, (last - first) * pieces, numbers))
    return parts


def _pieces(slices: int, most: int, count: int) -> int:
    """How many pieces to cut each slice into, of `most` queries or pixels."""
    most //= _FEW
    return 1 if most < 2 else min(-(-threads.wanted_tasks(count=count) // slices), most)


def _cuts(levels: np.ndarray, pixels: int, pieces: int) -> np.ndarray:
    """Where so many ranges of pixels begin, and the end.

    Half of what a range costs goes with its pixels, half with the points that may lie in it: a
    small level has as many of them as a large one.
    """
    heights, widths, starts = levels
    sizes = np.maximum(heights * widths, 1)
    edges = np.unique([0, pixels, *starts, *(starts + heights * widths)])
    shares = np.clip((edges[:, None] - starts) / sizes, 0, 1).mean(1)
    return np.interp(np.linspace(0, 2, pieces + 1), edges / pixels + shares, edges).astype(np.int64)


class _Ranges(NamedTuple):
    """Ranges of the pixels of all slices, and what is known of queries that nobody looked at."""

    pieces: int  # of a slice
    cuts: np.ndarray  # where they begin, and the end
    numbers: np.ndarray
    reach: np.ndarray  # queries may reach all pixels
    touched: np.ndarray


@remembered
def _ranges(
    extent: Extent,
    slices: int,
    itemsize: int,
    pixels: tuple[int, int],
    in_place: bool | None,
    how: Spread,
    pieces: int,
) -> _Ranges:
    """Ranges of equal length, so many at least where there are enough pixels."""
    begin, end = pixels
    pieces = min(pieces, extent.pixels // _FEW)
    if not in_place:
        size = (end - begin) * extent.channels * itemsize
        pieces = max(pieces, -(-size // _RANGE_BYTES))
    pieces = max(pieces, 1)
    cuts = np.linspace(begin, end, pieces + 1).astype(np.int64)
    numbers = job_of(extent, 0, pieces, At(0, 0, 0, 0, 0, 0), how)
    return _Ranges(pieces, cuts, numbers, np.tile(pixels, slices), np.ones(slices, np.uint8))


class Aggregator:
    """Sums of samples, and their gradients, for one call.

    Parameters
    ----------
    sizes : Sizes
    value : array
        Of any strides.
    locations, weights : array
        Contiguous.
    """

    def __init__(
        self, sizes: Sizes, value: np.ndarray, locations: np.ndarray, weights: np.ndarray
    ) -> None:
        self.sizes, self.extent = sizes, sizes.extent
        self.dtypes = locations.dtype, weights.dtype
        self.points = frozen(words(locations), locations), frozen(words(weights), weights)
        if not value.flags.c_contiguous:
            value = aligned(value.reshape(sizes.shape))
        self.value = value
        if value.flags.c_contiguous:
            self.at, self.gathers, self.flat = sizes.at, None, frozen(words(value), value)
        else:
            self._lie(value)

    def _lie(self, value: np.ndarray) -> None:
        """Find out where values of any strides are, and whether their channels are gathered."""
        self.flat, start, (image, row, pixel, head, channel) = lying(value)
        gap = row - value.shape[2] * pixel if value.shape[1] > 1 else 0
        self.at = At(start, image, head, pixel, channel, gap)
        self.gathers = gap != 0 or (channel != 1 and self.extent.channels > 1) or None

    def aggregate(self, output: np.ndarray) -> None:
        """Set the output."""
        arrays = self.sizes.scale, words(output.reshape(-1))
        self._each_part(aggregate, arrays, self._work(output))

    def differentiate(
        self,
        grad_output: np.ndarray,
        grad_locations: np.ndarray | None,
        grad_weights: np.ndarray | None,
        then: Callable[[int, int], None] | None = None,
    ) -> None:
        """Set the gradients of locations and weights; each may be None.

        Of each part that a thread does by itself, `then` is called with the slices.
        """
        targets = [
            words(np.empty(0, dtype) if grad is None else grad.reshape(-1))
            for grad, dtype in zip((grad_locations, grad_weights), self.dtypes, strict=True)
        ]
        arrays = frozen(words(grad_output), grad_output), self.sizes.scale, *targets
        self._each_part(point_gradients, arrays, self._work(grad_output), then)

    def differentiate_slices(
        self,
        grad_output: np.ndarray,
        grad_locations: np.ndarray | None,
        grad_weights: np.ndarray | None,
        room: Room,
    ) -> bool:
        """`differentiate` and `spread` together, so that threads are woken once, where each does
        all of some slices. Returns whether that is so.
        """
        if not self._alone(self._work(grad_output)):
            return False
        spreading = self._spreading(grad_output, room, 1)
        if spreading is None:
            return False
        spread, pieces = spreading

        def then(first: int, last: int) -> None:
            spread(first * pieces, last * pieces)

        self.differentiate(grad_output, grad_locations, grad_weights, then)
        return True

    def _each_part(
        self,
        kernel: Callable[..., None],
        arrays: tuple[np.ndarray, ...],
        work: int,
        then: Callable[[int, int], None] | None = None,
    ) -> None:
        """Share out what a kernel does: part by part, or whole parts of threads by themselves."""

        def task_of(part: _Part, alone: bool) -> Callable[[int, int], None]:
            source, gathers = self._source(part, alone)
            given = part.numbers, *self.sizes.places, gathers, source, *self.points
            return partial(kernel, *given, *arrays)

        def task(first: int, last: int) -> None:
            for part in whole[first:last]:
                task_of(part, True)(0, part.tasks)
                if then is not None:
                    then(part.first, part.last)

        if whole := self._alone(work):
            threads.share(task, len(whole), work)
            return
        for part in self._parts():
            threads.share(task_of(part, False), part.tasks, work)

    def spread(
        self, grad_output: np.ndarray, room: Room, pixels: tuple[int, int] | None = None
    ) -> None:
        """Set the gradient of the values, or add to it; of a range of pixels or all.

        Of zeros what no point reads is left as it is.
        """
        pieces = self._pieces_wanted(grad_output)
        if spreading := self._spreading(grad_output, room, pieces, pixels):
            task, pieces = spreading
            threads.share(task, self.sizes.slices * pieces, self._work(grad_output))
        else:
            self._spread_listed(grad_output, room)

    def _spreading(
        self,
        grad_output: np.ndarray,
        room: Room,
        pieces: int,
        pixels: tuple[int, int] | None = None,
    ) -> tuple[Callable[[int, int], None], int] | None:
        """What sets the gradient of the values in so many pieces of each slice, or how many it
        takes; None where lists are quicker.
        """
        sizes, extent = self.sizes, self.extent
        begin, end = whole = pixels or (0, extent.pixels)
        in_place = self._in_place(room)
        how = Spread(begin, room.holds, extent.queries, extent.pixels)
        size = (end - begin) * extent.channels * sizes.scale.itemsize
        known = not in_place and size > _WIDE * _RANGE_BYTES
        if not known and not pixels and pieces > _LISTING and self._lists():
            return None
        given = extent, sizes.slices, sizes.scale.itemsize, whole, in_place
        pieces, cuts, numbers, *reach = _ranges(*given, how, pieces)
        if known:
            how, *reach = self._surveyed(how)
            numbers = _ranges(*given, how, pieces).numbers
        if pieces > 1 and not pixels:
            cuts = _cuts(sizes.levels.reshape(3, -1), end, pieces)
        grads = frozen(words(grad_output), grad_output)
        points = *self.points, grads, sizes.scale, words(room.array.reshape(-1))
        given = numbers, *sizes.places, in_place, cuts, *reach, *points
        return partial(value_gradients, *given), pieces

    def _in_place(self, room: Room) -> bool | None:
        return (room.holds != NOTHING and _in_place(self.sizes, room.array.dtype)) or None

    def _pieces_wanted(self, grad_output: np.ndarray) -> int:
        """Ranges of a slice: even tasks for all threads are worth the time of few more."""
        slices, tasks = self.sizes.slices, threads.wanted_tasks(self._work(grad_output))
        most = max(_RANGES, -(-_RANGES * threads.get_num_threads() // slices))
        return min(-(-tasks // slices), most)

    def _lists(self) -> bool:
        """Whether there is memory for lists of the corners of a slice, and pixels for ranges."""
        size = self._entries() * self._entry_bytes()
        return size <= _LISTED and self.extent.pixels >= 2 * GRAIN

    def _entries(self) -> int:
        """Corners of a slice."""
        return CORNERS * self.extent.queries * self.extent.points

    def _entry_bytes(self) -> int:
        return 8 + self.sizes.scale.itemsize

    def _spread_listed(self, grad_output: np.ndarray, room: Room) -> None:
        """Set the gradient of the values, or add to it, from lists of corners by range."""
        sizes, extent = self.sizes, self.extent
        in_place = self._in_place(room)
        together = min(max(_LISTED // (self._entries() * self._entry_bytes()), 1), sizes.slices)
        work = self._work(grad_output) * together // sizes.slices
        tasks = threads.wanted_tasks(self._work(grad_output))  # of each group, however few listed
        pieces = min(-(-tasks // together), extent.pixels // GRAIN)
        cuts = _cuts(sizes.levels.reshape(3, -1), extent.pixels, pieces)
        cuts[1:-1] = cuts[1:-1] // GRAIN * GRAIN
        grains = np.arange(0, extent.pixels, GRAIN)
        owners = (np.searchsorted(cuts[1:], grains, "right")).astype(np.int32)
        points = min(_BUNDLE, together * extent.queries * extent.points // tasks)
        bundle = max(points // extent.points // rows_of(extent), 1) * rows_of(extent)
        bundles = -(-extent.queries // bundle)
        starts = np.empty(together * bundles * (pieces + 1), np.int64)
        places = np.empty(together * self._entries() * 2, np.int32)
        factors = np.empty(together * self._entries(), sizes.scale.dtype)
        lists, touched = (starts, places, factors), np.ones(sizes.slices, np.uint8)
        grads, target = frozen(words(grad_output), grad_output), words(room.array.reshape(-1))
        how = Spread(0, room.holds, bundle, extent.pixels)
        for first in range(0, sizes.slices, together):
            count = min(together, sizes.slices - first)
            numbers = job_of(extent, first, pieces, sizes.at, how)
            given = numbers, *sizes.places, owners, *self.points, sizes.scale, *lists
            threads.share(partial(list_corners, *given), count * bundles, work)
            given = numbers, in_place, cuts, touched, *lists, grads, sizes.scale, target
            threads.share(partial(add_corners, *given), count * pieces, work)

    def _surveyed(self, how: Spread) -> tuple[Spread, np.ndarray, np.ndarray]:
        """Which pixels queries reach."""
        sizes, extent = self.sizes, self.extent
        bundles, rows = max(_BUNDLES // sizes.slices, 1), rows_of(extent)
        bundle = -(-extent.queries // bundles)
        how = how._replace(bundle=-(-bundle // rows) * rows, page=_PAGE)
        tasks = sizes.slices * -(-extent.queries // how.bundle)
        reach = np.empty(2 * tasks, np.int64)
        touched = np.zeros(sizes.slices * -(-extent.pixels // _PAGE), np.uint8)
        numbers = job_of(extent, 0, 1, sizes.at, how)
        given = numbers, *sizes.places[:3], self.points[0], sizes.scale, reach, touched
        work = sizes.slices * extent.queries * extent.points
        threads.share(partial(survey, *given), tasks, work)
        return how, reach, touched

    def _work(self, output: np.ndarray) -> int:
        return output.size * self.extent.points * 2  # four corners, at twice the usual speed

    def _parts(self, alone: bool = False) -> list[_Part]:
        sizes, count = self.sizes, threads.get_num_threads()
        return _parts(self.extent, sizes.slices, self.at, sizes.scale.itemsize, count, alone)

    def _alone(self, work: int) -> list[_Part]:
        """Parts of which threads do equally many, each by itself; none if that is not so."""
        if threads.get_num_threads() == 1 or threads.takes_one(work):
            return []
        return self._parts(alone=True)

    def _source(self, part: _Part, alone: bool) -> tuple[np.ndarray, bool | None]:
        """The values as kernels take them, and whether they are gathered; None: they are not.

        They are copied by all threads, or by this one `alone`.
        """
        if not part.packed:
            return self.flat, self.gathers
        extent, slices = self.extent, part.last - part.first
        target = np.empty(slices * extent.pixels * extent.channels, self.sizes.scale.dtype)
        if self.at is self.sizes.at:
            pieces = 1 if alone else _pieces(slices, extent.pixels, threads.get_num_threads())
            job = job_of(extent, part.first, pieces, self.at)
            task, tasks = partial(pack, job, self.flat, target), slices * pieces
        else:
            shape = slices, *self.value.shape[1:3], extent.channels
            task, tasks = partial(self._pack, part, target.reshape(shape)), slices
        if alone:
            task(0, tasks)
        else:
            threads.share(task, tasks, target.size)
        return frozen(target, target), None

    def _pack(self, part: _Part, target: np.ndarray, first: int, last: int) -> None:
        """Copy the values of slices of a part side by side, however they lie."""
        for number in range(part.first + first, part.first + last):
            image, head = divmod(number, self.extent.heads)
            target[number - part.first] = self.value[image, :, :, head]
