"""Align a photograph with a warped copy of itself, by learning where a convolution reads it.

What is learned is where a deformable convolution reads the photograph, so that what it returns is
the warped copy. Nothing but `deform_conv2d` and its backward computes the images and gradients.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from math import log2, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cudeform import deform_conv2d
from cudeform.commands import CommandError, alignment, machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DEFAULTS", "Alignment", "add_arguments", "psnr", "run"]

AMPLITUDE = 0.05  # of the photograph's longer side
SMALLEST = 20  # pixels along the shorter side of the coarsest level


@dataclass(frozen=True)
class Alignment:
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


DEFAULTS = {"image": None, "size": 448, "steps": 25, "seed": 1}


def add_arguments(group: Any) -> None:
    group.add_argument("--image", metavar="FILE", help="default: the cat that scikit-image ships")
    group.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="the photograph is reduced to so many pixels along its longer side; "
        f"default: {DEFAULTS['size']}",
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=f"of gradient descent; default: {DEFAULTS['steps']}",
    )
    group.add_argument(
        "--seed", type=int, metavar="N", help=f"of the warp; default: {DEFAULTS['seed']}"
    )


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in decibels."""
    return -10 * log10(max(float(np.mean((image - target) ** 2)), 1e-20))


def run(given: argparse.Namespace) -> Figure:
    """Learn, print what came out, and draw it."""
    if given.size < 16 or given.steps < 1:
        raise CommandError("expected --size of at least 16 and --steps of at least 1")
    import skimage  # noqa: F401
    from rich.console import Console
    from scipy.ndimage import map_coordinates  # noqa: F401

    from cudeform.commands import figure

    xp, device = machine.namespace(given.device)
    photograph = _photograph(given.image, given.size)
    true_flow = alignment.smooth_flow(
        *photograph.shape[:2], AMPLITUDE * max(photograph.shape), given.seed
    )
    warped = _warp(photograph, true_flow)
    console = Console()
    started = time.perf_counter()
    result = _align(console, xp, photograph, warped, true_flow, given.steps)
    seconds = time.perf_counter() - started
    drawn = figure.draw(result)
    for name, text in (
        ("photograph", given.image or "the cat of scikit-image"),
        ("computed on", device),
        ("time", f"{seconds:.1f} s"),
        *_summary(result),
    ):
        console.print(f"{name:<15} {text}", highlight=False, soft_wrap=True, markup=False)
    return drawn


def _summary(result: Alignment) -> list[tuple[str, str]]:
    height, width = result.warped.shape[:2]
    before, after = result.psnr
    distance, left = np.linalg.norm(result.true_flow, axis=-1), result.endpoint_error
    return [
        ("size", f"{width} x {height} pixels"),
        ("PSNR", f"{before:.2f} dB before, {after:.2f} dB after"),
        ("endpoint error", f"{distance.mean():.2f} px before, {left.mean():.2f} px after"),
    ]


def _photograph(file: str | None, size: int) -> np.ndarray:
    """The photograph in [0, 1], no longer than `size` pixels.  # (H, W, 3)"""
    from skimage import color, data, io, transform, util

    if file is None:
        image = data.chelsea()
    else:
        if not Path(file).is_file():
            raise CommandError(f"no such file: {file}")
        try:
            image = io.imread(file)
        except (OSError, ValueError, SyntaxError) as error:
            raise CommandError(f"cannot read {file}: {error}") from error
    image = util.img_as_float64(image)
    if image.ndim == 2:
        image = color.gray2rgb(image)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or min(image.shape[:2]) < 8:
        raise CommandError(f"expected a photograph, got an array of shape {image.shape}")
    image = image[..., :3]
    scale = size / max(image.shape[:2])
    if scale < 1:
        smaller = [max(8, round(scale * n)) for n in image.shape[:2]]
        image = transform.resize(image, smaller, anti_aliasing=True)
    return image


def _warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The image read along a flow, by cubic splines: not by the sampler under trial."""
    from scipy.ndimage import map_coordinates

    where = np.indices(flow.shape[:2]) + np.moveaxis(flow, -1, 0)  # (2, H, W)
    channels = [
        map_coordinates(c, where, order=3, mode="nearest") for c in np.moveaxis(image, 2, 0)
    ]
    return np.clip(np.stack(channels, -1), 0, 1)


def _align(
    console: Any,
    xp: Any,
    photograph: np.ndarray,
    warped: np.ndarray,
    true_flow: np.ndarray,
    steps: int,
) -> Alignment:
    """Learn the offsets, with a progress bar, and read the photograph along them."""
    from rich import progress

    def images(array: np.ndarray) -> Any:
        return xp.asarray(np.moveaxis(array, -1, 0)[None], xp.float32, order="C")

    def host(array: Any) -> np.ndarray:
        return array.get() if hasattr(array, "get") else array

    moving, fixed = images(photograph), images(warped)
    levels = 1 + max(0, int(log2(min(photograph.shape[:2]) / SMALLEST)))
    bar = progress.Progress(
        progress.TextColumn("learning the offsets"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[state]}"),
        progress.TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=steps * (2**levels - 1), state="compiling")
        flow, offset = alignment.align(
            xp,
            moving,
            fixed,
            levels=levels,
            steps=steps,
            report=lambda level, loss: bar.update(
                task, advance=1, state=f"level {level + 1}/{levels}, loss {loss:.1e}"
            ),
        )
    weight = alignment.filters(xp, 3, xp.float32)[:3]  # the identity of each colour
    aligned = deform_conv2d(moving, offset, weight)
    return Alignment(
        photograph,
        warped,
        np.moveaxis(host(aligned)[0], 0, -1),
        np.moveaxis(host(flow)[0], 0, -1),
        true_flow,
        host(offset),
    )
