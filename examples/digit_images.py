"""Handwritten digits, scans of 8 x 8 pixels, enlarged and bent by random affine maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform import bilinear_sample

CLASSES = 10
TEST = 597  # scans, the last ones


@dataclass(frozen=True)
class Digits:
    """Scans in [0, 1] and what they show."""

    images: np.ndarray  # (N, 8, 8)
    labels: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Warps:
    """Ranges of random affine maps from a scan to a square canvas."""

    canvas: int = 32  # pixels
    scale: tuple[float, float] = (2.0, 3.4)  # canvas pixels per pixel of the scan
    rotation: float = 45.0  # degrees, either way
    shear: float = 0.4  # of x by y, either way
    stretch: float = 1.3  # of y against x, either way

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Matrices (count, 2, 2) and translations (count, 2) from (y, x) of canvas to scan."""
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation, count))
        scale = np.exp(rng.uniform(*np.log(self.scale), count))
        ratio = np.exp(rng.uniform(-1, 1, count) * np.log(self.stretch) / 2)
        shear = rng.uniform(-self.shear, self.shear, count)
        zero = np.zeros(count)
        turn = _matrices(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))
        lean = _matrices(zero + 1, zero, shear, zero + 1)
        forward = turn @ lean @ _matrices(scale * ratio, zero, zero, scale / ratio)
        # The middle of the scan goes where its corners stay on the canvas, if they can.
        corners = 3.5 * np.abs(forward).sum(axis=2)  # half the extent of the bent scan
        room = np.maximum(self.canvas / 2 - 1 - corners, 0)
        middle = (self.canvas - 1) / 2 + rng.uniform(-1, 1, (count, 2)) * room
        back = np.linalg.inv(forward)
        return back, 3.5 - (back @ middle[..., None])[..., 0]


def _matrices(a: Any, b: Any, c: Any, d: Any) -> np.ndarray:
    """[[a, b], [c, d]] for each element.  # (count, 2, 2)"""
    return np.stack([np.stack([a, b], -1), np.stack([c, d], -1)], -2)


def load() -> tuple[Digits, Digits]:
    """Scikit-learn's digits, those to train with and those to test with."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = (data.images / 16).astype(np.float32), data.target
    return Digits(images[:-TEST], labels[:-TEST]), Digits(images[-TEST:], labels[-TEST:])


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Rows with a 1 where the label is.  # (N, 10)"""
    return np.eye(CLASSES, dtype=np.float32)[labels]


def enlarge(xp: Any, images: np.ndarray, warps: Warps, rng: np.random.Generator) -> Any:
    """Each scan on a canvas of its own, bent at random.  # (N, 1, canvas, canvas)"""
    back, shift = warps.draw(rng, len(images))
    canvas = np.moveaxis(np.indices((warps.canvas, warps.canvas)), 0, -1)  # (y, x) in the last axis
    points = np.einsum("nij,hwj->nhwi", back, canvas) + shift[:, None, None]
    scans = xp.asarray(images[:, None], np.float32)
    return bilinear_sample(scans, xp.asarray(points, np.float32))


def batches(
    xp: Any, digits: Digits, warps: Warps, rng: np.random.Generator, size: int, steps: int
) -> Iterator[tuple[Any, Any]]:
    """Images bent anew and one-hot rows, in a new order in every round of the scans."""
    order = np.empty(0, np.intp)
    for _ in range(steps):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(len(digits))])
        chosen, order = order[:size], order[size:]
        images = enlarge(xp, digits.images[chosen], warps, rng)
        yield images, xp.asarray(one_hot(digits.labels[chosen]))
