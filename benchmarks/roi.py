"""Times of the poolings of regions on the CPU beside torchvision's, forward and backward.

Each row is one image of features with boxes from small to large. Results are compared before
anything is timed, and the sides take turns, each call right after an untimed one of its own.

    python benchmarks/roi.py --json benchmarks/results/roi.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cudeform
from cudeform.commands import machine
from cudeform.commands.table import table
from cudeform.cpu.threads import get_num_threads

SCALE, BINS = 1 / 16, 7
# Operator, channels, and its options by position after the scale.
WORK = (
    ("roi_align", 256, (2,)),
    ("roi_align", 256, (-1,)),
    ("roi_pool", 256, ()),
    ("ps_roi_align", 490, (2,)),
    ("ps_roi_align", 490, (-1,)),
    ("ps_roi_pool", 490, ()),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    parser.add_argument("--boxes", type=int, default=300)
    parser.add_argument("--size", type=int, nargs=2, default=(50, 76), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(get_num_threads())
    facts = machine.describe("torch", "torchvision")
    results = []
    for name, channels, options in WORK:
        results += measure(name, channels, options, given)
    print(report(results, facts))
    if given.json:
        content = json.dumps({"machine": facts, "results": results}, indent=1)
        Path(given.json).write_text(content + "\n")
    return 0


def boxes_of(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes of all sizes between three pixels and most of the image, and inside it."""
    limit = np.array([size[1], size[0]], float) - 1
    center = rng.uniform(0, limit, (count, 2))
    half = np.exp(rng.uniform(np.log(1.5), np.log(0.4 * limit.min()), (count, 2)))
    rows = np.zeros((count, 5), np.float32)
    rows[:, 1:3] = np.clip(center - half, 0, limit) / SCALE
    rows[:, 3:] = np.clip(center + half, 0, limit) / SCALE
    return rows


def measure(
    name: str, channels: int, options: tuple, given: argparse.Namespace
) -> list[dict[str, Any]]:
    import torch
    import torchvision

    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, channels, *given.size)).astype(np.float32)
    boxes = boxes_of(rng, given.boxes, given.size)
    arguments = (boxes, BINS, SCALE, *options)
    extra = {}
    if name == "roi_pool":  # torchvision keeps the argmax of the forward as well
        output, extra["argmax"] = cudeform.roi_pool(image, *arguments, return_argmax=True)
    else:
        output = getattr(cudeform, name)(image, *arguments)
    grad = rng.standard_normal(output.shape).astype(np.float32)
    backward = getattr(cudeform, name + "_backward")

    operator = getattr(torchvision.ops, name)
    tensor = torch.from_numpy(image).requires_grad_()
    rest = (torch.from_numpy(boxes), *arguments[1:])
    pooled = operator(tensor, *rest)
    passes = {
        "forward": (
            lambda: getattr(cudeform, name)(image, *arguments),
            lambda: operator(tensor.detach(), *rest).numpy(),
        ),
        "backward": (
            lambda: backward(grad, image, *arguments, **extra).input,
            lambda: torch.autograd.grad(pooled, tensor, torch.from_numpy(grad), retain_graph=True)[
                0
            ].numpy(),
        ),
    }
    work = f"{name}, {channels} channels" + (f", ratio {options[0]}" if options else "")
    return [
        {"workload": work, "pass": which, **side_by_side(*sides, given.repeats)}
        for which, sides in passes.items()
    ]


def side_by_side(
    ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray], repeats: int
) -> dict[str, float]:
    """Medians in milliseconds, and how far the results are apart."""
    expected = theirs()
    difference = np.abs(ours() - expected).max() / np.abs(expected).max()
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for call, kept in zip((ours, theirs), times, strict=True):
            call()
            start = time.perf_counter()
            call()
            kept.append(1e3 * (time.perf_counter() - start))
    medians = [statistics.median(kept) for kept in times]
    return {
        "cudeform_ms": round(medians[0], 2),
        "torchvision_ms": round(medians[1], 2),
        "ratio": round(medians[1] / medians[0], 2),
        "difference": float(f"{difference:.1e}"),
    }


def report(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    names = ("workload", "pass", "cudeform_ms", "torchvision_ms", "ratio", "difference")
    rows = [tuple(str(result[name]) for name in names) for result in results]
    title = f"{facts['processor']}, {facts['threads']} threads, {facts['date']}"
    return f"{title}\n{table(names, rows)}"


if __name__ == "__main__":
    sys.exit(main())
