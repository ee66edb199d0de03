"""Plans: shapes and options in, a frozen value that says everything else, or a clear error.

Whoever needs to know what a call will do asks `plan`: the operators before they compute, the
bridges of frameworks that trace, derivatives, tiles and pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cudeform.plans import (  # noqa: F401  with planners
    aggregation,
    attention,
    convolution,
    regions,
    sampling,
)
from cudeform.plans.outlines import ARGUMENTS, PLANNERS, Outline, Plan

__all__ = ["ARGUMENTS", "TYPES", "Outline", "Plan", "known_options", "plan"]

_MOST_REMEMBERED = 1024
_LONGEST = 16  # of a tuple among the options: longer ones are wrong, or too large to keep
_REMEMBERED: dict[Any, Plan] = {}
TYPES = frozenset((int, str, type(None), float, bool))  # of options that are their own keys


def plan(
    operator: str, arrays: Mapping[str, Any], options: Mapping[str, Any], op: str | None = None
) -> Plan:
    """The plan of a call of an operator.

    It is worked out once for equal shapes and equal options. What is wrong is raised every time;
    and for options of other types than numbers, strings and tuples, or for shapes that are the
    symbols of a tracer, nothing is remembered.

    Parameters
    ----------
    operator : str
        An operator of the registry.
    arrays : mapping
        By name: anything with a shape, of which nothing else is looked at; None, or no entry, is
        an array that is not given.
    options : mapping
        The other arguments; those that are left out have their defaults.
    op : str, optional
        The function that messages name, by default the operator.

    Raises
    ------
    TypeError, ValueError
        A shape or an option that does not fit; the message says which, what was expected and why.
    """
    known = known_options(options.values())
    shapes = [None if array is None else array.shape for array in arrays.values()]
    key: Any = (operator, *arrays, *options, *shapes, known)
    try:
        planned = None if known is None else _REMEMBERED.get(key)
    except TypeError:  # not hashable
        known = planned = None  # and on: an error from here would be shown as one after this
    if planned is None:
        planned = _planned(op or operator, operator, arrays, options)
        if known is None:
            return planned
        if len(_REMEMBERED) >= _MOST_REMEMBERED:
            _REMEMBERED.clear()
        _REMEMBERED[key] = planned
    return planned


def known_options(values: Iterable[Any], depth: int = 3) -> tuple[Any, Any] | None:
    """What equal options are known by; None where their equals may mean something else."""
    parts = values = tuple(values)
    kinds = tuple(map(type, values))
    if not TYPES.issuperset(kinds):
        parts = []
        for kind, value in zip(kinds, values, strict=True):
            if kind is tuple and len(value) <= _LONGEST and depth:
                value = known_options(value, depth - 1)
                if value is None:
                    return None
            elif kind not in TYPES:
                return None
            parts.append(value)
    return kinds, tuple(parts)


def _planned(op: str, operator: str, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Plan:
    outlines = {n: Outline(tuple(a.shape)) for n, a in arrays.items() if a is not None}
    return PLANNERS[operator](op, **outlines, **options)
