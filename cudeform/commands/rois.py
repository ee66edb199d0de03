"""Compare poolings of regions on scenes of handwritten digits, from boxes that fit roughly.

A small network tells which digit is in a box and where its middle is. Between its convolutions and
its answer stands RoI pooling or position-sensitive pooling, each with bins that stay or that move.
Where they stay the block is the same and its branch is left at zero. All four see the same scenes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cudeform.commands import CommandError, digit_images, machine, scenes
from cudeform.commands.comparison import Comparison, Run, with_progress_bar
from cudeform.commands.detector import Detector
from cudeform.commands.digit_images import CLASSES, Digits, Warps, one_hot
from cudeform.commands.network import Backbone, accuracy, count, on_host, train
from cudeform.commands.scenes import Scenes
from cudeform.layers import Conv2d, DeformPSRoiPool, DeformRoiPool, Linear

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DEFAULTS", "NETWORKS", "RoiComparison", "build", "compare", "middle_error", "run"]

DEFAULTS = {"long": False, "seeds": None}

NETWORKS = ("RoI", "deformable RoI", "PS RoI", "deformable PS RoI")
WIDTH = 32  # channels of the maps
BINS = 3  # along each axis
STRIDE = 4  # pixels of the image between two of the maps
SIZE = 4  # scenes in a batch
RATE = 1e-2
BRANCH_RATE = 1.0  # of it, for the branches
WARPS = Warps(rotation=20, shear=0.2)
QUICK_STEPS, LONG_STEPS = 200, 2000


@dataclass(frozen=True)
class RoiComparison(Comparison):
    """All trainings, and the scenes of the test."""

    test: Scenes
    errors: dict[tuple[str, int], float]  # by network and seed: pixels from the digit's middle

    def error(self, network: str) -> str:
        errors = [self.errors[run.network, run.seed] for run in self.of(network)]
        return f"{np.mean(errors):.2f} px off"


def build(kind: str) -> Detector:
    """The network with one of the four poolings."""
    rate = BRANCH_RATE if kind.startswith("deformable") else 0.0
    convs = {
        "conv1": Conv2d(4, WIDTH, 3, stride=2, padding=1),
        "conv2": Conv2d(WIDTH, WIDTH, 3, padding=1),
        "conv3": Conv2d(WIDTH, WIDTH, 3, padding=1),
    }
    if "PS" in kind:
        pool = DeformPSRoiPool(WIDTH, CLASSES + 2, BINS, 1 / STRIDE, branch_rate=rate)
        return Detector(Backbone(convs), pool, None)
    pool = DeformRoiPool(WIDTH, BINS, 1 / STRIDE, sampling_ratio=2, branch_rate=rate)
    return Detector(Backbone(convs), pool, Linear(WIDTH * BINS**2, CLASSES + 2))


def run(given: argparse.Namespace) -> Figure:
    """Train, print the table, and draw the figure."""
    import sklearn.datasets  # noqa: F401
    from rich.console import Console

    from cudeform.commands import rois_figure

    seeds = given.seeds if given.seeds is not None else 5 if given.long else 2
    if seeds < 1:
        raise CommandError("expected --seeds of at least 1")
    xp, device = machine.namespace(given.device)
    training, test = digit_images.load()
    steps = LONG_STEPS if given.long else QUICK_STEPS
    console, started = Console(), time.perf_counter()
    result = with_progress_bar(
        console,
        len(NETWORKS) * seeds,
        steps,
        lambda report: compare(xp, training, test, range(seeds), steps, report),
    )
    minutes, rest = divmod(round(time.perf_counter() - started), 60)
    jitter = middle_error(result.test, np.zeros_like(result.test.shifts))
    for name, text in (
        ("boxes", f"{len(result.test.labels)} to test with, their middles {jitter:.2f} px off"),
        ("training", f"{steps} steps on {SIZE} scenes of 9 digits, {seeds} times each network"),
        ("computed on", device),
        ("time", f"{minutes} min {rest} s"),
    ):
        console.print(f"{name:<15} {text}", highlight=False, soft_wrap=True, markup=False)
    print(f"\n{result.table('pooling', {'middle': result.error})}\n")
    return rois_figure.draw(result)


def compare(
    xp: Any,
    training: Digits,
    test: Digits,
    seeds: range,
    steps: int,
    report: Callable[[str, int, float], None] = lambda network, seed, loss: None,
) -> RoiComparison:
    """Train each network with each seed; `report` is called after every step."""
    whole = np.arange(len(test) // 9 * 9)
    shown = scenes.compose(test, whole, WARPS, np.random.default_rng(1000))
    runs, errors = [], {}
    for seed in seeds:
        for name in NETWORKS:
            done, errors[name, seed] = _train(xp, name, seed, training, shown, steps, report)
            runs.append(done)
    return RoiComparison(runs, shown, errors)


def _train(
    xp: Any,
    name: str,
    seed: int,
    training: Digits,
    test: Scenes,
    steps: int,
    report: Callable[[str, int, float], None],
) -> tuple[Run, float]:
    """One training and its error; a seed draws the same scenes for every network."""
    network, rng = build(name), np.random.default_rng(seed)
    first = next(scenes.batches(training, WARPS, rng, SIZE, 1))
    params = network.init(np.random.default_rng(seed), first.images)
    params = {key: xp.asarray(array) for key, array in params.items()}
    losses = []

    def advanced(loss: float) -> None:
        losses.append(loss)
        report(name, seed, loss)

    started = time.perf_counter()
    drawn = scenes.batches(training, WARPS, rng, SIZE, steps)
    batches = (
        tuple(map(xp.asarray, (s.images, s.boxes, one_hot(s.labels), s.shifts))) for s in drawn
    )
    params = train(network, params, batches, steps, rate=RATE, report=advanced)
    answers = on_host(network.forward(params, xp.asarray(test.images), xp.asarray(test.boxes))[0])
    seconds = time.perf_counter() - started
    host = {key: on_host(array) for key, array in params.items()}
    share = accuracy(answers[:, :-2], test.labels)
    done = Run(name, seed, losses, share, host, count(network, host), seconds)
    return done, middle_error(test, answers[:, -2:])


def middle_error(test: Scenes, shifts: np.ndarray) -> float:
    """Mean distance in pixels of the middles that these shifts say from the true ones."""
    x1, y1, x2, y2 = test.boxes[:, 1:].T
    size = np.stack([y2 - y1, x2 - x1], -1)
    return float(np.linalg.norm((shifts - test.shifts) * size, axis=1).mean())
