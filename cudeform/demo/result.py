"""What the demonstration computed: images, flows and how far they are from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

import numpy as np


@dataclass(frozen=True)
class Result:
    """The images and flows of a run, as NumPy arrays."""

    photograph: np.ndarray  # (H, W, 3), what the convolution reads
    warped: np.ndarray  # (H, W, 3), what it should return
    aligned: np.ndarray  # (H - 2, W - 2, 3), what it returns: the kernel stays inside
    flow: np.ndarray  # (H, W, 2), learned
    true_flow: np.ndarray  # (H, W, 2)
    offset: np.ndarray  # (1, 18, H - 2, W - 2)

    @property
    def psnr(self) -> tuple[float, float]:
        """Before and after, where there is an aligned image."""
        target = self.warped[1:-1, 1:-1]
        return psnr(self.photograph[1:-1, 1:-1], target), psnr(self.aligned, target)

    @property
    def endpoint_error(self) -> np.ndarray:
        """Distance in pixels of the learned flow from the true one.  # (H, W)"""
        return np.linalg.norm(self.flow - self.true_flow, axis=-1)


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in decibels."""
    return -10 * log10(max(float(np.mean((image - target) ** 2)), 1e-20))
