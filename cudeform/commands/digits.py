"""Compare plain and deformable convolutions on handwritten digits, bent by random affine maps.

The same small network is trained three times for each seed: with two plain, two deformable, and two
modulated deformable convolutions as its last ones. All three see the same images in the same
order. The scans are scikit-learn's; nothing but cudeform's functions computes images and gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cudeform.commands import CommandError, digit_images, machine
from cudeform.commands.comparison import Comparison, Run, with_progress_bar
from cudeform.commands.digit_images import CLASSES, Digits, Warps
from cudeform.commands.network import Backbone, Network, accuracy, count, on_host, train
from cudeform.layers import Conv2d, DeformConv2d, Linear

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DEFAULTS",
    "LONG_NETWORKS",
    "NETWORKS",
    "DigitComparison",
    "build",
    "compare",
    "evaluate",
    "run",
]

DEFAULTS = {"long": False, "seeds": None}

WIDTH = 32  # channels of the maps
WIDER = 46  # with so many in the last two layers, plain has the parameters of modulated
BATCH = 32
QUICK_STEPS, LONG_STEPS = 250, 2500
RATE = 1e-2  # the best of 0.003, 0.006, 0.01 and 0.02 for the plain network
BRANCH_RATE = 0.3  # of it, for the branches

NETWORKS = ("plain", "deformable v1", "modulated v2")
LONG_NETWORKS = ("plain", "plain, wider", "deformable v1", "modulated v2")


@dataclass(frozen=True)
class DigitComparison(Comparison):
    """All trainings, and the images of the test."""

    images: np.ndarray  # (N, 1, canvas, canvas)
    labels: np.ndarray  # (N,)


def build(kind: str) -> Network:
    """The network of one of the names: three convolutions, of which the last two differ."""
    width = WIDER if kind == "plain, wider" else WIDTH

    def last(in_channels: int, stride: int) -> Conv2d | DeformConv2d:
        if kind.startswith("plain"):
            return Conv2d(in_channels, width, 3, stride, padding=1)
        modulated = kind == "modulated v2"
        return DeformConv2d(
            in_channels, width, 3, stride, 1, modulated=modulated, branch_rate=BRANCH_RATE
        )

    convs = {
        "conv1": Conv2d(4, WIDTH, 3, stride=2, padding=1),
        "conv2": last(WIDTH, 1),
        "conv3": last(width, 2),
    }
    return Network(Backbone(convs), Linear(width * 4 * 4, CLASSES))


def run(given: argparse.Namespace) -> Figure:
    """Train, print the table, and draw the figure."""
    import sklearn.datasets  # noqa: F401
    from rich.console import Console

    from cudeform.commands import digits_figure

    seeds = given.seeds if given.seeds is not None else 5 if given.long else 3
    if seeds < 1:
        raise CommandError("expected --seeds of at least 1")
    xp, device = machine.namespace(given.device)
    training, test = digit_images.load()
    networks, steps = (LONG_NETWORKS, LONG_STEPS) if given.long else (NETWORKS, QUICK_STEPS)
    console, started = Console(), time.perf_counter()
    result = with_progress_bar(
        console,
        len(networks) * seeds,
        steps,
        lambda report: compare(xp, training, test, networks, range(seeds), steps, report),
    )
    minutes, rest = divmod(round(time.perf_counter() - started), 60)
    for name, text in (
        ("digits", f"{len(training)} to train with, {len(test)} to test with"),
        ("training", f"{steps} steps on {BATCH} images, {seeds} times each network"),
        ("computed on", device),
        ("time", f"{minutes} min {rest} s"),
    ):
        console.print(f"{name:<15} {text}", highlight=False, soft_wrap=True, markup=False)
    print(f"\n{result.table('last two layers', {'training': result.seconds})}\n")
    return digits_figure.draw(result)


def compare(
    xp: Any,
    training: Digits,
    test: Digits,
    networks: tuple[str, ...],
    seeds: range,
    steps: int,
    report: Callable[[str, int, float], None] = lambda network, seed, loss: None,
) -> DigitComparison:
    """Train each network with each seed; `report` is called after every step."""
    warps = Warps()
    images = digit_images.enlarge(xp, test.images, warps, np.random.default_rng(1000))
    runs = []
    for seed in seeds:
        for name in networks:
            runs.append(
                _train(xp, name, seed, training, (images, test.labels), warps, steps, report=report)
            )
    return DigitComparison(runs, on_host(images), test.labels)


def _train(
    xp: Any,
    name: str,
    seed: int,
    training: Digits,
    test: tuple[Any, np.ndarray],
    warps: Warps,
    steps: int,
    report: Callable[[str, int, float], None],
) -> Run:
    """One training; a seed draws the same images for every network."""
    network, rng = build(name), np.random.default_rng(seed)
    first = digit_images.enlarge(np, training.images[: 4 * BATCH], warps, rng)
    params = network.init(np.random.default_rng(seed), first)
    params = {key: xp.asarray(array) for key, array in params.items()}
    losses = []

    def advanced(loss: float) -> None:
        losses.append(loss)
        report(name, seed, loss)

    started = time.perf_counter()
    images = digit_images.batches(xp, training, warps, rng, BATCH, steps)
    params = train(network, params, images, steps, rate=RATE, report=advanced)
    share = evaluate(network, params, *test)
    seconds = time.perf_counter() - started
    host = {key: on_host(array) for key, array in params.items()}
    return Run(name, seed, losses, share, host, count(network, host), seconds)


def evaluate(network: Network, params: dict[str, Any], images: Any, labels: np.ndarray) -> float:
    """Share of the images whose largest logit is the label's."""
    parts = range(0, len(images), 100)
    logits = [on_host(network.forward(params, images[i : i + 100])[0]) for i in parts]
    return accuracy(np.concatenate(logits), labels)
