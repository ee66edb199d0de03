"""Derivatives of operators as calls of the operators themselves, for any framework.

An operator is linear in each of its arrays but the coordinates of its sampling points, and
logits, which are replaced by the factors that they stand for. Between two columns of pixels a
bilinear sample S is linear along x::

    dS/dx = S(at x = floor(x) + 1) - S(at x = floor(x))

and so along y. A directional derivative is therefore a sum of calls of the operator, and as these
are differentiable again, so are derivatives of every order. No backend has code for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from cudeform.derivatives.calls import Call, Namespace
from cudeform.derivatives.largest import at_largest
from cudeform.derivatives.shares import of_shares
from cudeform.plans import plan
from cudeform.registry import Operator, row_of

__all__ = ["Namespace", "jvp", "reads_boxes"]

Arrays = Mapping[str, Any]


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
        The derivative takes the values of `boxes`, see `reads_boxes`, and they are not known yet.
    """
    primals = {k: v for k, v in primals.items() if v is not None}
    row = row_of(name)
    moving = {argument.name for argument in row.arguments if argument.differentiable}
    tangents = {k: v for k, v in tangents.items() if v is not None and k in moving}
    dtype = xp.dtype_name(primals[row.images])
    half = dtype in ("float16", "bfloat16")
    if half:
        primals, tangents = _widened(primals, xp, dtype), _widened(tangents, xp, dtype)
    options = _filled(row, options)
    planned = plan(name, primals, options)
    call = Call(name, functions[name], xp, primals, options, planned)
    if row.apart:
        slopes = import_module(f"{__name__}.{row.slopes}")
        call, tangents = slopes.apart(call, row.apart, functions[row.apart], tangents)
        row = row_of(row.apart)
    if options.get("softmax"):
        call, tangents = of_shares(row, call, tangents)
    total = None
    for term in _terms(row, call, tangents):
        total = term if total is None else total + term
    return xp.cast(total, dtype) if half and total is not None else total


def reads_boxes(name: str, moving: Collection[str], options: Mapping[str, Any]) -> bool:
    """Whether `jvp` along the arguments `moving` takes the values of `boxes`, not just the array.

    A bin with as many samples as it has pixels is followed sample by sample.
    """
    ratio = _filled(row_of(name), options).get("sampling_ratio", 1)
    return "offset" in moving and ratio < 1


def _widened(arrays: Arrays, xp: Namespace, dtype: str) -> dict[str, Any]:
    """Those of a 16-bit dtype in float32: a whole number and the next one are both exact there."""
    return {
        name: xp.cast(array, "float32") if xp.dtype_name(array) == dtype else array
        for name, array in arrays.items()
    }


def _filled(row: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an operator, with the defaults of those that are not given."""
    given = {name: options[name] for name in row.static if options.get(name) is not None}
    return {name: options.get(name, default) for name, default in row.defaults.items()} | given


def _terms(row: Operator, call: Call, tangents: dict[str, Any]) -> list[Any]:
    """What each argument's movement adds."""
    added = {name: tangents[name] for name in row.addends if name in tangents}
    terms = []
    for name, tangent in tangents.items():
        if name == row.coordinates:
            terms += import_module(f"{__name__}.{row.slopes}").along(call, tangent)
        elif len(call.plan.results) > 1:
            terms.append(at_largest(call, tangent))
        elif name not in row.addends:
            terms.append(call(**{name: tangent}, **added))
            added = {}
    if added:
        terms.append(call(input=call.xp.zeros_like(call.primals["input"]), **added))
    return terms
