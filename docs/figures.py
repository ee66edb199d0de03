"""The pictures of the documentation, drawn by the library itself where it has something to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data, transform

import cudeform
from cudeform.cpu.regions.extents import locate_regions
from cudeform.directions import first_offsets
from cudeform.plans.regions import RoiPlan

Y_COLOR, X_COLOR, POINT_COLOR, INK = "#3b6fb6", "#d98032", "#b3246b", "#444444"
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "cudeform",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
}


def draw(folder: Path) -> None:
    """Write every picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in PICTURES.items():
            figure().savefig(folder / f"{name}.svg", metadata={"Date": None})


def pixel_grid() -> Figure:
    """A point between four pixel centres, and the weights it gives them."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    height, width, (y, x) = 4, 6, (1.3, 3.6)
    for row, column in np.ndindex(height, width):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#cccccc"))
    rows, columns = np.mgrid[:height, :width]
    axes.plot(columns.ravel(), rows.ravel(), ".", color="#aaaaaa", ms=5)
    for row, column in ((1, 3), (1, 4), (2, 3), (2, 4)):
        weight = (1 - abs(y - row)) * (1 - abs(x - column))
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fc=POINT_COLOR, ec="none", alpha=weight)
        )
        axes.text(column, row + 0.3, f"{weight:.2f}", ha="center", va="center")
        axes.plot([x, column], [y, row], lw=0.8, color=POINT_COLOR)
    axes.plot(x, y, "o", color=POINT_COLOR)
    axes.text(x, -0.62, f"(y, x) = ({y}, {x})", color=POINT_COLOR, weight="bold", ha="center")
    axes.plot([x, x], [y, -0.58], ":", color=POINT_COLOR, lw=1)
    axes.set(xlim=(-0.7, width - 0.3), ylim=(height - 0.3, -0.9), xlabel="x", ylabel="y")
    axes.set(xticks=range(width), yticks=range(height), aspect="equal")
    return figure


def borders() -> Figure:
    """Value and derivative along a row of pixels, for both border rules."""
    row = np.array([2.0, 3.0, 1.0, 2.0])
    x = np.linspace(-2, len(row) + 1, 2001)
    points = np.stack([np.zeros_like(x), x], axis=-1)[None]
    image = np.repeat(row[None], 2, axis=0)[None, None]  # two rows: y = 0 is inside
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    all_axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for (above, below), border in zip(all_axes.T, cudeform.plans.points.BORDERS, strict=True):
        value = cudeform.bilinear_sample(image, points, border=border)[0, 0]
        slope = cudeform.bilinear_sample_backward(
            np.ones_like(value)[None, None], image, points, border=border, needs=["points"]
        ).points[0, :, 1]
        _curve(above, x, value, Y_COLOR)
        _curve(below, x, slope, X_COLOR)
        above.plot(row, "o", color=INK, ms=4)
        above.set_title(f'border="{border}"', family="monospace", fontsize=10)
        below.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        below.set_xlabel("x, in pixels")
        for axes in (above, below):
            axes.axvspan(-0.5, len(row) - 0.5, color="#f3f3f3", zorder=-1)
            axes.set_xticks(range(-2, len(row) + 2))
    all_axes[0, 0].set_ylabel("sample")
    all_axes[1, 0].set_ylabel("derivative by x")
    return figure


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """A line that is broken where the function jumps."""
    jumps = np.flatnonzero(np.abs(np.diff(y)) > 0.1) + 1
    axes.plot(np.insert(x, jumps, np.nan), np.insert(y, jumps, np.nan), color=color, lw=1.8)


def offset_layouts() -> Figure:
    """Which channel holds which tap's y and x, for a 3 x 3 kernel in three libraries."""
    names = cudeform.converters.offsets.LIBRARIES
    figure = Figure(figsize=(7.4, 5.2), layout="constrained")
    grids, strips = figure.subfigures(1, 2, width_ratios=(1, 2.6))
    for axes, name in zip(grids.subplots(len(names)), names, strict=True):
        _tap_numbers(axes, name)
    for axes, name in zip(strips.subplots(len(names)), names, strict=True):
        _channels(axes, name)
    return figure


