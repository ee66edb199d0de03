"""What the points of a block read, copied: of values whose channels do not lie side by side."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.compiler import inner
from cudeform.cpu.language.halves import element, put
from cudeform.cpu.located import DOWN, PIXEL, RIGHT, WIDTH

CORNERS = 4  # of a point


@inner
def gather_corners(block, count, source, view, apart, room, nearest):
    """Copy the corners of points into a room, where corner k of point p is pixel 4*p + k, and let
    the points read them there.

    `apart` says how far the channels of a pixel are from each other in the source, and how much
    further than the pixel beside it the first one of the next row is.
    """
    _, whole = block
    channel, gap = apart
    for p in range(count):
        first, right, width = (
            element(whole, PIXEL + p),
            element(whole, RIGHT + p),
            element(whole, WIDTH + p),
        )
        if first < 0:
            continue
        for k in range(CORNERS if nearest is None else 1):
            pixel = np.int64(first)
            if k & 1:
                pixel += right
            if k & 2:
                pixel += element(whole, DOWN + p)
            at, to = view.start + pixel * view.pitch, (CORNERS * p + k) * view.channels
            if gap:
                at += pixel // width * gap
            for c in range(view.channels):
                room[np.uint64(to + c)] = source[np.uint64(at + c * channel)]
        put(whole, PIXEL + p, CORNERS * p)
        put(whole, RIGHT + p, 1)
        put(whole, DOWN + p, 2)
