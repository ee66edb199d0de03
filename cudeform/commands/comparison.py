"""Trainings of several networks with several seeds, and what to print and draw of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cudeform.commands.table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Comparison", "Run", "draw_accuracies", "draw_losses", "title", "with_progress_bar"]


@dataclass(frozen=True)
class Run:
    """One training: of which network with which seed, and what came of it."""

    network: str
    seed: int
    losses: list[float]  # of every step
    accuracy: float  # share of the test
    params: dict[str, np.ndarray]
    learned: int  # numbers in the parameters that were trained
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """All trainings."""

    runs: list[Run]

    def of(self, network: str) -> list[Run]:
        return [run for run in self.runs if run.network == network]

    def best(self, network: str) -> Run:
        return max(self.of(network), key=lambda run: run.accuracy)

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(run.network for run in self.runs))

    def seconds(self, network: str) -> str:
        return f"{np.mean([run.seconds for run in self.of(network)]):.0f} s"

    def table(self, networks: str, more: Mapping[str, Callable[[str], str]]) -> str:
        """Parameters and the test's accuracy over the seeds, and further columns of networks."""
        rows = []
        for network in self.networks:
            runs = self.of(network)
            shares = 100 * np.array([run.accuracy for run in runs])
            spread = f" ± {shares.std(ddof=1):.1f}" if len(runs) > 1 else ""
            rows.append(
                (
                    network,
                    f"{runs[0].learned:,}",
                    f"{shares.mean():.1f} %{spread}",
                    f"{shares.min():.1f}",
                    f"{shares.max():.1f}",
                    *(column(network) for column in more.values()),
                )
            )
        return table((networks, "parameters", "accuracy", "worst", "best", *more), rows)


def with_progress_bar(
    console: Any,
    trainings: int,
    steps: int,
    compute: Callable[[Callable[[str, int, float], None]], Comparison],
) -> Comparison:
    """What `compute` returns; it calls its argument with network, seed and loss after each step."""
    from rich import progress

    bar = progress.Progress(
        progress.TextColumn("training"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[state]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=trainings * steps, state="compiling")

        def advanced(network: str, seed: int, loss: float) -> None:
            bar.update(task, advance=1, state=f"{network}, seed {seed + 1}, loss {loss:.2f}")

        return compute(advanced)


def title(axes: Axes, letter: str, text: str) -> None:
    """A panel's title, with its letter in bold."""
    axes.set_title(f"$\\bf{{{letter}}}$  {text}", fontsize=10, loc="left")


def draw_losses(axes: Axes, result: Comparison, colours: dict[str, str]) -> None:
    """Running means of the loss, a thin line for each seed and a thick one for their mean."""
    for network in result.networks:
        runs = result.of(network)
        window = max(1, len(runs[0].losses) // 20)
        mean = np.ones(window) / window
        curves = np.array([np.convolve(run.losses, mean, mode="valid") for run in runs])
        steps = np.arange(curves.shape[1]) + (window + 1) / 2
        axes.plot(steps, curves.T, color=colours[network], lw=0.6, alpha=0.45)
        axes.plot(steps, curves.mean(0), color=colours[network], lw=2, label=network)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def draw_accuracies(axes: Axes, result: Comparison, colours: dict[str, str]) -> None:
    """A dot for each training, a bar for their mean."""
    names = []
    for place, network in enumerate(result.networks):
        runs, colour = result.of(network), colours[network]
        shares = 100 * np.array([run.accuracy for run in runs])
        spread = np.linspace(-0.12, 0.12, len(runs)) if len(runs) > 1 else np.zeros(1)
        axes.barh(place, shares.mean(), height=0.62, color=colour, alpha=0.3)
        axes.plot(shares, place + spread, "o", color=colour, ms=4.5)
        axes.text(1.5, place, f"{shares.mean():.1f} %", va="center", color=colour, weight="bold")
        names.append(f"{network}\n{runs[0].learned:,} parameters")
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100))
    axes.invert_yaxis()
    axes.set_xlabel("% of the test; a dot is a seed")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
