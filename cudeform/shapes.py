"""Shapes without arrays: an operator called with them does all its checks and no work.

For frameworks that trace, and ask for the shape of a result before there are any values. A
forward returns a `Shape`; a backward the named tuple of its gradients, with True for those that
it would compute.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from cudeform import arrays
from cudeform.geometry import Points, RoiPlan

__all__ = ["Shape", "empty"]


class Shape:
    """The shape and dtype of an array that is not there; a value that is asked for is 0.

    `plan` is what the operator planned whose result this is.
    """

    flags = SimpleNamespace(c_contiguous=True)
    plan: Any = None

    def __init__(self, shape: tuple[int, ...], dtype: Any, device: Any = None) -> None:
        self.shape, self.dtype, self.device = tuple(shape), np.dtype(dtype), device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def astype(self, dtype: Any) -> Shape:
        return Shape(self.shape, dtype, self.device)

    def reshape(self, *shape: Any) -> Shape:
        return Shape(np.broadcast_to(0, self.shape).reshape(*shape).shape, self.dtype, self.device)

    def __getitem__(self, index: Any) -> Shape:
        return Shape(np.broadcast_to(0, self.shape)[index].shape, self.dtype, self.device)

    def __setitem__(self, index: Any, value: Any) -> None:
        """There is nothing to write to."""


def empty(shape: tuple[int, ...], dtype: Any) -> Shape:
    """This module is the namespace of its arrays, as `numpy` is of NumPy's."""
    return Shape(shape, dtype)


def _forward(plan: Any, input: Shape, *others: Any) -> Any:
    if isinstance(plan, Points):
        return Shape(plan.out_shape(plan.channels), input.dtype)
    output = Shape(plan.out_shape, input.dtype)
    output.plan = plan
    if isinstance(plan, RoiPlan):
        chosen = Shape(plan.argmax_shape, plan.argmax_dtype(input.dtype)) if plan.largest else None
        return output, chosen
    return output


def _backward(plan: Any, *others: Any) -> dict[str, bool]:
    return dict.fromkeys(others[-1], True)  # the last argument of every backward: what it needs


_KIND = arrays.Kind(
    name=__name__,
    backend=SimpleNamespace(forward=_forward, backward=_backward),
    device=lambda shape: shape.device,
    to_host=lambda shape: np.zeros(shape.shape),
)
arrays.register(Shape, _KIND)
