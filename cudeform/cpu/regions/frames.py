"""The parts of images that gradients are summed up in, where whole images would be too large.

Frames do not overlap, so every sum has one place and the order that it has in a whole image. A
region is listed in each frame that it can reach, and adds to each what falls in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from cudeform.cpu.language import workspace
from cudeform.cpu.regions.extents import NUMBERS, Regions, regions_of
from cudeform.plans.regions import RoiPlan

__all__ = ["framed"]

_SIDES = 64, 1024  # of a frame, in pixels; the second for regions that are larger than the first
_LEAST = 8
# Not less where it is for the threads: what lies in several frames is located in each
_SHARED = 16
_BINS = 8
_ROOM = 2**2  # frames that fit in the workspace with `_CHANNELS`, at least
_CHANNELS = 16
_LISTED = 2**14  # regions in frames at a time, each of some 200 bytes,
_MORE = 4  # times as many for the threads, for which few frames are few tasks

Range = tuple[int, int]


def framed(
    plan: RoiPlan,
    regions: Regions,
    reach: tuple[np.ndarray, np.ndarray],
    itemsize: int,
    wanted: int,
) -> Iterator[tuple[Regions, tuple[int, int]]]:
    """The regions by frames, some frames at a time, and the rows and columns of a frame; `reach`
    says where each region is.

    Frames are smaller where there are not so many as `wanted`.
    """
    extents = [(ends[:, 1] - ends[:, 0]).mean() for ends in reach]
    bin = max(extent / bins for extent, bins in zip(extents, plan.bins, strict=True))
    large = max(extents) > _SIDES[0]
    side, channels = _SIDES[int(large)], min(plan.channels, _CHANNELS)
    room = workspace.SCRATCH_BYTES // (_ROOM * channels * itemsize)  # pixels
    while side > _LEAST and side**2 > room:
        side //= 2
    pixels = len(regions.images) * plan.height * plan.width
    least = max(_SHARED, min(_BINS * bin, _SIDES[0]))
    while side > least and pixels < wanted * side**2:
        side //= 2
    frame = min(side, plan.height), min(side, plan.width)
    # Image, rows and columns of frames, each from the first to the last that a region reaches
    place = np.stack([regions.place, regions.place + 1], 1)
    covered = [place, *(np.stack([e[:, 0] // side, (e[:, 1] - 1) // side + 1], 1) for e in reach)]
    window = [(int(e[:, 0].min()), int(e[:, 1].max())) for e in covered]
    for some in _windows(window, covered, _LISTED * (1 if wanted == 1 else _MORE)):
        yield _listed(plan, regions, some, side), frame


def _windows(
    window: list[Range], covered: list[np.ndarray], most: int
) -> Iterator[list[np.ndarray]]:
    """What of frames regions cover, cut so that at most so many are listed at a time."""
    inside = [np.clip(ends, *span) for ends, span in zip(covered, window, strict=True)]
    listed = prod(ends[:, 1] - ends[:, 0] for ends in inside)
    longest = max(range(3), key=lambda axis: window[axis][1] - window[axis][0])
    first, last = window[longest]
    if listed.sum() <= most or last - first == 1:
        if listed.any():
            yield inside
        return
    middle = (first + last) // 2
    for half in (first, middle), (middle, last):
        yield from _windows([*window[:longest], half, *window[longest + 1 :]], covered, most)


def _listed(plan: RoiPlan, regions: Regions, covered: list[np.ndarray], side: int) -> Regions:
    """The regions by the frames that they cover."""
    counts = [ends[:, 1] - ends[:, 0] for ends in covered]
    pairs = prod(counts)
    region = np.repeat(np.arange(len(pairs)), pairs)
    n = np.arange(len(region)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    down, across = -(-plan.height // side), -(-plan.width // side)
    frame = regions.place[region] * down + covered[1][region, 0] + n // counts[2][region]
    frame = frame * across + covered[2][region, 0] + n % counts[2][region]
    by_frame = np.argsort(frame, kind="stable")
    frame, region = frame[by_frame], region[by_frame]
    frames, begins, place = np.unique(frame, return_index=True, return_inverse=True)
    origin = np.stack([frames // across % down * side, frames % across * side], 1)
    integers = (
        regions.counts.reshape(-1, 2)[region].reshape(-1),
        place,
        regions.order[region],
        regions.images[frames // (across * down)],
        np.append(begins, len(region)),
        origin.reshape(-1),
    )
    numbers = regions.numbers.reshape(-1, NUMBERS)[region].reshape(-1)
    return regions_of(numbers, np.concatenate(integers), len(frames), len(frames))
