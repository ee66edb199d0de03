"""The figure of the digits: training, accuracies, and where the learned filters read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from panels import board, title
from training import Runs

COLOURS = {
    "plain": "#5f6b7a",
    "plain, wider": "#9a8f7c",
    "deformable v1": "#2f6fc4",
    "modulated v2": "#d1156b",
}


@dataclass(frozen=True)
class View:
    """What a unit of the last map reads of an image; positions are (y, x)."""

    image: np.ndarray  # (H, W)
    centre: np.ndarray  # (2,), of the unit
    points: np.ndarray  # (81, 2)
    weights: np.ndarray  # (81,), how much each point counts


def draw(runs: Runs, images: np.ndarray, views: dict[str, list[View]]) -> Figure:
    """Curves and accuracies above; below, a row of images for each network."""
    names = [f"{network}: where a unit (+) of the last map reads (dots)" for network in views]
    figure, first, rows = board(runs, COLOURS, names, 1.95)
    _draw_images(first, images)
    for row, (network, shown) in zip(rows, views.items(), strict=True):
        for axes, view in zip(row.subplots(1, len(shown)), shown, strict=True):
            drawn = _draw_view(axes, view)
        if network == "modulated v2":
            _draw_bar(row, drawn)
    return figure


def _draw_images(axes: Axes, images: np.ndarray) -> None:
    """The first images of the test, in a square of 4 x 4."""
    size = images.shape[-1]
    tiles = images[:16, 0].reshape(4, 4, size, size).swapaxes(1, 2)
    axes.imshow(tiles.reshape(4 * size, 4 * size), cmap="gray")
    axes.set(xticks=[], yticks=[])
    for k in range(1, 4):
        axes.axhline(k * size - 0.5, color="0.45", lw=0.6)
        axes.axvline(k * size - 0.5, color="0.45", lw=0.6)
    title(axes, "a", "test images")


def _draw_view(axes: Axes, view: View) -> Any:
    """An image and the 81 points; their colour and size say how much they count."""
    axes.imshow(view.image, cmap="gray", vmax=1.25)
    plain = np.ptp(view.weights) < 1e-3
    drawn = axes.scatter(
        view.points[:, 1],
        view.points[:, 0],
        s=11 if plain else 5 + 30 * view.weights,
        c="#ffd400" if plain else view.weights,
        cmap=None if plain else "plasma",
        vmin=None if plain else 0,
        vmax=None if plain else 1,
        edgecolors="black",
        linewidths=0.35,
        zorder=3,
    )
    axes.plot(*view.centre[::-1], "+", color="#00e5ff", ms=9, mew=1.8, zorder=4)
    height, width = view.image.shape
    axes.set(xticks=[], yticks=[], xlim=(-3.5, width + 2.5), ylim=(height + 2.5, -3.5))
    axes.set_facecolor("0.13")
    return drawn


def _draw_bar(row: SubFigure, drawn: Any) -> None:
    """The colours of the weights."""
    place = row.add_axes((0.87, 0.955, 0.11, 0.025))
    bar = row.colorbar(drawn, cax=place, orientation="horizontal", ticks=[0, 1])
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.ax.text(-0.06, 0.5, "product of the masks", fontsize=8, ha="right", va="center")
