"""Alignment of two images by a deformable convolution whose offsets are learned.

The moving image is read through a 3x3 deformable convolution with fixed weights: the identity and
the two derivative filters of Sobel, on each colour. What it returns is compared with the plain
convolution of the fixed image by the same weights, and the offsets follow the gradient that
`deform_conv2d_backward` returns for them. A flow field says where every pixel comes from, so tap
(a, b) of output pixel (i, j) is offset by the flow of pixel (i + a, j + b): nine taps, one field.
The field itself is a coarse grid, upsampled by `bilinear_sample`.

Plain array code: `xp` is NumPy or CuPy.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import Any

import numpy as np

from cudeform import (
    bilinear_sample,
    bilinear_sample_backward,
    conv2d,
    deform_conv2d,
    deform_conv2d_backward,
)

TAPS = tuple((a, b) for a in range(3) for b in range(3))


def smooth_flow(height: int, width: int, amplitude: float, seed: int = 0) -> np.ndarray:
    """A random smooth flow in pixels that vanishes at the border.  # (H, W, 2)

    A few sine waves of random direction and phase under a window; its longest vector has the
    length `amplitude`.
    """
    rng = np.random.default_rng(seed)
    y = np.linspace(0, 1, height)[:, None]
    x = np.linspace(0, 1, width)[None, :]
    flow = np.zeros((height, width, 2))
    for _ in range(6):
        frequency = rng.uniform(-2.0, 2.0, size=2)
        phase = rng.uniform(0, 2 * pi, size=2)
        wave = 2 * pi * (frequency[0] * y + frequency[1] * x)
        flow += np.sin(wave[..., None] + phase)
    flow *= (np.sin(pi * y) * np.sin(pi * x))[..., None] ** 0.75
    return flow * (amplitude / np.linalg.norm(flow, axis=-1).max())


def pyramid(xp: Any, image: Any, levels: int) -> list[Any]:
    """The image (1, C, H, W) and its halvings, the smallest first."""
    channels = image.shape[1]
    tap = np.array([1, 4, 6, 4, 1]) / 16
    weight = xp.asarray(np.tile(np.outer(tap, tap), (channels, 1, 1, 1)), image.dtype)
    images = [image]
    for _ in range(levels - 1):
        padded = xp.pad(images[0], ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
        images.insert(0, conv2d(padded, weight, stride=2))
    return images


def filters(xp: Any, channels: int, dtype: Any) -> Any:
    """Identity and Sobel's derivatives along y and x, of each channel.  # (3*C, C, 3, 3)"""
    derivative = np.outer([-1, 0, 1], [1, 2, 1]) / 2
    identity = np.zeros((3, 3))
    identity[1, 1] = 1
    weight = np.zeros((3, channels, channels, 3, 3))
    for channel in range(channels):
        weight[:, channel, channel] = identity, derivative, derivative.T
    return xp.asarray(weight.reshape(-1, channels, 3, 3), dtype)


def flow_offsets(xp: Any, flow: Any) -> Any:
    """Offsets (1, 18, H - 2, W - 2) of a 3x3 kernel without padding from a flow (1, 2, H, W)."""
    height, width = flow.shape[2] - 2, flow.shape[3] - 2
    taps = [flow[:, :, a : a + height, b : b + width] for a, b in TAPS]
    return xp.stack(taps, 1).reshape(1, 18, height, width)


def _flow_offsets_backward(xp: Any, grad_offset: Any) -> Any:
    """The transpose of `flow_offsets`."""
    height, width = grad_offset.shape[2:]
    taps = grad_offset.reshape(9, 2, height, width)
    grad_flow = xp.zeros((1, 2, height + 2, width + 2), grad_offset.dtype)
    for (a, b), tap in zip(TAPS, taps, strict=True):
        grad_flow[0, :, a : a + height, b : b + width] += tap
    return grad_flow


