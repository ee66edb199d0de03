"""Scenes of bent digits: nine each in boxes that hold them roughly, or a few anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from digit_images import Digits, Warps, enlarge

ROWS = 3  # of digits in a scene, and columns
PITCH = 26  # pixels from one digit's canvas to the next: canvases overlap
INK = 0.3  # what is brighter belongs to the digit
SIZE = 96  # pixels of a scene whose digits are anywhere, along y and x
FEWEST, MOST = 2, 6  # digits in it
TRIES = 20  # for a place where a digit covers no other


@dataclass(frozen=True)
class Scenes:
    """Images, and for each digit in them a box that was moved and stretched."""

    images: np.ndarray  # (N, 1, H, W)
    boxes: np.ndarray  # (9*N, 5): image, x1, y1, x2, y2
    labels: np.ndarray  # (9*N,)
    shifts: np.ndarray  # (9*N, 2): from the box's centre to the digit's, (y, x) in sizes of the box


def compose(digits: Digits, indices: np.ndarray, warps: Warps, rng: np.random.Generator) -> Scenes:
    """Scenes of the digits of these indices, nine each; computed on the host."""
    canvas, per_scene = warps.canvas, ROWS * ROWS
    count = len(indices) // per_scene
    tiles = enlarge(np, digits.images[indices], warps, rng)[:, 0]
    size = canvas + (ROWS - 1) * PITCH
    images = np.zeros((count, 1, size, size), np.float32)
    corners = np.array([(i, j) for i in range(ROWS) for j in range(ROWS)]) * PITCH
    for place, (top, left) in enumerate(corners):
        part = images[:, 0, top : top + canvas, left : left + canvas]
        np.maximum(part, tiles[place::per_scene], out=part)
    low, high = _extents(tiles)  # (9*N, 2): y, x
    origin = np.tile(corners, (count, 1))
    low, high = low + origin, high + origin
    middle, extent = (low + high) / 2, np.maximum(high - low, 6)
    # What a detector's first stage might propose.
    stretch = np.exp(rng.uniform(np.log(0.8), np.log(1.4), extent.shape))
    proposed = middle + rng.uniform(-0.25, 0.25, middle.shape) * extent
    half = stretch * extent / 2
    image = np.repeat(np.arange(count), per_scene)[:, None]
    yx = np.concatenate([proposed - half, proposed + half], axis=1)
    boxes = np.concatenate([image, yx[:, [1, 0, 3, 2]]], axis=1).astype(np.float32)
    shifts = ((middle - proposed) / (2 * half)).astype(np.float32)
    return Scenes(images, boxes, digits.labels[indices], shifts)


def _extents(tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and, plus one, the last row and column with ink of each tile.  # (N, 2) twice"""
    ink = tiles > INK
    low, high = [], []
    for axis in (2, 1):  # rows are those with ink in any column
        lines = ink.any(axis=axis)
        low.append(lines.argmax(axis=1))
        high.append(lines.shape[1] - lines[:, ::-1].argmax(axis=1))
    return np.stack(low, -1), np.stack(high, -1)


@dataclass(frozen=True)
class Scattered:
    """Images, and for each of K digits in them the box around its ink."""

    images: np.ndarray  # (N, 1, SIZE, SIZE)
    image: np.ndarray  # (K,), in which one it is
    boxes: np.ndarray  # (K, 4): x1, y1, x2, y2 in pixels
    labels: np.ndarray  # (K,)


def scatter(digits: Digits, warps: Warps, rng: np.random.Generator, count: int) -> Scattered:
    """Scenes of a few digits of any sizes, in places where none covers another."""
    chosen = rng.integers(0, len(digits), (count, MOST))
    tiles = enlarge(np, digits.images[chosen.ravel()], warps, rng)[:, 0]
    low, high = (edge.reshape(count, MOST, 2) for edge in _extents(tiles))
    images = np.zeros((count, 1, SIZE, SIZE), np.float32)
    found = []
    for scene, tile in enumerate(tiles.reshape(count, MOST, *tiles.shape[1:])):
        taken = np.empty((0, 4), int)
        for number in range(rng.integers(FEWEST, MOST + 1)):
            (top, left), (bottom, right) = low[scene, number], high[scene, number]
            box = _free_place(taken, bottom - top, right - left, rng)
            if box is not None:
                taken = np.vstack([taken, box])
                x1, y1, x2, y2 = box
                images[scene, 0, y1:y2, x1:x2] = tile[number, top:bottom, left:right]
                found.append((scene, *box, digits.labels[chosen[scene, number]]))
    table = np.array(found)
    return Scattered(images, table[:, 0], table[:, 1:5].astype(np.float32), table[:, 5])


def _free_place(
    taken: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray | None:
    """A box (x1, y1, x2, y2) that meets none of those taken (K, 4), if one is soon found."""
    for _ in range(TRIES):
        y, x = rng.integers(0, (SIZE - height + 1, SIZE - width + 1))
        box = np.array([x, y, x + width, y + height])
        apart = (box[:2] >= taken[:, 2:]) | (box[2:] <= taken[:, :2])
        if apart.any(axis=1).all():
            return box
    return None


def batches(
    digits: Digits, warps: Warps, rng: np.random.Generator, size: int, steps: int
) -> Iterator[Scenes]:
    """So many scenes a step, of digits drawn anew."""
    for _ in range(steps):
        yield compose(digits, rng.integers(0, len(digits), size * ROWS * ROWS), warps, rng)
