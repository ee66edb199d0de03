"""Functions of others that find ours by the names that they look up, without a change of theirs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any


def rebound(function: FunctionType, others: Mapping[int, Any]) -> FunctionType:
    """A function that finds others, by the id of those there, where it looks names up in its file.

    So do the functions of that file which it calls. Itself, where there is nothing to find.
    """
    return _rebound(function, others, {}) or function


def _rebound(
    function: FunctionType, others: Mapping[int, Any], known: dict[FunctionType, Any]
) -> FunctionType | None:
    names = function.__globals__
    known[function] = None  # while it is looked at: of functions that call each other
    found = {}
    for name in _looked_up(function.__code__):
        value = names.get(name)
        other = others.get(id(value))
        if isinstance(value, FunctionType) and value.__globals__ is names and other is None:
            other = known[value] if value in known else _rebound(value, others, known)
        if other is not None:
            found[name] = other
    if not found:
        return None
    # Not of the file any more: by the file's name torch.compile would look there for names.
    inner = {name: value for name, value in names.items() if name != "__name__"}
    code, defaults, closure = function.__code__, function.__defaults__, function.__closure__
    result = FunctionType(code, inner | found, function.__name__, defaults, closure)
    result.__kwdefaults__ = function.__kwdefaults__
    known[function] = functools.update_wrapper(result, function)
    return result


def _looked_up(code: CodeType) -> Iterator[str]:
    """Names that a function looks up, also in the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _looked_up(constant)