class FlowGrid:
    """A flow field of an image, given by its values on a coarse grid that spans the image."""

    def __init__(self, xp: Any, size: tuple[int, int], spacing: float, dtype: Any):
        self.xp = xp
        self.size = size
        rows, columns = (max(2, round(n / spacing) + 1) for n in size)
        self.values = xp.zeros((1, 2, rows, columns), dtype)
        self.points = self._points(*size)  # (1, H, W, 2)

    def _points(self, height: int, width: int) -> Any:
        """So many points across the grid, first and last on its corners, in grid units."""
        rows, columns = self.values.shape[2:]
        y, x = np.meshgrid(
            np.linspace(0, rows - 1, height), np.linspace(0, columns - 1, width), indexing="ij"
        )
        return self.xp.asarray(np.stack([y, x], -1)[None], self.values.dtype)

    def flow(self) -> Any:
        return bilinear_sample(self.values, self.points, border="clamp")

    def backward(self, grad_flow: Any) -> Any:
        """The gradient of the grid's values from that of the flow."""
        return bilinear_sample_backward(
            grad_flow, self.values, self.points, needs=["input"], border="clamp"
        ).input

    def bending(self) -> Any:
        """Per value, how far it is from the mean of its neighbours: the gradient of smoothness."""
        bend = self.xp.zeros_like(self.values)
        for axis in (2, 3):
            step = self.xp.diff(self.values, axis=axis)
            ahead, behind = [(0, 0)] * 4, [(0, 0)] * 4
            ahead[axis], behind[axis] = (1, 0), (0, 1)
            bend += self.xp.pad(step, ahead) - self.xp.pad(step, behind)
        return bend / bend.size

    def resample(self, coarser: FlowGrid) -> None:
        """Take over the flow of a grid on a smaller image."""
        scale = (self.size[0] / coarser.size[0] + self.size[1] / coarser.size[1]) / 2
        points = coarser._points(*self.values.shape[2:])
        self.values = scale * bilinear_sample(coarser.values, points, border="clamp")


class Adam:
    """Kingma and Ba's optimiser, for one array."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.99):
        self.beta1, self.beta2 = beta1, beta2
        self.mean = self.square = self.step = 0

    def update(self, grad: Any, rate: float) -> Any:
        """What to add to the parameters."""
        self.step += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * grad
        self.square = self.beta2 * self.square + (1 - self.beta2) * grad**2
        mean = self.mean / (1 - self.beta1**self.step)
        square = self.square / (1 - self.beta2**self.step)
        return -rate * mean / (square**0.5 + 1e-12)


def align(
    xp: Any,
    moving: Any,  # (1, C, H, W)
    fixed: Any,  # (1, C, H, W)
    *,
    levels: int,
    steps: int,
    spacing: float = 8.0,
    rate: float = 0.3,
    smoothness: float = 1e-4,
    report: Callable[[int, float], None] = lambda level, loss: None,  # after every step
) -> tuple[Any, Any]:
    """Learn the flow that makes `moving`, read along it, equal to `fixed`.

    The finest level takes so many steps, and each coarser one, cheaper by four, twice as many.
    Returns the flow (1, 2, H, W) and the offsets (1, 18, H - 2, W - 2). `report` is given
    the level, 0 the coarsest, and the loss.
    """
    weight = filters(xp, moving.shape[1], moving.dtype)
    grid = None
    for level, (source, goal) in enumerate(
        zip(pyramid(xp, moving, levels), pyramid(xp, fixed, levels), strict=True)
    ):
        target = conv2d(goal, weight)
        coarser, grid = grid, FlowGrid(xp, source.shape[2:], spacing, moving.dtype)
        if coarser is not None:
            grid.resample(coarser)
        adam = Adam()
        level_steps = steps * 2 ** (levels - 1 - level)
        for step in range(level_steps):
            offset = flow_offsets(xp, grid.flow())
            difference = deform_conv2d(source, offset, weight) - target
            gradients = deform_conv2d_backward(
                difference / difference.size, source, offset, weight, needs=["offset"]
            )
            grad = grid.backward(_flow_offsets_backward(xp, gradients.offset))
            grad += smoothness * grid.bending()
            decay = 0.5 + 0.5 * cos(pi * step / level_steps)
            grid.values += adam.update(grad, rate * decay)
            report(level, float((difference**2).mean()))
    flow = grid.flow()
    return flow, flow_offsets(xp, flow)
