"""The figure of the photograph: images, errors, and where the convolution reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cudeform import plot
from cudeform.demo.result import Result

PANEL = 3.9  # inches: the width of a panel
GAP = 0.12  # between columns
TITLE = 0.34  # above a panel
BAR = 0.46  # below the panels that have a colour bar
BAR_BELOW, BAR_TALL = 0.18, 0.072
LEARNED = "#e0006a"


def draw(result: Result) -> Figure:
    """The figure."""
    height, width = result.warped.shape[:2]
    tall = PANEL * height / width
    size = (3 * PANEL + 4 * GAP, 3 * (tall + TITLE) + BAR + GAP)
    figure = Figure(figsize=size)

    def panel(row: int, column: int) -> Axes:
        left = GAP + column * (PANEL + GAP)
        bottom = size[1] - (row + 1) * (tall + TITLE) - (BAR if row == 2 else 0)
        axes = figure.add_axes((left / size[0], bottom / size[1], PANEL / size[0], tall / size[1]))
        axes.set(xticks=[], yticks=[])
        return axes

    panels = [[panel(row, column) for column in range(3)] for row in range(3)]
    _draw_images(panels[0], result)
    _draw_errors(panels[1], result)
    _draw_points(panels[2], result)
    return figure


def _title(axes: Axes, letter: str, text: str) -> None:
    axes.set_title(f"$\\bf{{{letter}}}$  {text}", fontsize=10, loc="left", pad=5)


def _show(axes: Axes, image: np.ndarray, size: tuple[int, int], **options: Any) -> Any:
    """An image, in the middle of axes of this size, in pixels of the photograph."""
    pad = (size[0] - image.shape[0]) / 2, (size[1] - image.shape[1]) / 2
    height, width = image.shape[:2]
    extent = (pad[1] - 0.5, pad[1] + width - 0.5, pad[0] + height - 0.5, pad[0] - 0.5)
    drawn = axes.imshow(image, extent=extent, interpolation="nearest", **options)
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5), facecolor="0.8")
    return drawn


def _colour_bar(axes: Axes, drawn: Any, label: str) -> None:
    tall = axes.figure.get_figheight() * axes.get_position().height
    place = axes.inset_axes((0.0, -BAR_BELOW / tall, 1.0, BAR_TALL / tall))
    low, high = drawn.get_clim()
    ticks = np.linspace(low, high, 5)[1:-1]
    bar = axes.figure.colorbar(
        drawn, cax=place, orientation="horizontal", extend="max", ticks=ticks
    )
    bar.ax.tick_params(labelsize=7.5, length=2, pad=1.5)
    bar.set_label(label, fontsize=8, labelpad=1)
    bar.outline.set_linewidth(0.5)


def _draw_images(row: list[Axes], result: Result) -> None:
    size = result.warped.shape[:2]
    for axes, letter, text, image in zip(
        row,
        "abc",
        ("photograph", "warped copy", "photograph, read at the learned points"),
        (result.photograph, result.warped, result.aligned),
        strict=True,
    ):
        _show(axes, np.clip(image, 0, 1), size)
        _title(axes, letter, text)


def _draw_errors(row: list[Axes], result: Result) -> None:
    """What is left between the images, before and after, and between the flows."""
    size = result.warped.shape[:2]
    target = result.warped[1:-1, 1:-1]
    for axes, letter, text, image, decibels in zip(
        row[:2],
        "de",
        ("|a - b|, before", "|c - b|, after"),
        (result.photograph[1:-1, 1:-1], result.aligned),
        result.psnr,
        strict=True,
    ):
        drawn = _show(axes, np.abs(image - target).mean(-1), size, cmap="magma", vmin=0, vmax=0.2)
        _title(axes, letter, f"{text}: PSNR {decibels:.1f} dB")
        _colour_bar(axes, drawn, "mean absolute error of the colours")
    error = result.endpoint_error
    drawn = _show(row[2], error, size, cmap="viridis", vmin=0, vmax=2)
    _title(row[2], "f", f"endpoint error of the learned flow: mean {error.mean():.2f} px")
    _colour_bar(row[2], drawn, "pixels")


def _draw_points(row: list[Axes], result: Result) -> None:
    """Where the convolution reads the photograph, and the flow that it follows."""
    size = result.warped.shape[:2]
    dim = 0.55 * result.photograph
    spacing = max(4, max(size) // 16)
    nodes = [np.arange(n % spacing // 2, n, spacing) for n in result.offset.shape[2:]]

    _show(row[0], dim, size)
    pixels = [(i, j) for i in nodes[0] for j in nodes[1]]
    plot.sampling_points(row[0], result.offset, size, pixels=pixels, marker_size=8)
    _title(row[0], "g", "where an output pixel (+) reads (dots)")

    top, left, tall, wide = window = _most_deformed(result, max(8, min(size) // 11))
    row[0].add_patch(Rectangle((left, top), wide, tall, fill=False, ec="white", lw=1.4, zorder=5))
    _show(row[1], dim, size)
    pixels = _pixels_reading(result, window, step=5)
    plot.sampling_points(row[1], result.offset, size, pixels=pixels, marker_size=18, origins=False)
    row[1].set(xlim=(left, left + wide), ylim=(top + tall, top))
    _title(row[1], "h", "the frame in g: the nine taps of every fifth pixel")

    _show(row[2], dim, size)
    _draw_lattice(row[2], result.true_flow, 2 * spacing // 3, colors="white", linewidths=2.2)
    _draw_lattice(row[2], result.flow, 2 * spacing // 3, colors=LEARNED, linewidths=0.8)
    _title(row[2], "i", "flow as a warped lattice: true (white), learned (red)")


def _most_deformed(result: Result, tall: int) -> tuple[int, int, int, int]:
    """The window (top, left, height, width) of the photograph where the flow changes most."""
    height, width = result.warped.shape[:2]
    wide = tall * width // height
    change = sum(np.gradient(result.flow[..., c], axis=a) ** 2 for c in (0, 1) for a in (0, 1))
    inner = np.zeros((height, width), bool)
    inner[tall:-tall, wide:-wide] = True
    i, j = np.unravel_index(np.where(inner, change, -1).argmax(), change.shape)
    y, x = np.rint((i, j) + result.flow[i, j]).astype(int)
    return (
        int(np.clip(y - tall // 2, 0, height - tall)),
        int(np.clip(x - wide // 2, 0, width - wide)),
        tall,
        wide,
    )


def _pixels_reading(
    result: Result, window: tuple[int, int, int, int], step: int
) -> list[tuple[int, int]]:
    """Every step-th output pixel whose nine taps are inside a window of the photograph."""
    top, left, tall, wide = window
    size = result.offset.shape[2:]
    taps = result.offset.reshape(3, 3, 2, *size) + np.indices(size)
    taps = taps + np.stack(np.indices((3, 3)), -1)[..., None, None]
    low, high = taps.min((0, 1)), taps.max((0, 1))  # (2, H - 2, W - 2)
    inside = (low[0] > top) & (low[1] > left) & (high[0] < top + tall) & (high[1] < left + wide)
    return [(i, j) for i, j in np.argwhere(inside) if i % step == 0 and j % step == 0]


def _draw_lattice(axes: Axes, flow: np.ndarray, spacing: int, **style: Any) -> None:
    """Where every so many rows and columns of output pixels are read."""
    where = np.moveaxis(np.indices(flow.shape[:2]), 0, -1) + flow  # (H, W, 2)
    first = [n % spacing // 2 for n in flow.shape[:2]]
    rows, columns = where[first[0] :: spacing], where[:, first[1] :: spacing].swapaxes(0, 1)
    lines = [line[:, ::-1] for line in (*rows, *columns)]
    axes.add_collection(LineCollection(lines, **style), autolim=False)
