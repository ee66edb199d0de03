"""Compare poolings of regions on scenes of handwritten digits, from boxes that fit roughly.

A small network tells which digit is in a box and where its middle is. Between its convolutions and
its answer stands RoI pooling or position-sensitive pooling, each with bins that stay or that move.
Where they stay the block is the same and its branch is left at zero. All four see the same scenes.
"""

from __future__ import annotations

from typing import Any

import digit_images
import numpy as np
import rois_figure
import scenes
import training
from detector import Detector
from digit_images import CLASSES, Digits, Warps, one_hot
from network import Backbone
from rois_figure import Bins
from scenes import Scenes
from training import Run, Runs

from cudeform.layers import Conv2d, DeformPSRoiPool, DeformRoiPool, Linear

NETWORKS = ("RoI", "deformable RoI", "PS RoI", "deformable PS RoI")
WIDTH = 32  # channels of the maps
BINS = 3  # along each axis
STRIDE = 4  # pixels of the image between two of the maps
SIZE = 4  # scenes in a batch
RATE = 1e-2
BRANCH_RATE = 1.0  # of it, for the branches
WARPS = Warps(rotation=20, shear=0.2)
SHOWN = 6  # boxes


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


def train(
    xp: Any, kind: str, seed: int, scans: Digits, test: Scenes, steps: int
) -> tuple[Run, float]:
    """One training and its error in pixels; a seed draws the same scenes for every network."""
    network, rng = build(kind), np.random.default_rng(seed)
    first = next(scenes.batches(scans, WARPS, rng, SIZE, 1))
    params = training.to(xp.asarray, network.init(np.random.default_rng(seed), first.images))
    drawn = scenes.batches(scans, WARPS, rng, SIZE, steps)
    batches = (
        [xp.asarray(array) for array in (s.images, s.boxes, one_hot(s.labels), s.shifts)]
        for s in drawn
    )
    label = f"{kind}, seed {seed + 1}"
    params, losses = training.train(network, params, batches, steps, RATE, label)
    answers, _ = network.forward(params, xp.asarray(test.images), xp.asarray(test.boxes))
    answers = training.on_host(answers)
    run = Run(
        losses,
        training.accuracy(answers[:, :-2], test.labels),
        training.to(training.on_host, params),
        training.learned(network, params),
    )
    return run, middle_error(test, answers[:, -2:])


def middle_error(test: Scenes, shifts: np.ndarray) -> float:
    """Mean distance in pixels of the middles that these shifts say from the true ones."""
    x1, y1, x2, y2 = test.boxes[:, 1:].T
    size = np.stack([y2 - y1, x2 - x1], -1)
    return float(np.linalg.norm((shifts - test.shifts) * size, axis=1).mean())


def moved_bins(runs: Runs, test: Scenes) -> dict[str, list[Bins]]:
    """Of the poolings whose bins move, in the boxes that miss their digits most."""
    distance = np.linalg.norm(test.shifts[:45], axis=1)
    chosen = sorted(np.argsort(-distance)[:SHOWN])
    bins = {}
    for kind, own in runs.items():
        if kind.startswith("deformable"):
            network, params = build(kind), training.best(own).params
            bins[kind] = []
            for index in chosen:
                image, box = test.images[int(test.boxes[index, 0])], test.boxes[index, 1:]
                found = network.bin_centres(params, image, box, int(test.labels[index]))
                bins[kind].append(Bins(image[0], box, *found))
    return bins


def main() -> None:
    options = training.parser(__doc__, "cudeform-rois.png").parse_args()
    steps = options.steps or (2000 if options.long else 200)
    seeds = options.seeds or (5 if options.long else 2)
    xp = training.namespace(options.device)
    scans, digits = digit_images.load()
    whole = np.arange(len(digits) // 9 * 9)
    test = scenes.compose(digits, whole, WARPS, np.random.default_rng(1000))
    jitter = middle_error(test, np.zeros_like(test.shifts))
    print(f"{len(test.labels)} boxes to test with, their middles {jitter:.2f} px off")
    print(f"{steps} steps on {SIZE} scenes of 9 digits, {seeds} times each network")
    runs, errors = {}, {}
    for kind in NETWORKS:
        done = [train(xp, kind, seed, scans, test, steps) for seed in range(seeds)]
        runs[kind] = [run for run, _ in done]
        errors[kind] = f"{np.mean([error for _, error in done]):.2f} px off"
    training.print_table("pooling", runs, middle=errors)
    figure = rois_figure.draw(runs, test, moved_bins(runs, test))
    training.save(figure, options.output)


if __name__ == "__main__":
    main()
