"""Panels of figures that compare trainings: losses and accuracies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from training import Runs


class Board(NamedTuple):
    """A figure that compares trainings."""

    figure: Figure
    first: Axes  # what they were trained on
    rows: list[SubFigure]


def title(axes: Axes, letter: str, text: str) -> None:
    """A panel's title, with its letter in bold."""
    axes.set_title(f"$\\bf{{{letter}}}$  {text}", fontsize=10, loc="left")


ACCURACY = "test accuracy", "% of the test"  # a panel's title, and its axis


def board(
    runs: Runs,
    colours: dict[str, str],
    names: list[str],
    height: float,
    measure: tuple[str, str] = ACCURACY,
) -> Board:
    """Curves and accuracies above, and below a row of this height for each of `names`."""
    heights = (3.2, height * len(names))
    figure = Figure(figsize=(11.4, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    axes = above.subplots(1, 3, width_ratios=(1.0, 1.25, 1.25))
    draw_losses(axes[1], runs, colours)
    title(axes[1], "b", "training")
    draw_accuracies(axes[2], runs, colours)
    title(axes[2], "c", measure[0])
    axes[2].set_xlabel(f"{measure[1]}; a dot is a seed")
    rows = below.subfigures(len(names), 1, squeeze=False)[:, 0]
    for letter, row, name in zip("defghi", rows, names, strict=False):
        row.suptitle(f"$\\bf{{{letter}}}$  {name}", fontsize=10, x=0.008, ha="left")
    return Board(figure, axes[0], list(rows))


def draw_losses(axes: Axes, runs: Runs, colours: dict[str, str]) -> None:
    """Running means of the loss, a thin line for each seed and a thick one for their mean."""
    for network, own in runs.items():
        window = max(1, len(own[0].losses) // 20)
        mean = np.ones(window) / window
        curves = np.array([np.convolve(run.losses, mean, mode="valid") for run in own])
        steps = np.arange(curves.shape[1]) + (window + 1) / 2
        axes.plot(steps, curves.T, color=colours[network], lw=0.6, alpha=0.45)
        axes.plot(steps, curves.mean(0), color=colours[network], lw=2, label=network)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def draw_accuracies(axes: Axes, runs: Runs, colours: dict[str, str]) -> None:
    """A dot for each training, a bar for their mean."""
    names = []
    for place, (network, own) in enumerate(runs.items()):
        colour, shares = colours[network], 100 * np.array([run.accuracy for run in own])
        spread = np.linspace(-0.12, 0.12, len(own)) if len(own) > 1 else np.zeros(1)
        axes.barh(place, shares.mean(), height=0.62, color=colour, alpha=0.3)
        axes.plot(shares, place + spread, "o", color=colour, ms=4.5)
        axes.text(1.5, place, f"{shares.mean():.1f} %", va="center", color=colour, weight="bold")
        names.append(f"{network}\n{own[0].learned:,} parameters")
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
