"""Derivatives of operators as calls of the operators themselves, for any framework.

An operator is linear in each of its arrays but the coordinates of its sampling points, and
between two columns of pixels a bilinear sample S is linear along x::

    dS/dx = S(at x = floor(x) + 1) - S(at x = floor(x))

and so along y. A directional derivative is therefore a sum of calls of the operator, and as these
are differentiable again, so are derivatives of every order. No backend has code for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cudeform import checks
from cudeform.registry import OPERATORS, Operator

__all__ = ["Namespace", "jvp"]

Arrays = Mapping[str, Any]


class Namespace(NamedTuple):
    """What has to be done to a framework's arrays between calls of operators."""

    floor: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]  # (condition, array, array or number)
    stack: Callable[[list[Any], int], Any]  # (arrays, axis)
    reshape: Callable[[Any, tuple[int, ...]], Any]
    zeros_like: Callable[[Any], Any]
    constant: Callable[[np.ndarray, Any], Any]  # a NumPy array, in the dtype and place of another
    arange: Callable[[int, Any], Any]  # 0, 1, ... below a count, likewise
    dtype_name: Callable[[Any], str]
    cast: Callable[[Any, str], Any]  # (array, name of a dtype)


class _Call(NamedTuple):
    """An operator with the arguments at which it is differentiated."""

    name: str
    function: Callable[..., Any]
    xp: Namespace
    primals: dict[str, Any]
    options: dict[str, Any]

    def __call__(self, **replaced: Any) -> Any:
        """The operator with some arrays replaced, without what is added to the result."""
        given = {**self.primals, "bias": None, **replaced}
        return self.function(**{k: v for k, v in given.items() if v is not None}, **self.options)


def jvp(
    name: str,
    functions: Mapping[str, Callable[..., Any]],
    xp: Namespace,
    primals: Arrays,
    tangents: Arrays,
    options: Mapping[str, Any],
) -> Any:
    """The derivative of an operator's result when its arrays move along `tangents`.

    Parameters
    ----------
    name : str
        An operator of the registry.
    functions : mapping
        The differentiable operators of a framework by name; they take all arguments by name.
    xp : Namespace
        Functions for arrays of the framework.
    primals, tangents : mapping
        Arrays by argument; None, or no entry, is an argument that was not given, or does not move.
    options : mapping
        The other arguments; those that are left out have their defaults.

    Returns
    -------
    array
        Of the shape and dtype of the operator's result; None if nothing moves. Coordinates and
        sums of 16-bit arrays are float32, and the result is rounded once.

    Raises
    ------
    NotImplementedError
        The derivative with respect to one of the arguments is not a sum of calls.
    """
    primals = {k: v for k, v in primals.items() if v is not None}
    (row,) = (row for row in OPERATORS if row.name == name)
    moving = {argument.name for argument in row.arguments if argument.differentiable}
    tangents = {k: v for k, v in tangents.items() if v is not None and k in moving}
    dtype = xp.dtype_name(primals["input"])
    half = dtype in ("float16", "bfloat16")
    if half:
        primals, tangents = _widened(primals, xp, dtype), _widened(tangents, xp, dtype)
    call = _Call(name, functions[name], xp, primals, _filled(row, options))
    total = None
    for term in _terms(call, tangents):
        total = term if total is None else total + term
    return xp.cast(total, dtype) if half and total is not None else total


def _widened(arrays: Arrays, xp: Namespace, dtype: str) -> dict[str, Any]:
    """Those of a 16-bit dtype in float32: a whole number and the next one are both exact there."""
    return {
        name: xp.cast(array, "float32") if xp.dtype_name(array) == dtype else array
        for name, array in arrays.items()
    }


