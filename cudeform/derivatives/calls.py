"""What is known of a call when it is differentiated, and what a framework has to lend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cudeform.plans import Plan

__all__ = ["Call", "Namespace", "border"]


class Namespace(NamedTuple):
    """What has to be done to a framework's arrays between calls of operators."""

    floor: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]  # (condition, array, array or number)
    stack: Callable[[list[Any], int], Any]  # (arrays, axis)
    concatenate: Callable[[list[Any], int], Any]  # (arrays, axis)
    moveaxis: Callable[[Any, int, int], Any]
    reshape: Callable[[Any, tuple[int, ...]], Any]
    zeros_like: Callable[[Any], Any]
    constant: Callable[[np.ndarray, Any], Any]  # a NumPy array, in the dtype and place of another
    arange: Callable[[int, Any], Any]  # 0, 1, ... below a count, likewise
    dtype_name: Callable[[Any], str]
    cast: Callable[[Any, str], Any]  # (array, name of a dtype)
    still: Callable[[Any], Any]  # an array that is not differentiated
    values: Callable[[Any], np.ndarray | None]  # what is in it; None where that is not known yet


class Call(NamedTuple):
    """An operator with the arguments at which it is differentiated."""

    name: str
    function: Callable[..., Any]
    xp: Namespace
    primals: dict[str, Any]
    options: dict[str, Any]
    plan: Plan

    def __call__(self, **replaced: Any) -> Any:
        """The operator with some arrays replaced, without what is added to the result."""
        given = {**self.primals, "bias": None, **replaced}
        return self.function(**{k: v for k, v in given.items() if v is not None}, **self.options)


def border(call: Call, coordinate: Any, axis: int) -> tuple[Any, Any]:
    """The lower pixel of a coordinate along y (0) or x (1), and where S has a slope there."""
    points = call.plan.points
    if points.border == "clamp":
        size = (points.height, points.width)[axis]
        moves = (coordinate >= 0) & (coordinate < size - 1)
    else:  # beyond the other edge both samples are 0
        moves = coordinate > -1
    return call.xp.floor(coordinate), moves
