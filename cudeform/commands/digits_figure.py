"""The figure of the digits: training, accuracies, and where the learned filters read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from cudeform.commands.comparison import Run, draw_accuracies, draw_losses, title
from cudeform.commands.reading import reading_points, unit_at, unit_centre

if TYPE_CHECKING:
    from cudeform.commands.digits import DigitComparison

__all__ = ["draw"]

COLOURS = {
    "plain": "#5f6b7a",
    "plain, wider": "#9a8f7c",
    "deformable v1": "#2f6fc4",
    "modulated v2": "#d1156b",
}
SHOWN = (2, 5, 9)  # digits, each small and large


def draw(result: DigitComparison) -> Figure:
    """Curves and accuracies above; below, a row of images for each network."""
    networks = [name for name in result.networks if name != "plain, wider"]
    figure = Figure(figsize=(11.4, 3.2 + 1.95 * len(networks)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3.2, 1.95 * len(networks)))
    axes = above.subplots(1, 3, width_ratios=(1.0, 1.25, 1.25))
    _draw_images(axes[0], result)
    draw_losses(axes[1], result, COLOURS)
    title(axes[1], "b", "training")
    draw_accuracies(axes[2], result, COLOURS)
    title(axes[2], "c", "test accuracy")
    _draw_points(below, result, networks)
    return figure


def _draw_images(axes: Axes, result: DigitComparison) -> None:
    """The first images of the test, in a square of 4 x 4."""
    size = result.images.shape[-1]
    tiles = result.images[:16, 0].reshape(4, 4, size, size).swapaxes(1, 2)
    axes.imshow(tiles.reshape(4 * size, 4 * size), cmap="gray")
    axes.set(xticks=[], yticks=[])
    for k in range(1, 4):
        axes.axhline(k * size - 0.5, color="0.45", lw=0.6)
        axes.axvline(k * size - 0.5, color="0.45", lw=0.6)
    title(axes, "a", "test images")


def _chosen(result: DigitComparison) -> list[int]:
    """A small and a large image of each digit shown, by their ink."""
    ink = result.images.sum(axis=(1, 2, 3))
    chosen = []
    for digit in SHOWN:
        of_digit = np.flatnonzero(result.labels == digit)
        ordered = of_digit[np.argsort(ink[of_digit])]
        chosen += [int(ordered[len(ordered) // 20]), int(ordered[-1 - len(ordered) // 20])]
    return chosen


def _draw_points(figure: SubFigure, result: DigitComparison, networks: list[str]) -> None:
    chosen = _chosen(result)
    rows = figure.subfigures(len(networks), 1, squeeze=False)[:, 0]
    for letter, row, network in zip("def", rows, networks, strict=False):
        best = result.best(network)
        text = f"$\\bf{{{letter}}}$  {network}: where a unit (+) of the last map reads (dots)"
        row.suptitle(text, fontsize=10, x=0.008, ha="left")
        panels = row.subplots(1, len(chosen))
        for axes, index in zip(panels, chosen, strict=True):
            drawn = _draw_unit(axes, best, result.images[index])
        if network == "modulated v2":
            place = row.add_axes((0.87, 0.955, 0.11, 0.025))
            bar = figure.colorbar(drawn, cax=place, orientation="horizontal", ticks=[0, 1])
            bar.ax.tick_params(labelsize=7, length=2, pad=1)
            bar.ax.text(-0.06, 0.5, "product of the masks", fontsize=8, ha="right", va="center")


def _draw_unit(axes: Axes, run: Run, image: np.ndarray) -> Any:
    """The 81 points of the unit next to the digit's middle."""
    from cudeform.commands.digits import build

    ys, xs = np.indices(image.shape[1:])
    middle = (ys * image[0]).sum() / image.sum(), (xs * image[0]).sum() / image.sum()
    unit = unit_at(middle, units=4)
    points, weights = reading_points(build(run.network), run.params, image, unit)
    y, x = unit_centre(unit)
    axes.imshow(image[0], cmap="gray", vmax=1.25)
    plain = np.ptp(weights) < 1e-3
    drawn = axes.scatter(
        points[:, 1],
        points[:, 0],
        s=11 if plain else 5 + 30 * weights,
        c="#ffd400" if plain else weights,
        cmap=None if plain else "plasma",
        vmin=None if plain else 0,
        vmax=None if plain else 1,
        edgecolors="black",
        linewidths=0.35,
        zorder=3,
    )
    axes.plot(x, y, "+", color="#00e5ff", ms=9, mew=1.8, zorder=4)
    height, width = image.shape[1:]
    axes.set(xticks=[], yticks=[], xlim=(-3.5, width + 2.5), ylim=(height + 2.5, -3.5))
    axes.set_facecolor("0.13")
    return drawn
