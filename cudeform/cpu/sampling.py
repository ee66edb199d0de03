"""Bilinear sampling at given points: a convolution of one tap that has nothing to multiply."""

from __future__ import annotations

import numpy as np

from cudeform.cpu import precision
from cudeform.geometry import ConvPlan, Points

__all__ = ["backward", "forward"]


def forward(points: Points, input: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """The samples, of shape ``points.out_shape(C)``."""
    return precision.forward(_plan(points), input, locations, None, None, None)


def backward(
    points: Points,
    grad_output: np.ndarray,
    input: np.ndarray,
    locations: np.ndarray,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients of "input" and "points", as far as they are in `needs`."""
    names = {"input": "input", "points": "offset"}
    found = precision.backward(
        _plan(points),
        grad_output,
        input,
        locations,
        None,
        None,
        frozenset(names[name] for name in needs),
    )
    return {name: found[names[name]] for name in needs}


def _plan(points: Points) -> ConvPlan:
    return ConvPlan(points, points.channels, 1, "ieee", deformable=True, modulated=False)
