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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cudeform
from cudeform.commands import machine

ROUNDS, CALLS = 100, 20
Route = tuple[str, str, Callable[[], Any], Callable[[], Any] | None]


def microseconds(call: Callable[[], Any]) -> dict[str, float]:
    """Of the calls' rounds, the fastest and the median one."""
    for _ in range(10):  # compiles
        call()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter() - start) / CALLS * 1e6)
    return {"best_us": round(min(rounds), 1), "median_us": round(statistics.median(rounds), 1)}


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
    functions.append(("bilinear_sample", "torch", sample, [given["input"], points]))
    compiled = torch.compile(conv, fullgraph=True)
    functions.append(("deform_conv2d", "torch.compile", compiled, list(given.values())))
    try:
        from torchvision.ops import deform_conv2d
    except ImportError:
        pass
    else:

        def peer(input: Any, offset: Any, weight: Any) -> Any:
            return deform_conv2d(input, offset, weight, padding=1)

        functions.append(("deform_conv2d", "torchvision", peer, list(given.values())))
    for operator, route, function, tensors in functions:
        yield operator, route, lambda f=function, t=tensors: f(*t), None
        leaves = [t.clone().requires_grad_() for t in tensors]
        grad = torch.ones_like(function(*tensors))

        def both(f: Any = function, t: Any = leaves, g: Any = grad) -> Any:
            return torch.autograd.grad(f(*t), t, g)

        yield operator, f"{route}, with gradients", lambda f=function, t=leaves: f(*t), both


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
    results = []
    for operator, route, forward, backward in routes:
        found = {"operator": operator, "route": route, "forward": microseconds(forward)}
        if backward is not None:
            name = "backward" if route == "NumPy" else "forward_and_backward"
            found[name] = microseconds(backward)
        results.append(found)
        print(json.dumps(found), flush=True)
    if given.json:
        facts = machine.describe("numpy", "numba", "torch", "torchvision", "jax")
        content = json.dumps({"machine": facts, "results": results}, indent=1)
        Path(given.json).write_text(content + "\n")


if __name__ == "__main__":
    main()
