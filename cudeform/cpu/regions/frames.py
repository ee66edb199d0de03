"""The parts of images that gradients are summed up in, where whole images would be too large.

Frames do not overlap, so every sum has one place and the order that it has in a whole image. A
region is listed in each frame that it can reach, and adds to each what falls in it.
"""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language import workspace
from cudeform.cpu.regions.extents import NUMBERS, Regions
from cudeform.plans.regions import RoiPlan

__all__ = ["framed"]

_SIDES = 64, 256  # of a frame, in pixels; the second for regions that are larger than the first
_LEAST = 8
_SHARED = 16  # not less where it is for the threads: each frame locates its regions
_ROOM = 2**4  # frames that fit in the workspace with `_CHANNELS`, at least
_CHANNELS = 16


def framed(
    plan: RoiPlan,
    regions: Regions,
    reach: tuple[np.ndarray, np.ndarray],
    itemsize: int,
    wanted: int,
) -> tuple[Regions, tuple[int, int]]:
    """The regions by frames, and the rows and columns of a frame; `reach` says where each is.

    Frames are smaller where there are not so many as `wanted`.
    """
    spans = [ends[:, 1] - ends[:, 0] for ends in reach]
    side = _SIDES[int(max(span.mean() for span in spans) > _SIDES[0])]
    while side > _LEAST and side**2 * _ROOM * _CHANNELS * itemsize > workspace.SCRATCH_BYTES:
        side //= 2
    pixels = len(regions.images) * plan.height * plan.width
    while side > _SHARED and pixels < wanted * side**2:
        side //= 2
    first = [ends[:, 0] // side for ends in reach]
    counts = [
        (ends[:, 1] - 1) // side - start + 1 for ends, start in zip(reach, first, strict=True)
    ]
    pairs = counts[0] * counts[1]
    region = np.repeat(np.arange(len(pairs)), pairs)
    n = np.arange(len(region)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    down, across = -(-plan.height // side), -(-plan.width // side)
    frame = regions.place[region] * down + first[0][region] + n // counts[1][region]
    frame = frame * across + first[1][region] + n % counts[1][region]
    by_frame = np.argsort(frame, kind="stable")
    frame, region = frame[by_frame], region[by_frame]
    frames, begins, place = np.unique(frame, return_index=True, return_inverse=True)
    origin = np.stack([frames // across % down * side, frames % across * side], 1)
    numbers = regions.numbers.reshape(-1, NUMBERS)[region]
    found = Regions(
        numbers.reshape(-1),
        regions.counts.reshape(-1, 2)[region].reshape(-1),
        place,
        regions.order[region],
        regions.images[frames // (across * down)],
        np.append(begins, len(region)),
        origin.reshape(-1),
    )
    return found, (min(side, plan.height), min(side, plan.width))
