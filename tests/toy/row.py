"""Add the toy operator to cudeform: what a contributor writes, and nothing else.

Run with a folder that has plans/, ops/ and cpu/: their files are looked for as if they stood in
the package's folders of these names. Then every bridge is tried.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

import cudeform
import cudeform.cpu
import cudeform.ops
import cudeform.plans
from cudeform import cases, registry
from cudeform.cases import Case


def add(folder):
    """The files, the exports and the row."""
    for package in (cudeform.plans, cudeform.ops, cudeform.cpu):
        package.__path__.append(str(Path(folder) / package.__name__.partition(".")[2]))
    importlib.import_module("cudeform.plans.toy")
    ops = importlib.import_module("cudeform.ops.toy")
    cudeform.toy, cudeform.toy_backward = ops.toy, ops.toy_backward
    cases.toy = lambda rng: iter([Case("plain", arrays(rng), {"gain": 2.0})])
    row = registry.Operator(
        name="toy",
        summary="a multiple of an image for each channel",
        paper="",
    )
    registry.OPERATORS += (row,)


def arrays(rng):
    return {"input": rng.standard_normal((2, 3, 4, 5)), "factor": rng.standard_normal((2, 3))}


def on_numpy(given, expected, grads):
    np.testing.assert_allclose(cudeform.toy(**given, gain=2.0), expected)
    found = cudeform.toy_backward(np.cos(expected), **given, gain=2.0)
    for name in given:
        np.testing.assert_allclose(getattr(found, name), grads[name])


def on_torch(given, expected, grads):
    import torch

    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in given.items()}

    def function(input, factor):
        return cudeform.toy(input, factor, gain=2.0)

    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        output = call(**tensors)
        np.testing.assert_allclose(output.detach().numpy(), expected)
        found = torch.autograd.grad(output.sin().sum(), list(tensors.values()))
        for name, grad in zip(tensors, found, strict=True):
            np.testing.assert_allclose(grad.numpy(), grads[name])
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()))
    mapped = torch.func.vmap(function)(*(t.detach()[None] for t in tensors.values()))
    np.testing.assert_allclose(mapped[0].numpy(), expected)
    torch.library.opcheck(torch.ops.cudeform.toy.default, (*tensors.values(), 2.0))


def on_jax(given, expected, grads):
    import jax

    jax.config.update("jax_enable_x64", True)
    given = {k: jax.numpy.asarray(v) for k, v in given.items()}

    def function(given):
        return cudeform.toy(**given, gain=2.0)

    np.testing.assert_allclose(jax.jit(function)(given), expected)
    found = jax.jit(jax.grad(lambda given: jax.numpy.sin(function(given)).sum()))(given)
    for name in given:
        np.testing.assert_allclose(found[name], grads[name])
    stacked = jax.tree.map(lambda a: a[None], given)
    np.testing.assert_allclose(jax.vmap(function)(stacked)[0], expected)


def main(folder, *frameworks):
    add(folder)
    given = arrays(np.random.default_rng(0))
    factor = given["factor"][..., None, None]
    expected = 2 * given["input"] * factor
    slope = 2 * np.cos(expected)
    grads = {"input": slope * factor, "factor": (slope * given["input"]).sum((2, 3))}
    for name in frameworks:
        {"numpy": on_numpy, "torch": on_torch, "jax": on_jax}[name](given, expected, grads)
        print(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