def _channel_owners(name: str) -> list[tuple[int, str]]:
    """(row-major tap, "y" or "x") of every channel of a library, asked of `convert_offset`."""
    ours = np.arange(18.0).reshape(1, 18, 1, 1)
    theirs = cudeform.convert_offset(ours, "torchvision", name, kernel_size=3)
    return [(int(channel) // 2, "yx"[int(channel) % 2]) for channel in theirs.ravel()]


def _tap_numbers(axes: Axes, name: str) -> None:
    order = list(dict.fromkeys(tap for tap, _ in _channel_owners(name)))
    for number, tap in enumerate(order):
        row, column = divmod(tap, 3)
        axes.add_patch(Rectangle((column, row), 1, 1, fc="#f3f3f3", ec="white", lw=2))
        axes.text(column + 0.5, row + 0.5, str(number), ha="center", va="center", fontsize=11)
    centers = [divmod(tap, 3) for tap in order]
    path = np.array([(column + 0.5, row + 0.5) for row, column in centers])
    axes.plot(*path.T, color=POINT_COLOR, lw=1, alpha=0.35)
    axes.set_title(name, loc="left", family="monospace", weight="bold", fontsize=10)
    axes.set(xlim=(0, 3), ylim=(3, 0), aspect="equal", anchor="W")
    axes.axis("off")


def _channels(axes: Axes, name: str) -> None:
    owners = _channel_owners(name)
    numbers = {tap: n for n, tap in enumerate(dict.fromkeys(tap for tap, _ in owners))}
    for channel, (tap, axis) in enumerate(owners):
        color = Y_COLOR if axis == "y" else X_COLOR
        axes.add_patch(Rectangle((channel, 0), 1, 1, fc=color, ec="white", lw=1.5))
        axes.text(
            channel + 0.5, 0.5, f"{axis}{numbers[tap]}", ha="center", va="center", color="white"
        )
        axes.text(channel + 0.5, 1.25, str(channel), ha="center", va="center", fontsize=7)
    shape = "(N, Ho, Wo, 18)" if name == "dcnv3" else "(N, 18, Ho, Wo)"
    axes.set_title(f"channels of an offset {shape}", loc="left", fontsize=9)
    axes.set(xlim=(0, len(owners)), ylim=(2.2, -0.6))
    axes.axis("off")


BOX = np.array([[0, 2.2, 1.4, 9.3, 6.8]])  # image, x1, y1, x2, y2
POOLINGS = {  # how a box becomes a region, and what a bin reads
    "roi_pool": ("closed", "pixels"),
    "roi_align": ("aligned", "grid_centers"),
    "deform_roi_pool": ("aligned", "grid_centers"),
    "deform_ps_roi_pool": ("msra_aligned", "grid_corners"),
}


def roi_bins() -> Figure:
    """One box under four poolings: its region, the bins, and the points or pixels they read."""
    figure = Figure(figsize=(7.4, 5.4), layout="constrained")
    for axes, (name, (region, reads)) in zip(
        figure.subplots(2, 2).flat, POOLINGS.items(), strict=True
    ):
        _pooling(axes, region, reads, name.startswith("deform"))
        axes.set_title(name, family="monospace", fontsize=10)
    return figure


def _pooling(axes: Axes, region: str, reads: str, moves: bool) -> None:
    height, width, bins = 9, 12, (3, 3)
    plan = RoiPlan(1, 1, height, width, 1, bins, 1.0, region, reads, samples=2, offset_scale=0.1)
    (y0, h, _, reach_y), (x0, w, _, reach_x) = (
        locate_regions(plan, BOX).numbers[:8].reshape(2, 4).tolist()
    )
    for row, column in np.ndindex(height, width):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#dddddd"))
    _, x1, y1, x2, y2 = BOX[0]
    # In the coordinates of a box, pixel 0 begins at 0; its centre is 0 in those of the axes.
    corner = x1 - 0.5, y1 - 0.5
    axes.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, ec=INK, ls=":", lw=1.6))
    offset = np.random.default_rng(11).uniform(-1.6, 1.6, (*bins, 2)) * moves
    for i, j in np.ndindex(*bins):
        size_y, size_x = h / bins[0], w / bins[1]
        y = y0 + i * size_y + reach_y * offset[i, j, 0]
        x = x0 + j * size_x + reach_x * offset[i, j, 1]
        color = (Y_COLOR, X_COLOR, POINT_COLOR)[(i + j) % 3]
        if reads == "pixels":
            top, left = np.floor(y), np.floor(x)
            size_y, size_x = np.ceil(y + size_y) - top, np.ceil(x + size_x) - left
            y, x = top - 0.5, left - 0.5
            ys, xs = top + np.arange(size_y), left + np.arange(size_x)
        else:
            shift = 0.5 if reads == "grid_centers" else 0.0
            ys = y + (np.arange(2) + shift) * size_y / 2
            xs = x + (np.arange(2) + shift) * size_x / 2
        axes.add_patch(Rectangle((x, y), size_x, size_y, fc=color, ec=color, alpha=0.22, lw=1.4))
        points = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
        marker = "s" if reads == "pixels" else "o"
        axes.plot(*points.T, marker, color=color, ms=3.2 if reads == "pixels" else 3.6)
    axes.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal")
    axes.set(xticks=range(0, width, 2), yticks=range(0, height, 2))


