"""The figure of the poolings of regions: training, accuracies, and where the bins go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from panels import board, title
from scenes import Scenes
from training import Runs

COLOURS = {
    "RoI": "#5f6b7a",
    "deformable RoI": "#2f6fc4",
    "PS RoI": "#a07c3c",
    "deformable PS RoI": "#d1156b",
}
BOX, BIN = "#00e5ff", "#ffd400"


@dataclass(frozen=True)
class Bins:
    """The bins of one box, in pixels of its image."""

    image: np.ndarray  # (H, W)
    box: np.ndarray  # x1, y1, x2, y2
    centres: np.ndarray  # (k, k, 2): y, x
    size: np.ndarray  # (2,): y, x


def draw(runs: Runs, test: Scenes, bins: dict[str, list[Bins]]) -> Figure:
    """Scene, curves and accuracies above; below, a row of boxes for each pooling that moves."""
    names = [f"{network} pooling: the box given (blue), its bins (yellow)" for network in bins]
    figure, first, rows = board(runs, COLOURS, names, 2.15)
    _draw_scene(first, test)
    for row, shown in zip(rows, bins.values(), strict=True):
        for axes, of_box in zip(row.subplots(1, len(shown)), shown, strict=True):
            _draw_bins(axes, of_box)
    return figure


def _draw_scene(axes: Axes, test: Scenes) -> None:
    axes.imshow(test.images[0, 0], cmap="gray")
    for image, *box in test.boxes:
        if image == 0:
            axes.add_patch(_rectangle(*box, ec=BOX, lw=1.0))
    axes.set(xticks=[], yticks=[])
    title(axes, "a", "a scene and its boxes")


def _rectangle(x1: float, y1: float, x2: float, y2: float, **style: Any) -> Rectangle:
    """A box in continuous coordinates, in which pixel 0 reaches from 0 to 1."""
    return Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **style)


def _draw_bins(axes: Axes, bins: Bins) -> None:
    """A box in its surroundings, and its bins where they have moved."""
    axes.imshow(bins.image, cmap="gray", vmax=1.25)
    axes.add_patch(_rectangle(*bins.box, ec=BOX, lw=1.6))
    half = bins.size / 2
    for y, x in bins.centres.reshape(-1, 2):
        edges = (x - half[1], y - half[0], x + half[1], y + half[0])
        axes.add_patch(_rectangle(*edges, ec=BIN, lw=0.9, alpha=0.9))
    axes.plot(bins.centres[..., 1] - 0.5, bins.centres[..., 0] - 0.5, ".", color=BIN, ms=3)
    x1, y1, x2, y2 = bins.box
    x, y, reach = (x1 + x2) / 2, (y1 + y2) / 2, 22
    axes.set(xticks=[], yticks=[], facecolor="0.13")
    axes.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach))
