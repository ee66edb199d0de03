"""The figure of the detector: training, precision, boxes, and where a query reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from panels import board, title
from training import Runs

COLOURS = {"no offsets": "#5f6b7a", "fixed offsets": "#2f6fc4", "learned offsets": "#d1156b"}
TRUE, FOUND = "#00e5ff", "#ffd400"
LEVELS = ("#ff5fa2", "#5dff5a")  # points on the fine level and on the coarse one
SIZES = (16, 44)  # their areas
LEAST = 0.3  # score of what is drawn
MEASURE = "average precision at IoU 0.5", "mean of the classes in %"


@dataclass(frozen=True)
class View:
    """What is in a scene and what was found; boxes are x1, y1, x2, y2 in parts of the image."""

    image: np.ndarray  # (H, W)
    true: np.ndarray  # (K, 4)
    boxes: np.ndarray  # (Q, 4)
    scores: np.ndarray  # (Q,)
    labels: np.ndarray  # (Q,)
    query: int  # whose points these are
    middle: np.ndarray  # (2,): x, y of the box around which it reads
    places: np.ndarray  # (M, L, P, 2): x, y
    weights: np.ndarray  # (M, L, P)


def draw(runs: Runs, views: dict[str, list[View]]) -> Figure:
    """A scene, curves and precision; below, a row of scenes for each network that has offsets."""
    names = [
        f"{network}: what is found, and where a query of each scene reads" for network in views
    ]
    figure, axes, rows = board(runs, COLOURS, names, 2.45, MEASURE)
    _draw_scene(axes, next(iter(views.values()))[0])
    title(axes, "a", "a scene and its digits")
    for row, shown in zip(rows, views.values(), strict=True):
        for axes, view in zip(row.subplots(1, len(shown)), shown, strict=True):
            _draw_scene(axes, view)
            _draw_found(axes, view)
            _draw_points(axes, view)
    _draw_legend(rows[0])
    return figure


def _draw_scene(axes: Axes, view: View) -> None:
    """The image and its true boxes."""
    axes.imshow(view.image, cmap="gray", vmax=1.4, extent=(0, 1, 1, 0))
    for box in view.true:
        axes.add_patch(_rectangle(box, ec=TRUE, lw=0.9, ls=(0, (2, 2))))
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))


def _rectangle(box: np.ndarray, **style: Any) -> Rectangle:
    x1, y1, x2, y2 = box
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style)


def _draw_found(axes: Axes, view: View) -> None:
    """The boxes of a good score, with what is said to be in them; the query's is thick."""
    for number in np.flatnonzero(view.scores >= LEAST):
        box, width = view.boxes[number], 2.0 if number == view.query else 0.9
        axes.add_patch(_rectangle(box, ec=FOUND, lw=width))
        text = axes.text(box[0], box[1], f"{view.labels[number]}", color="black", fontsize=7)
        text.set(va="bottom" if box[1] > 0.08 else "top", clip_on=True)
        text.set_bbox({"facecolor": FOUND, "edgecolor": "none", "pad": 0.8})


def _draw_points(axes: Axes, view: View) -> None:
    """The query's points, in the colours of levels: the more one counts, the more it is filled."""
    for level in (1, 0):  # where both have points the fine level's, which are small, are on top
        x, y = view.places[:, level].reshape(-1, 2).T
        share = view.weights[:, level].ravel() / view.weights.max()
        size, colour = SIZES[level], LEVELS[level]
        axes.scatter(x, y, size, colour, alpha=share, lw=0, zorder=3)
        axes.scatter(x, y, size, "none", ec=colour, alpha=0.7, lw=0.5, zorder=3)
    axes.plot(*view.middle, "+", color="white", ms=8, mew=1.5, zorder=4)


def _draw_legend(row: SubFigure) -> None:
    dot = {"marker": "o", "lw": 0, "mec": "black", "mew": 0.3}
    signs = [
        Line2D([], [], color=TRUE, lw=1, ls=(0, (2, 2)), label="true box"),
        Line2D([], [], color=FOUND, lw=2, label="found"),
        Line2D([], [], color="black", marker="+", lw=0, label="reference point"),
        Line2D([], [], color=LEVELS[0], ms=4, label="point: fine level", **dot),
        Line2D([], [], color=LEVELS[1], ms=6, label="coarse level", **dot),
    ]
    place = {"loc": "upper right", "bbox_to_anchor": (1, 1.02), "borderaxespad": 0}
    row.legend(
        handles=signs, ncols=len(signs), frameon=False, fontsize=8, columnspacing=1.2, **place
    )
