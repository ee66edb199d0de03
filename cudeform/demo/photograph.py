"""Align a photograph with a warped copy of itself, by learning where a convolution reads it.

What is learned is where a deformable convolution reads the photograph, so that what it returns is
the warped copy. Nothing but `deform_conv2d` and its backward computes the images and gradients.
"""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
from rich import progress
from scipy.ndimage import map_coordinates

from cudeform import deform_conv2d
from cudeform.demo import alignment
from cudeform.demo.result import Result

AMPLITUDE = 0.05  # of the photograph's longer side
SMALLEST = 20  # pixels along the shorter side of the coarsest level


def compute(xp: Any, photograph: np.ndarray, *, steps: int, seed: int, console: Any) -> Result:
    """Warp the photograph (H, W, 3), learn the offsets with a progress bar, read it along them."""
    height, width = photograph.shape[:2]
    true_flow = alignment.smooth_flow(height, width, AMPLITUDE * max(height, width), seed)
    warped = _warp(photograph, true_flow)

    def images(array: np.ndarray) -> Any:
        return xp.asarray(np.moveaxis(array, -1, 0)[None], xp.float32, order="C")

    def host(array: Any) -> np.ndarray:
        return array.get() if hasattr(array, "get") else array

    moving, fixed = images(photograph), images(warped)
    levels = 1 + max(0, int(log2(min(height, width) / SMALLEST)))
    bar = progress.Progress(
        progress.TextColumn("learning the offsets"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[state]}"),
        progress.TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=steps * (2**levels - 1), state="compiling")

        def report(level: int, loss: float) -> None:
            bar.update(task, advance=1, state=f"level {level + 1}/{levels}, loss {loss:.1e}")

        flow, offset = alignment.align(xp, moving, fixed, levels=levels, steps=steps, report=report)
    weight = alignment.filters(xp, 3, xp.float32)[:3]  # the identity of each colour
    aligned = deform_conv2d(moving, offset, weight)
    return Result(
        photograph,
        warped,
        np.moveaxis(host(aligned)[0], 0, -1),
        np.moveaxis(host(flow)[0], 0, -1),
        true_flow,
        host(offset),
    )


def _warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The image read along a flow, by cubic splines: not by the sampler under trial."""
    where = np.indices(flow.shape[:2]) + np.moveaxis(flow, -1, 0)  # (2, H, W)
    channels = [
        map_coordinates(c, where, order=3, mode="nearest") for c in np.moveaxis(image, 2, 0)
    ]
    return np.clip(np.stack(channels, -1), 0, 1)
