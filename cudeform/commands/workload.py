"""What the benchmarks compute: DCNv2 layers, 3x3 with a mask, and how two results are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CPU", "CUDA", "GRADIENTS", "Workload", "error", "numpy_dtype"]

GRADIENTS = ("input", "offset", "weight", "bias", "mask")


@dataclass(frozen=True)
class Workload:
    """A deformable convolution v2: 3x3, stride 1, padding 1, one group, one offset group."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width} -> {self.out_channels}"

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The arguments in float32, and a grad_output.

        The offsets have a standard deviation of two pixels. The magnitudes are those of a trained
        network's layers, so that float16 does not overflow.
        """
        rng = np.random.default_rng(seed)

        def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
            return rng.standard_normal(shape, np.float32) * np.float32(scale)

        n, c, h, w, o = self.batch, self.channels, self.height, self.width, self.out_channels
        return {
            "input": normal(n, c, h, w),
            "offset": normal(n, 18, h, w, scale=2.0),
            "weight": normal(o, c, 3, 3, scale=(9 * c) ** -0.5),
            "bias": normal(o),
            "mask": rng.random((n, 9, h, w), np.float32),
            "grad_output": normal(n, o, h, w),
        }


# The rows of the CPU benchmark: a wide layer, an early one, a late one in a batch, a narrow one.
CPU = (
    Workload(1, 256, 64, 64, 256),
    Workload(1, 64, 128, 128, 64),
    Workload(4, 256, 14, 14, 256),
    Workload(2, 32, 56, 56, 32),
)
# And of the GPU benchmark: a training batch, a detector's finest level.
CUDA = (Workload(8, 256, 64, 64, 256), Workload(2, 256, 100, 152, 256))


def numpy_dtype(name: str) -> np.dtype:
    """A dtype by its name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def error(actual: Any, expected: Any) -> float:
    """The largest difference in units of the largest expected magnitude."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(abs(actual - expected).max() / abs(expected).max())
