"""Bilinear sampling at given points: a convolution of one tap that has nothing to multiply."""

from __future__ import annotations

import numpy as np

from cudeform.cpu.conv import widening
from cudeform.plans.sampling import SamplePlan

__all__ = ["STRIDED", "backward", "forward"]

STRIDED = ("grad_output", "input", "points")  # need not be contiguous


def forward(plan: SamplePlan, input: np.ndarray, points: np.ndarray) -> tuple[np.ndarray]:
    """The samples."""
    (output,) = widening.forward(plan.convolution, input, points)
    return (output.reshape(plan.results[0].shape),)


def backward(
    plan: SamplePlan,
    grad_output: np.ndarray,
    input: np.ndarray,
    points: np.ndarray,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients of "input" and "points", as far as they are in `needs`."""
    convolution = plan.convolution
    grad_output = grad_output.reshape(convolution.out_shape)
    names = {"input": "input", "points": "offset"}
    wanted = frozenset(names[name] for name in needs)
    found = widening.backward(convolution, grad_output, input, points, needs=wanted)
    return {name: found[names[name]].reshape(plan.gradients[name].shape) for name in needs}
