"""The parts of images that gradients are summed up in, where whole images would be too large.

Frames do not overlap, so every sum has one place and the order that it has in a whole image. A
region is listed in each frame that it can reach, and adds to each what falls in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, isqrt

import numpy as np

from cudeform.cpu.language import workspace
from cudeform.cpu.regions.extents import NUMBERS, Regions, regions_of
from cudeform.plans.regions import RoiPlan

_SIDES = 64, 1024  # of a frame, in pixels; the second for regions that are larger than the first
_LEAST = 8
# Not less where it is for the threads: what lies in several frames is located in each
_SHARED = 16
_BINS = 8
_ROOM = 2**2  # frames that fit in the workspace with `_CHANNELS`, at least
_CHANNELS = 16
_LISTED = 2**14  # regions in frames at a time, each of some 200 bytes,
_MORE = 4  # times as many for the threads, for which few frames are few tasks


def framed(
    plan: RoiPlan, regions: Regions, reach: np.ndarray, itemsize: int, wanted: int
) -> Iterator[tuple[Regions, tuple[int, int]]]:
    """The regions by frames, some frames at a time, and the rows and columns of a frame; `reach`
    says where each region is.

    Frames are smaller where there are not so many as `wanted`.
    """
    extents = (reach[..., 1] - reach[..., 0]).mean(1)
    most, channels = _SIDES[int(extents.max() > _SIDES[0])], min(plan.channels, _CHANNELS)
    room = workspace.SCRATCH_BYTES // (_ROOM * channels * itemsize)  # pixels
    most = min(most, max(isqrt(room), _LEAST))
    pixels = len(regions.images) * plan.height * plan.width
    least = max(_SHARED, min(ceil(_BINS * (extents / plan.bins).max()), _SIDES[0]))
    side = min(most, max(isqrt(pixels // wanted), least))
    frame = min(side, plan.height), min(side, plan.width)
    # Image, rows and columns of frames, each from the first to the last that a region reaches
    covered = np.empty((3, *reach.shape[1:]), np.int64)
    covered[0] = regions.place[:, None] + (0, 1)
    covered[1:] = (reach + (0, side - 1)) // side
    window = np.stack([covered[..., 0].min(1), covered[..., 1].max(1)], 1)
    for some in _windows(window, covered, _LISTED * (1 if wanted == 1 else _MORE)):
        yield _listed(plan, regions, some, side), frame


def _windows(window: np.ndarray, covered: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """What of frames regions cover, cut so that at most so many are listed at a time."""
    inside = np.clip(covered, window[:, None, :1], window[:, None, 1:])
    listed = (inside[..., 1] - inside[..., 0]).prod(0)
    lengths = window[:, 1] - window[:, 0]
    longest = lengths.argmax()
    if listed.sum() <= most or lengths[longest] == 1:
        if listed.any():
            yield inside
        return
    for end in (1, 0):
        half = window.copy()
        half[longest, end] = window[longest].sum() // 2
        yield from _windows(half, covered, most)


def _listed(plan: RoiPlan, regions: Regions, covered: np.ndarray, side: int) -> Regions:
    """The regions by the frames that they cover."""
    counts = covered[..., 1] - covered[..., 0]
    pairs = counts.prod(0)
    region = np.arange(len(pairs)).repeat(pairs)
    n = np.arange(len(region)) - (pairs.cumsum() - pairs).repeat(pairs)
    down, across = -(-plan.height // side), -(-plan.width // side)
    frame = regions.place[region] * down + covered[1, region, 0] + n // counts[2, region]
    frame = frame * across + covered[2, region, 0] + n % counts[2, region]
    by_frame = frame.argsort(kind="stable")
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
