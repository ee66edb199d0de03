"""Where an attention looks before it has learned anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first_offsets(heads: int, points: Sequence[int]) -> np.ndarray:
    """Offsets (x, y) in pixels of their level, (M, sum P, 2), for `points` on each level.

    Each head has a direction of its own, and point i of a level is i + 1 pixels away, measured
    along the longer axis: in Deformable DETR the beginning of training.
    """
    angles = np.arange(heads) * (2 * np.pi / heads)
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    ring /= np.abs(ring).max(-1, keepdims=True)
    steps = np.concatenate([np.arange(1, count + 1) for count in points])
    return ring[:, None] * steps[:, None]
