"""Bilinear sampling at given points: a convolution of one tap that has nothing to multiply."""

from __future__ import annotations

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.cpu.conv import widening
from cudeform.cpu.conv.convolve import convolve
from cudeform.plans.sampling import SamplePlan

__all__ = ["STRIDED", "backward", "forward"]

STRIDED = ("grad_output", "input", "points")  # need not be contiguous


def forward(plan: SamplePlan, input: np.ndarray, points: np.ndarray) -> tuple[np.ndarray]:
    """The samples."""
    if _lie_plain(input, points):  # nothing is copied: what `widening` would do, without a look
        output = np.empty(plan.results[0].shape, input.dtype)
        if output.size:
            convolve(plan.convolution, input, points, None, None, None, output)
        return (output,)
    (output,) = widening.forward(plan.convolution, input, points)
    return (output.reshape(plan.results[0].shape),)


def _lie_plain(input: np.ndarray, points: np.ndarray) -> bool:
    """Whether kernels read both arrays as they are."""
    dense = input.flags.c_contiguous and points.flags.c_contiguous
    return dense and input.dtype == sum_dtype(input.dtype)


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
