"""Compare plain and deformable convolutions on handwritten digits, bent by random affine maps.

The same small network is trained three times for each seed: with two plain, two deformable, and two
modulated deformable convolutions as its last ones. All three see the same images in the same
order. The scans are scikit-learn's; nothing but cudeform's functions computes images and gradients.
"""

from __future__ import annotations

from typing import Any

import digit_images
import digits_figure
import numpy as np
import training
from digit_images import CLASSES, Digits, Warps
from digits_figure import View
from network import Backbone, Network
from reading import reading_points, unit_at, unit_centre
from training import Params, Run, Runs

from cudeform.layers import Conv2d, DeformConv2d, Linear

WIDTH = 32  # channels of the maps
WIDER = 46  # with so many in the last two layers, plain has the parameters of modulated
BATCH = 32
RATE = 1e-2  # the best of 0.003, 0.006, 0.01 and 0.02 for the plain network
BRANCH_RATE = 0.3  # of it, for the branches
WARPS = Warps()
SHOWN = (2, 5, 9)  # digits, each small and large

NETWORKS = ("plain", "deformable v1", "modulated v2")
LONG_NETWORKS = ("plain", "plain, wider", "deformable v1", "modulated v2")


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


def train(
    xp: Any, kind: str, seed: int, scans: Digits, test: tuple[Any, np.ndarray], steps: int
) -> Run:
    """One training; a seed draws the same images for every network."""
    network, rng = build(kind), np.random.default_rng(seed)
    first = digit_images.enlarge(np, scans.images[: 4 * BATCH], WARPS, rng)
    params = training.to(xp.asarray, network.init(np.random.default_rng(seed), first))
    batches = digit_images.batches(xp, scans, WARPS, rng, BATCH, steps)
    label = f"{kind}, seed {seed + 1}"
    params, losses = training.train(network, params, batches, steps, RATE, label)
    share = evaluate(network, params, *test)
    return Run(
        losses,
        share,
        training.to(training.on_host, params),
        training.learned(network, params),
    )


def evaluate(network: Network, params: Params, images: Any, labels: np.ndarray) -> float:
    """Share of the images whose largest logit is the label's."""
    parts = [images[i : i + 100] for i in range(0, len(images), 100)]
    logits = [training.on_host(network.forward(params, part)[0]) for part in parts]
    return training.accuracy(np.concatenate(logits), labels)


def examples_of(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """A small and a large image of each digit shown, by their ink."""
    ink = images.sum(axis=(1, 2, 3))
    chosen = []
    for digit in SHOWN:
        of_digit = np.flatnonzero(labels == digit)
        ordered = of_digit[np.argsort(ink[of_digit])]
        chosen += [ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]]
    return [images[index] for index in chosen]


def view(network: Network, params: Params, image: np.ndarray) -> View:
    """Where the unit next to the digit's middle reads the image."""
    ys, xs = np.indices(image.shape[1:])
    middle = (ys * image[0]).sum() / image.sum(), (xs * image[0]).sum() / image.sum()
    unit = unit_at(middle, units=4)
    return View(image[0], unit_centre(unit), *reading_points(network, params, image, unit))


def views(runs: Runs, images: np.ndarray, labels: np.ndarray) -> dict[str, list[View]]:
    """Of the best training of each network but the wider one."""
    shown = examples_of(images, labels)
    return {
        kind: [view(build(kind), training.best(own).params, image) for image in shown]
        for kind, own in runs.items()
        if kind != "plain, wider"
    }


def main() -> None:
    options = training.parser(__doc__, "cudeform-digits.png").parse_args()
    networks = LONG_NETWORKS if options.long else NETWORKS
    steps = options.steps or (2500 if options.long else 250)
    seeds = options.seeds or (5 if options.long else 3)
    xp = training.namespace(options.device)
    scans, test = digit_images.load()
    images = digit_images.enlarge(xp, test.images, WARPS, np.random.default_rng(1000))
    print(f"{len(scans)} digits to train with, {len(test)} to test with")
    print(f"{steps} steps on {BATCH} images, {seeds} times each network")
    runs = {
        kind: [train(xp, kind, seed, scans, (images, test.labels), steps) for seed in range(seeds)]
        for kind in networks
    }
    training.print_table("last two layers", runs)
    images = training.on_host(images)
    figure = digits_figure.draw(runs, images, views(runs, images, test.labels))
    training.save(figure, options.output)


if __name__ == "__main__":
    main()