def _filled(row: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an operator, with the defaults of those that are not given."""
    parameters = inspect.signature(row.forward).parameters
    return {option: options.get(option, parameters[option].default) for option in row.options}


def _terms(call: _Call, tangents: dict[str, Any]) -> list[Any]:
    """What each argument's movement adds."""
    if call.options.get("mode") == "max" and "input" in tangents:
        raise NotImplementedError(
            f"{call.name}: with mode='max' there is no derivative of the gradient and none in "
            "forward mode; mode='avg' has both"
        )
    coordinates, rule = _COORDINATES.get(call.name, (None, None))
    added = {"bias": tangents["bias"]} if "bias" in tangents else {}
    terms = []
    for name, tangent in tangents.items():
        if name == coordinates:
            terms += rule(call, tangent)
        elif name == "offset":
            raise NotImplementedError(
                f"{call.name}: the gradient of `offset` has no derivative of its own, and there "
                "is none in forward mode"
            )
        elif name != "bias":
            terms.append(call(**{name: tangent}, **added))
            added = {}
    if added:
        terms.append(call(input=call.xp.zeros_like(call.primals["input"]), **added))
    return terms


def _border(call: _Call, coordinate: Any, axis: int) -> tuple[Any, Any]:
    """The lower pixel of a coordinate along y (0) or x (1), and where S has a slope there."""
    last = call.options["layout"] == "NHWC"
    size = call.primals["input"].shape[axis + (1 if last else 2)]
    if call.options["border"] == "clamp":
        moves = (coordinate >= 0) & (coordinate < size - 1)
    else:  # beyond the other edge both samples are 0
        moves = coordinate > -1
    return call.xp.floor(coordinate), moves


def _slopes_of_points(call: _Call, tangent: Any) -> list[Any]:
    xp, points = call.xp, call.primals["points"]
    terms = []
    for axis in (0, 1):
        low, moves = _border(call, points[..., axis], axis)
        factor = xp.where(moves, tangent[..., axis], 0)
        ends = []
        for end in (low + 1, low):
            pair = [points[..., 0], points[..., 1]]
            pair[axis] = end
            ends.append(call(points=xp.stack(pair, -1)))
        factor = factor[..., None] if call.options["layout"] == "NHWC" else factor[:, None]
        terms.append((ends[0] - ends[1]) * factor)
    return terms


def _slopes_of_offset(call: _Call, tangent: Any) -> list[Any]:
    xp, offset = call.xp, call.primals["offset"]
    axes = offset.shape
    last = call.options["layout"] == "NHWC"
    # (N, taps, 2, Ho, Wo) or (N, Ho, Wo, taps, 2), with the taps of all offset groups
    at = -1 if last else 2
    split = (*axes[:3], axes[3] // 2, 2) if last else (axes[0], axes[1] // 2, 2, *axes[2:])
    pair, tangents = (
        [
            xp.reshape(array, split)[(..., axis) if last else (slice(None), slice(None), axis)]
            for axis in (0, 1)
        ]
        for array in (offset, tangent)
    )
    terms = []
    for axis in (0, 1):
        start = _start(call, offset, axis)
        low, moves = _border(call, pair[axis] + start, axis)
        mask = xp.where(moves, tangents[axis], 0)
        if "mask" in call.primals:
            mask = mask * call.primals["mask"]
        for end, sign in ((low + 1, 1), (low, -1)):
            moved = list(pair)
            moved[axis] = end - start
            term = call(offset=xp.reshape(xp.stack(moved, at), axes), mask=mask)
            terms.append(term if sign == 1 else -term)
    return terms


def _start(call: _Call, offset: Any, axis: int) -> Any:
    """Where the taps read along y (0) or x (1) without an offset, to add to a channel each."""
    xp, options = call.xp, call.options
    last = options["layout"] == "NHWC"
    kernel = call.primals["weight"].shape[2:]
    stride = checks.pair(call.name, "stride", options["stride"], 1)[axis]
    dilation = checks.pair(call.name, "dilation", options["dilation"], 1)[axis]
    before = checks.pad_pairs(call.name, "padding", options["padding"])[axis][0]
    groups = int(offset.shape[3 if last else 1]) // (2 * int(kernel[0]) * int(kernel[1]))
    tap = np.indices([int(k) for k in kernel])[axis].ravel() * dilation
    taps = xp.constant(np.tile(tap, groups), offset)
    pixels = xp.arange(offset.shape[axis + (1 if last else 2)], offset) * stride - before
    if axis == 0:
        pixels = pixels[:, None]  # (Ho, 1)
    return pixels[..., None] + taps if last else pixels + taps[:, None, None]


# By operator: the argument that says where it reads, and what its movement adds.
_COORDINATES: dict[str, tuple[str, Callable[[_Call, Any], list[Any]]]] = {
    "deform_conv2d": ("offset", _slopes_of_offset),
    "bilinear_sample": ("points", _slopes_of_points),
}