def buckets() -> Figure:
    """Eight points in three cells: as they are numbered, as they are placed, in their order."""
    keys = np.array([1, 0, 2, 1, 1, 0, 2, 1])
    placed = np.array([5, 1, 3, 7, 0, 4, 2, 6])
    rows = (np.arange(8), placed, np.argsort(keys, kind="stable"))
    names = ("points", "placed", "in order")
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for y, (name, points) in enumerate(zip(names, rows, strict=True)):
        axes.text(-0.4, 2 * y + 0.5, name, ha="right", va="center", weight="bold")
        for x, point in enumerate(points):
            color = (Y_COLOR, X_COLOR, POINT_COLOR)[keys[point]]
            axes.add_patch(Rectangle((x, 2 * y), 1, 1, fc=color, ec="white", lw=2))
            axes.text(x + 0.5, 2 * y + 0.5, point, ha="center", va="center", color="white")
            if y < 2:
                below = rows[y + 1].tolist().index(point)
                ends = [x + 0.5, below + 0.5], [2 * y + 1.05, 2 * y + 1.95]
                axes.plot(*ends, color=color, lw=1, alpha=0.6)
    counts = np.bincount(keys)
    for cell, start, count in zip("abc", np.cumsum(counts) - counts, counts, strict=True):
        text = f"cell {cell}: {count} points from {start}"
        axes.text(start + count / 2, 5.35, text, ha="center", va="center", fontsize=7)
    for y, text in enumerate(("another way in each run", "always the same")):
        axes.text(8.3, 2 * y + 2.5, text, va="center")
    axes.set(xlim=(-1.8, 11.2), ylim=(5.7, -0.2))
    axes.axis("off")
    return figure


HEADS, POINTS, LEVELS = 8, 4, ((48, 72), (24, 36), (12, 18), (6, 9))
QUERY = (0.49, 0.42)  # (x, y): between the eyes of the cat


def attention() -> Figure:
    """Where the heads of one query read four levels of a photograph, and the colours they get."""
    photograph = data.chelsea() / 255
    levels = [transform.resize(photograph, size, anti_aliasing=True) for size in LEVELS]
    locations = _first_locations()
    value = np.concatenate([level.reshape(1, -1, 1, 3) for level in levels], axis=1)
    read = cudeform.ms_deform_attn(
        value.repeat(HEADS, axis=2),
        LEVELS,
        locations[None, None],
        np.full((1, 1, HEADS, len(LEVELS), POINTS), 1 / (len(LEVELS) * POINTS)),
    ).reshape(HEADS, 3)
    figure = Figure(figsize=(7.4, 3.7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.6, 1))
    whole, others = above.subfigures(1, 2, width_ratios=(1, 1))
    axes = whole.subplots()
    axes.imshow(photograph, extent=(0, 1, 1, 0), aspect="auto")
    for level in range(len(LEVELS)):
        _points(axes, locations[:, level], 5 + 3 * level)
    axes.set(title="one query, all levels", xticks=(), yticks=())
    for level, axes in enumerate(others.subplots(2, 2).flat):
        height, width = LEVELS[level]
        axes.imshow(levels[level], extent=(0, 1, 1, 0), aspect="auto", interpolation="nearest")
        _points(axes, locations[:, level], 4)
        axes.set(title=f"{height} × {width}", xticks=(), yticks=())
    strip = below.subplots()
    for head in range(HEADS):
        color = _head_color(head)
        strip.add_patch(Rectangle((head + 0.05, 0.1), 0.9, 0.8, fc=read[head], ec=color, lw=3))
    strip.set(xlim=(0, HEADS), ylim=(0, 1), title="what each head reads")
    strip.axis("off")
    return figure


def _first_locations() -> np.ndarray:
    """(M, L, P, 2), (x, y), of an attention that has learned nothing."""
    steps = first_offsets(HEADS, [POINTS] * len(LEVELS)).reshape(HEADS, len(LEVELS), POINTS, 2)
    return QUERY + steps / np.array(LEVELS)[:, None, ::-1]  # (W, H)


def _head_color(head: int) -> tuple[float, ...]:
    return tuple(hsv_to_rgb((head / HEADS, 0.75, 0.95)))


def _points(axes: Axes, locations: np.ndarray, size: float) -> None:
    for head, points in enumerate(locations):
        axes.plot(*points.T, "o", color=_head_color(head), ms=size, mec="white", mew=0.6)
    axes.plot(*QUERY, "+", color="white", ms=7, mew=1.6)
    axes.set(xlim=(0, 1), ylim=(1, 0), box_aspect=LEVELS[0][0] / LEVELS[0][1])


PICTURES: dict[str, Callable[[], Figure]] = {
    "pixel_grid": pixel_grid,
    "borders": borders,
    "offset_layouts": offset_layouts,
    "roi_bins": roi_bins,
    "buckets": buckets,
    "attention": attention,
}
