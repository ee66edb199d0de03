"""Microseconds of one call on a tiny problem, by every route to the same operator, as JSON.

    python benchmarks/overhead.py --json benchmarks/results/overhead.json

What the sizes cost is in `python -m cudeform bench`; here they are so small that what is left is
the cost of being called. torchvision's own operator is measured where it is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cudeform
from cudeform.commands import machine

ROUNDS, CALLS = 40, 100
Route = tuple[str, str, Callable[[], Any], Callable[[], Any] | None]


def microseconds(calls: Sequence[Callable[[], Any]]) -> list[dict[str, float]]:
    """Of each call's rounds, the fastest and the median one.

    They take turns, round by round, so that all see the processor at its fastest and slowest.
    """
    for call in calls:
        for _ in range(10):  # compiles
            call()
    rounds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, rounds, strict=True):
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times.append((time.perf_counter() - start) / CALLS * 1e6)
    return [
        {"best_us": round(min(times), 1), "median_us": round(statistics.median(times), 1)}
        for times in rounds
    ]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"input": (1, 4, 8, 8), "offset": (1, 18, 8, 8), "weight": (4, 4, 3, 3)}
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def numpy_routes() -> Iterator[Route]:
    given = arrays()
    points = np.random.default_rng(1).uniform(0, 7, (1, 16, 2)).astype(np.float32)
    image, grad = given["input"], np.ones((1, 4, 8, 8), np.float32)
    yield (
        "deform_conv2d",
        "NumPy",
        lambda: cudeform.deform_conv2d(**given, padding=1),
        lambda: cudeform.deform_conv2d_backward(grad, **given, padding=1),
    )
    yield (
        "bilinear_sample",
        "NumPy",
        lambda: cudeform.bilinear_sample(image, points),
        lambda: cudeform.bilinear_sample_backward(
            grad[..., :4, :4].reshape(1, 4, 16), image, points
        ),
    )
    boxes = np.array([[0, 0, 0, 5, 5], [0, 1, 1, 6, 7]], np.float32)
    pooled = np.ones((2, 4, 2, 2), np.float32)
    yield (
        "roi_align",
        "NumPy",
        lambda: cudeform.roi_align(image, boxes, 2, 1.0, 2),
        lambda: cudeform.roi_align_backward(pooled, image, boxes, 2, 1.0, 2),
    )


def torch_routes() -> Iterator[Route]:
    """With gradients the forward counts what it saves, and the backward is all of autograd's."""
    import torch

    given = {name: torch.from_numpy(array) for name, array in arrays().items()}
    points = torch.rand(1, 16, 2) * 7

    def conv(input: Any, offset: Any, weight: Any) -> Any:
        return cudeform.deform_conv2d(input, offset, weight, padding=1)

    def sample(input: Any, points: Any) -> Any:
        return cudeform.bilinear_sample(input, points)

    functions = [("deform_conv2d", "torch", conv, list(given.values()))]

    def pool(input: Any, boxes: Any) -> Any:
        return cudeform.roi_align(input, boxes, 2, 1.0, 2)

    boxes = torch.tensor([[0.0, 0, 0, 5, 5], [0, 1, 1, 6, 7]])
    functions.append(("bilinear_sample", "torch", sample, [given["input"], points]))
    functions.append(("roi_align", "torch", pool, [given["input"], boxes]))
    compiled = torch.compile(conv, fullgraph=True)
    functions.append(("deform_conv2d", "torch.compile", compiled, list(given.values())))
    try:
        from torchvision.ops import deform_conv2d, roi_align
    except ImportError:
        pass
    else:

        def peer(input: Any, offset: Any, weight: Any) -> Any:
            return deform_conv2d(input, offset, weight, padding=1)

        def pool_of_peer(input: Any, boxes: Any) -> Any:
            return roi_align(input, boxes, 2, 1.0, 2)

        functions.append(("deform_conv2d", "torchvision", peer, list(given.values())))
        functions.append(("roi_align", "torchvision", pool_of_peer, [given["input"], boxes]))
    for operator, route, function, tensors in functions:
        yield operator, route, lambda f=function, t=tensors: f(*t), None
        leaves = [t.clone().requires_grad_() for t in tensors if t is not boxes]
        fixed = [boxes] if tensors[-1] is boxes else []
        grad = torch.ones_like(function(*tensors))

        def both(f: Any = function, t: Any = leaves, b: Any = fixed, g: Any = grad) -> Any:
            return torch.autograd.grad(f(*t, *b), t, g)

        given_all = [*leaves, *fixed]
        yield operator, f"{route}, with gradients", lambda f=function, t=given_all: f(*t), both


def jax_routes() -> Iterator[Route]:
    """What calls of a compiled program cost, and of one that is looked up for each call."""
    import jax
    import jax.numpy as jnp

    given = tuple(jnp.asarray(array) for array in arrays().values())

    def conv(input: Any, offset: Any, weight: Any) -> Any:
        return cudeform.deform_conv2d(input, offset, weight, padding=1)

    def both(*given: Any) -> Any:
        output, pull = jax.vjp(conv, *given)
        return pull(jnp.ones_like(output))

    def ready(function: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(function(*given))

    yield "deform_conv2d", "jax.jit", ready(jax.jit(conv)), ready(jax.jit(both))
    yield "deform_conv2d", "JAX", ready(conv), None


ROUTES = {"NumPy": numpy_routes, "torch": torch_routes, "JAX": jax_routes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the results here, too")
    given = parser.parse_args()
    routes = []
    for framework, found in ROUTES.items():
        try:
            routes += found()
        except ImportError:
            print(f"{framework} is not installed", file=sys.stderr)
    measured = []
    for operator, route, forward, backward in routes:
        measured.append((operator, route, "forward", forward))
        if backward is not None:
            name = "backward" if route == "NumPy" else "forward_and_backward"
            measured.append((operator, route, name, backward))
    times = microseconds([call for *_, call in measured])
    results = [
        {"operator": operator, "route": route, "pass": name, **found}
        for (operator, route, name, _), found in zip(measured, times, strict=True)
    ]
    for result in results:
        print(json.dumps(result))
    if given.json:
        facts = machine.describe("numpy", "numba", "torch", "torchvision", "jax")
        content = json.dumps({"machine": facts, "results": results}, indent=1)
        Path(given.json).write_text(content + "\n")


if __name__ == "__main__":
    main()
