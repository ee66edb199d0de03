"""Detect handwritten digits with a small Deformable DETR, in PyTorch.

Scenes hold a few digits of any sizes. A network with multi-scale deformable attention in its
encoder and decoder says what is where. It is trained three times for each seed: its attentions read
at the reference point alone, at fixed offsets from it, or where they learn to. All see the same
scenes in the same order.
"""

from __future__ import annotations

import sys

import detr_figure
import digit_images
import numpy as np
import scenes
import torch
import training
from detr_figure import View
from detr_network import Detector, locations_and_weights
from digit_images import CLASSES, Digits, Warps
from rich import print
from rich.progress import track
from scenes import Scattered
from set_prediction import (
    Answers,
    Objects,
    average_precision,
    box_precision,
    corners,
    overlap,
    set_loss,
)
from torch import Tensor
from training import Run, Runs

NETWORKS = ("no offsets", "fixed offsets", "learned offsets")
BATCH = 16  # scenes
RATE = 3e-3
CLIP = 1.0  # the longest gradient
WARPS = Warps(canvas=40, scale=(1.6, 4.2), rotation=30, shear=0.2)
TEST, TEST_SEED = 150, 1000  # scenes, and what they are drawn with
SHOWN, CROWDED = 5, 5  # scenes, and how many digits they have at least


def tensors(drawn: Scattered, device: str) -> tuple[Tensor, Objects]:
    """Images and what is in them, with boxes as the network has them."""
    low, high = np.split(drawn.boxes / scenes.SIZE, 2, axis=1)
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1)
    arrays = (drawn.image, boxes, drawn.labels)
    objects = Objects(*(torch.from_numpy(array).to(device) for array in arrays))
    return torch.from_numpy(drawn.images).to(device), objects


def train(network: Detector, scans: Digits, seed: int, steps: int, label: str) -> list[float]:
    """Losses of all steps, each on new scenes; the seed says which."""
    rng, device = np.random.default_rng(seed), network.query.device.type
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, RATE, weight_decay=1e-4, foreach=True)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: training.schedule(s, steps))
    losses = []
    for _ in track(range(steps), label):
        images, objects = tensors(scenes.scatter(scans, WARPS, rng, BATCH), device)
        loss = sum(set_loss(answers, objects) for answers in network(images))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, CLIP)
        optimizer.step()
        rates.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def detect(network: Detector, images: Tensor) -> Answers:
    """What the last layer answers."""
    parts = [network(part)[-1] for part in images.split(50)]
    return Answers(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))


def run(
    kind: str, seed: int, scans: Digits, test: Scattered, steps: int, device: str
) -> tuple[Run, float]:
    """One training with what came of it, and its precision of boxes alone."""
    torch.manual_seed(seed)
    network = Detector(kind, CLASSES).to(device)
    losses = train(network, scans, seed, steps, f"{kind}, seed {seed}")
    images, objects = tensors(test, device)
    answers = detect(network, images)
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    params = {name: array.cpu() for name, array in network.state_dict().items()}
    done = Run(losses, average_precision(answers, objects), params, learned)
    return done, box_precision(answers, objects)


@torch.no_grad()
def view(kind: str, done: Run, test: Scattered, scene: int) -> View:
    """What is found in a scene, and where the last layer reads for the largest digit."""
    network, given = Detector(kind, CLASSES), []
    network.load_state_dict(done.params)
    attention = network.decoder[-1].attention
    attention.register_forward_pre_hook(lambda _, arguments: given.extend(arguments[:2]))
    images, objects = tensors(test, "cpu")
    answers = network(images[scene : scene + 1])[-1]
    places, weights = locations_and_weights(attention, *given)
    own = objects.boxes[objects.image == scene]
    fit = overlap(answers.boxes[0], own[own[:, 2:].prod(1).argmax()])[0]
    scores, labels = answers.logits[0].sigmoid().max(-1)
    query = int((fit * scores).argmax())
    return View(
        test.images[scene, 0],
        corners(own).numpy(),
        corners(answers.boxes[0]).numpy(),
        scores.numpy(),
        labels.numpy(),
        query,
        given[1][0, query, 0, :2].numpy(),
        places[0, query].numpy(),
        weights[0, query].numpy(),
    )


def views(runs: Runs, test: Scattered) -> dict[str, list[View]]:
    """Of the best training of the networks that read at more than a point."""
    shown = np.flatnonzero(np.bincount(test.image) >= CROWDED)[:SHOWN]
    return {
        kind: [view(kind, training.best(own), test, scene) for scene in shown]
        for kind, own in runs.items()
        if kind != "no offsets"
    }


def main() -> None:
    options = training.parser(__doc__, "cudeform-detr.png").parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this PyTorch finds no GPU: --device cpu")
    steps = options.steps or (4000 if options.long else 400)
    seeds = range(options.seeds or (5 if options.long else 2))
    scans, digits = digit_images.load()
    test = scenes.scatter(digits, WARPS, np.random.default_rng(TEST_SEED), TEST)
    print(f"{len(test.labels)} digits in {TEST} scenes to test with, of seed {TEST_SEED}")
    print(f"{steps} steps on {BATCH} scenes, each network with seeds {', '.join(map(str, seeds))}")
    runs, boxes = {}, {}
    for kind in NETWORKS:
        done = [run(kind, seed, scans, test, steps, options.device) for seed in seeds]
        runs[kind] = [own for own, _ in done]
        boxes[kind] = f"{100 * np.mean([share for _, share in done]):.1f} %"
    training.print_table("attention", runs, "AP50", **{"boxes alone": boxes})
    training.save(detr_figure.draw(runs, views(runs, test)), options.output)


if __name__ == "__main__":
    main()
