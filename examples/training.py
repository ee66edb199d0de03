"""How the examples train a network, and what they keep of a training.

Functions of NumPy are given CuPy arrays, too: NumPy's protocols hand such calls to CuPy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from rich import print
from rich.box import SIMPLE
from rich.progress import track
from rich.table import Table

Params = Mapping[str, Mapping[str, Any]]  # layer -> name -> array


class Adam:
    """Kingma and Ba's optimiser, for one array."""

    def __init__(self) -> None:
        self.mean = self.square = 0.0
        self.steps = 0

    def update(self, grad: Any, rate: float, beta1: float = 0.9, beta2: float = 0.99) -> Any:
        """What to add to the array."""
        self.steps += 1
        self.mean = beta1 * self.mean + (1 - beta1) * grad
        self.square = beta2 * self.square + (1 - beta2) * grad**2
        spread = (self.square / (1 - beta2**self.steps)) ** 0.5
        return -rate * (self.mean / (1 - beta1**self.steps)) / (spread + 1e-12)


def train(
    model: Any, params: Params, batches: Iterable[Any], steps: int, rate: float, label: str
) -> tuple[Params, list[float]]:
    """The parameters after a step of Adam on each batch, and the losses, with a progress bar.

    The learning rate is `rate` times the schedule's part; the factors of the model's layers say
    how much of it a parameter gets.
    """
    params = {layer: dict(own) for layer, own in params.items()}
    adams = {
        (layer, name): (Adam(), factor)
        for layer, factors in model.rate_factors.items()
        for name, factor in factors.items()
        if factor
    }
    losses = []
    for step, batch in enumerate(track(batches, label, steps)):
        loss, grads = model.loss_and_gradients(params, *batch)
        now = rate * schedule(step, steps)
        for (layer, name), (adam, factor) in adams.items():
            update = adam.update(grads[layer][name], now * factor)
            params[layer][name] = params[layer][name] + update
        losses.append(loss)
    return params, losses


def schedule(step: int, steps: int) -> float:
    """The part of the learning rate for a step.

    It rises to 1 in the first tenth of the steps and falls to 0 along half a cosine.
    """
    return min(1, 10 * (step + 1) / steps) * (1 + cos(pi * step / steps)) / 2


def learned(model: Any, params: Params) -> int:
    """Numbers in the parameters that are trained."""
    return sum(
        params[layer][name].size
        for layer, factors in model.rate_factors.items()
        for name, factor in factors.items()
        if factor
    )


def cross_entropy(logits: Any, wanted: Any) -> tuple[float, Any]:
    """Mean loss of logits (N, classes) for one-hot rows, and its gradient."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_likelihood = shifted - log_sum
    loss = -float((log_likelihood * wanted).sum()) / len(logits)
    return loss, (np.exp(log_likelihood) - wanted) / len(logits)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is at the label."""
    return float((logits.argmax(axis=1) == labels).mean())


def namespace(device: str) -> Any:
    """NumPy or CuPy."""
    if device == "cpu":
        return np
    import cupy

    return cupy


def on_host(array: Any) -> np.ndarray:
    """A CuPy array as a NumPy array; others as they are."""
    return array.get() if hasattr(array, "get") else array


def to(convert: Callable[[Any], Any], params: Params) -> Params:
    """All arrays of the parameters converted, to a device or from it."""
    return {
        layer: {name: convert(array) for name, array in own.items()}
        for layer, own in params.items()
    }


@dataclass(frozen=True)
class Run:
    """One training, and what came of it."""

    losses: list[float]  # of every step
    accuracy: float  # share of the test, or average precision
    params: Params  # on the host; of PyTorch's networks by the names of their modules
    learned: int  # numbers in the parameters that were trained


Runs = dict[str, list[Run]]  # by network, a training for each seed


def best(runs: list[Run]) -> Run:
    return max(runs, key=lambda run: run.accuracy)


def print_table(
    title: str, runs: Runs, measure: str = "accuracy", **more: Mapping[str, str]
) -> None:
    """Parameters and the test's accuracy over the seeds, and further columns by network."""
    table = Table(title, "parameters", measure, "worst", "best", *more, box=SIMPLE)
    for network, own in runs.items():
        shares = 100 * np.array([run.accuracy for run in own])
        spread = f" ± {shares.std(ddof=1):.1f}" if len(own) > 1 else ""
        numbers = f"{shares.mean():.1f} %{spread}", f"{shares.min():.1f}", f"{shares.max():.1f}"
        table.add_row(
            network, f"{own[0].learned:,}", *numbers, *(column[network] for column in more.values())
        )
    print(table)


def parser(description: str, output: str) -> argparse.ArgumentParser:
    """The options that the examples share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--output", default=output, type=figure_file, metavar="FILE")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--steps", type=positive, metavar="N", help="of each training")
    options.add_argument("--seeds", type=positive, metavar="N", help="trainings of each network")
    options.add_argument(
        "--long",
        action="store_true",
        help="ten times the steps and five seeds: about an hour on two cores",
    )
    return options


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def save(figure: Figure, path: Path) -> None:
    """Write the figure into this file, as PNG where its name has no suffix."""
    figure.savefig(path, dpi=150, format=path.suffix[1:] or "png")
    print(f"figure: {path}")


def figure_file(text: str) -> Path:
    """A file that Matplotlib can write, tried before an hour of work."""
    path, formats = Path(text), FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise argparse.ArgumentTypeError(f"expected a suffix of {', '.join(sorted(formats))}")
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path
