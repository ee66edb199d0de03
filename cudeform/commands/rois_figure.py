"""The figure of the poolings of regions: training, accuracies, and where the bins go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cudeform.commands.comparison import Run, draw_accuracies, draw_losses, title
from cudeform.layers import DeformPSRoiPool
from cudeform.layers.plain import inner

if TYPE_CHECKING:
    from cudeform.commands.rois import RoiComparison

__all__ = ["bin_centres", "draw"]

COLOURS = {
    "RoI": "#5f6b7a",
    "deformable RoI": "#2f6fc4",
    "PS RoI": "#a07c3c",
    "deformable PS RoI": "#d1156b",
}
BOX, BIN = "#00e5ff", "#ffd400"
SHOWN = 6


def draw(result: RoiComparison) -> Figure:
    """Scene, curves and accuracies above; below, a row of boxes for each pooling that moves."""
    moving = [name for name in result.networks if name.startswith("deformable")]
    heights = (3.2, 2.15 * len(moving))
    figure = Figure(figsize=(11.4, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    axes = above.subplots(1, 3, width_ratios=(1.0, 1.25, 1.25))
    _draw_scene(axes[0], result)
    draw_losses(axes[1], result, COLOURS)
    title(axes[1], "b", "training")
    draw_accuracies(axes[2], result, COLOURS)
    title(axes[2], "c", "test accuracy")
    chosen = _chosen(result)
    rows = below.subfigures(len(moving), 1, squeeze=False)[:, 0]
    for letter, row, network in zip("de", rows, moving, strict=False):
        text = f"$\\bf{{{letter}}}$  {network} pooling: the box given (blue), its bins (yellow)"
        row.suptitle(text, fontsize=10, x=0.008, ha="left")
        for axes, region in zip(row.subplots(1, len(chosen)), chosen, strict=True):
            _draw_bins(axes, result, result.best(network), region)
    return figure


def _draw_scene(axes: Axes, result: RoiComparison) -> None:
    axes.imshow(result.test.images[0, 0], cmap="gray")
    for image, *box in result.test.boxes:
        if image == 0:
            axes.add_patch(_rectangle(*box, ec=BOX, lw=1.0))
    axes.set(xticks=[], yticks=[])
    title(axes, "a", "a scene and its boxes")


def _rectangle(x1: float, y1: float, x2: float, y2: float, **style) -> Rectangle:
    """A box in continuous coordinates, in which pixel 0 reaches from 0 to 1."""
    return Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **style)


def _chosen(result: RoiComparison) -> list[int]:
    """The boxes of the first scenes whose digits are farthest from the middle."""
    distance = np.linalg.norm(result.test.shifts[:45], axis=1)
    return sorted(np.argsort(-distance)[:SHOWN].tolist())


def bin_centres(result: RoiComparison, run: Run, region: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles (k, k, 2) of the bins in a box, y and x in the image, and a bin's size (y, x).

    Position-sensitive bins move for each class; these are those of the digit that is there.
    """
    from cudeform.commands.rois import build

    network, test = build(run.network), result.test
    box = test.boxes[region : region + 1].copy()
    image = test.images[int(box[0, 0])][None]
    box[0, 0] = 0
    maps, _ = network.backbone.forward(run.params, image)
    found = network.pool.deformation(inner(run.params, "pool"), maps, box)
    if isinstance(network.pool, DeformPSRoiPool):
        label = int(test.labels[region])
        x1, y1, x2, y2 = np.floor(box[0, 1:] + 0.5) + (0, 0, 1, 1)
        offset = found[0, 2 * label : 2 * label + 2]
    else:
        x1, y1, x2, y2 = box[0, 1:]
        offset = found[0][0]
    size = np.array([y2 - y1, x2 - x1])
    k = offset.shape[1]
    regular = (np.stack(np.indices((k, k)), -1) + 0.5) / k
    shift = network.pool.gamma * np.moveaxis(offset[::-1], 0, -1)
    return np.array([y1, x1]) + (regular + shift) * size, size / k


def _draw_bins(axes: Axes, result: RoiComparison, run: Run, region: int) -> None:
    """A box in its surroundings, and its bins where they have moved."""
    image, x1, y1, x2, y2 = result.test.boxes[region]
    axes.imshow(result.test.images[int(image), 0], cmap="gray", vmax=1.25)
    axes.add_patch(_rectangle(x1, y1, x2, y2, ec=BOX, lw=1.6))
    centres, size = bin_centres(result, run, region)
    for y, x in centres.reshape(-1, 2):
        half = size / 2
        edges = (x - half[1], y - half[0], x + half[1], y + half[0])
        axes.add_patch(_rectangle(*edges, ec=BIN, lw=0.9, alpha=0.9))
    axes.plot(centres[..., 1] - 0.5, centres[..., 0] - 0.5, ".", color=BIN, ms=3)
    middle, half = ((y1 + y2) / 2, (x1 + x2) / 2), 22
    axes.set(
        xticks=[],
        yticks=[],
        xlim=(middle[1] - half, middle[1] + half),
        ylim=(middle[0] + half, middle[0] - half),
        facecolor="0.13",
    )
