"""What is known of a call when it is differentiated, and what a framework has to lend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from cudeform import checks
from cudeform.plans import Plan

_EXACT = 2**24  # pixels: beyond, float32 does not tell a whole number from the next
# What frameworks call as NumPy does.
_ALIKE = (
    "floor",
    "exp",
    "amax",
    "where",
    "stack",
    "concatenate",
    "moveaxis",
    "reshape",
    "zeros_like",
)


class Namespace(NamedTuple):
    """What has to be done to a framework's arrays between calls of operators."""

    floor: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    amax: Callable[[Any, int], Any]  # (array, axis)
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

    @classmethod
    def of(cls, module: Any, **others: Any) -> Namespace:
        """Of a module whose functions are named as NumPy's, and `others` where they are not."""
        alike = {name: getattr(module, name) for name in _ALIKE}
        numpy_like = dict(
            constant=lambda array, like: module.asarray(array, like.dtype),
            arange=lambda count, like: module.arange(count, dtype=like.dtype),
            dtype_name=lambda array: array.dtype.name,
            cast=lambda array, name: array.astype(name),
        )
        return cls(**{**alike, **numpy_like, **others})


def images_of(xp: Namespace, boxes: Any) -> Any:
    """The image number of each box, (R, 1, 1, 1): that of no image where it is no whole number.

    On a GPU nobody checked them, and a fraction times a count may be the number of another image.
    """
    image = boxes[:, 0]
    whole = xp.where(image == xp.floor(image), image, -1)
    return xp.reshape(whole, (boxes.shape[0], 1, 1, 1))


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


def check_sides(call: Call, coordinates: str, sizes: Iterable[int]) -> None:
    """Refuse images with sides so large that a pixel and the next one are one number."""
    if call.xp.dtype_name(call.primals[coordinates]) != "float32":
        return
    for size in sizes:
        if isinstance(size, int) and size > _EXACT:  # a symbol of a tracer would get a bound
            checks.fail(
                call.name,
                next(iter(call.plan.gradients)),  # what is read
                f"of at most {_EXACT} pixels along an axis for a derivative along `{coordinates}`",
                size,
                "float32 has no next whole number beyond; float64 has",
                NotImplementedError,
            )


def border(call: Call, start: Any, moved: Any, axis: int) -> tuple[Any, Any]:
    """For coordinates start + moved along y (0) or x (1), of which start is whole: `moved` at the
    lower pixel, and where S has a slope.
    """
    points = call.plan.points
    below = call.xp.floor(moved)
    cell = below + start
    if points.border == "clamp":
        moves = (cell >= 0) & (cell < (points.height, points.width)[axis] - 1)
    else:  # beyond the other edge both samples are 0
        moves = (cell > -1) | ((cell == -1) & (moved > below))
    return below, moves
