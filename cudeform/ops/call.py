"""One call of an operator: what was checked is what is computed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from cudeform import arrays, checks
from cudeform.arrays import Kind
from cudeform.boxes import box_outline, box_rows
from cudeform.levels import check_sizes, sizes_on_host
from cudeform.plans import ARGUMENTS, Plan, known_options, plan
from cudeform.plans.arguments import Arguments

__all__ = ["Call", "checked", "gradients", "implementation", "outlined", "results"]

Arrays = Mapping[str, Any]
_CHOSEN = "argmax"  # what a backward may be given of the second result of its forward
_MOST_KNOWN = 1024
_KNOWN: dict[Any, tuple[Kind, Plan]] = {}  # calls that have passed the checks
_MOST = 2**31 - 2**10  # what a kernel counts in 32 bits, with room for a block beyond the end


class Call(NamedTuple):
    """Arrays and options that have passed all checks."""

    kind: Kind
    plan: Plan
    arrays: Mapping[str, Any]  # C-contiguous but for `STRIDED`; None for those that are not given

    def forward(self) -> tuple[Any, ...]:
        """All results that the plan names."""
        return implementation(self.kind, self.plan.family).forward(self.plan, **self.arrays)

    def backward(self, needs: frozenset[str]) -> dict[str, Any]:
        """The gradients that are needed, by name."""
        module = implementation(self.kind, self.plan.family)
        given = self.arrays
        if len(self.plan.results) > 1 and given.get(_CHOSEN) is None and needs:
            of_forward = {n: a for n, a in given.items() if n not in ("grad_output", _CHOSEN)}
            given = {**given, _CHOSEN: module.forward(self.plan, **of_forward)[1]}
        return module.backward(self.plan, needs=needs, **given)


def implementation(kind: Kind, family: str) -> ModuleType:
    """The module that computes this family of operators on arrays of this kind.

    Imported at the first call, so that ``import cudeform`` loads neither Numba nor CuPy.
    """
    return _imported(kind.backend, family)


@functools.lru_cache(maxsize=64)
def _imported(backend: str, family: str) -> ModuleType:
    return importlib.import_module(f"cudeform.{backend}.{family}")


def outlined(op: str, given: Arrays, options: Arrays) -> tuple[Kind, Plan]:
    """Check all of a call of the function `op` but the values in its arrays.

    For frameworks that trace, and ask what a call will return before there are any values.

    Raises
    ------
    TypeError, ValueError
        What is wrong, before anything is computed.
    """
    roles = ARGUMENTS[op]
    kind = _kind(op, roles, given)
    if roles.boxes is not None:
        boxes = box_outline(op, given[roles.boxes], given[roles.images], kind)
        given = {**given, roles.boxes: boxes}
    return kind, _plan(op, kind, given, options)


def checked(op: str, given: Arrays, options: Arrays) -> Call:
    """The same, and look at values too: boxes say which image they belong to.

    Where arrays are NumPy's and like those of a call before, only values are left to look at.
    """
    roles = ARGUMENTS[op]
    if roles.boxes is not None and isinstance(given[roles.boxes], list):
        given = {**given, roles.boxes: tuple(given[roles.boxes])}  # nobody changes it meanwhile
    key = _known_as(op, roles, given, options)
    known = _KNOWN.get(key)
    kind = _kind(op, roles, given) if known is None else known[0]
    if roles.boxes is not None:
        images = given[roles.images]
        if known is None:
            box_outline(op, given[roles.boxes], images, kind)
        given = {**given, roles.boxes: box_rows(op, given[roles.boxes], images, kind)}
    if known is None:
        for name in roles.static:
            given, options = _sized(op, name, given, options)
        known = kind, _plan(op, kind, given, options)
        if kind.backend == "cuda":
            _check_counts(op, known[1], "grad_output" in given)
        _remember(key, known)
    planned = known[1]
    strided = getattr(implementation(kind, planned.family), "STRIDED", ())  # taken as they lie
    for name, array in given.items():
        if array is not None and not array.flags.c_contiguous and name not in strided:
            given = {**given, name: arrays.contiguous(array)}
    return Call(kind, planned, given)


def _known_as(op: str, roles: Arguments, given: Arrays, options: Arrays) -> Any:
    """All that the checks of a call look at but values; None where they look at more."""
    key: list[Any] = [op, *options]
    for array in given.values():
        if type(array) is np.ndarray:
            key += array.shape, array.dtype
        elif array is None:
            key.append(None)
        else:
            return None
    for name in roles.static:
        if given[name] is not None:
            return None
    known = known_options(options.values())
    return None if known is None else (*key, *known)


def _remember(key: Any, known: tuple[Kind, Plan]) -> None:
    if key is not None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = known


def _kind(op: str, roles: Arguments, given: Arrays) -> Kind:
    """The kind of all arrays; some have dtypes of their own."""
    if not roles.own:
        return arrays.kind_of(op, given, roles.optional, roles.finer)
    alike = {name: a for name, a in given.items() if name not in roles.own and name != _CHOSEN}
    kind = arrays.kind_of(op, alike, roles.optional, roles.finer)
    if given.get(_CHOSEN) is not None:
        arrays.same_place(op, _CHOSEN, given[_CHOSEN], roles.images, given[roles.images])
    for name in roles.static:
        if given.get(name) is not None:
            check_sizes(op, given[name], *next(iter(alike.items())))
    return kind


def _sized(op: str, name: str, given: Arrays, options: Arrays) -> tuple[Arrays, Arrays]:
    """Arrays and options, with sizes of levels that lie on the host as an option."""
    sizes = given.get(name)
    pairs = None if sizes is None else sizes_on_host(op, sizes)
    if pairs is None:
        return given, options
    return {**given, name: None}, {**options, name: pairs}


def _check_counts(op: str, planned: Plan, backward: bool) -> None:
    """Refuse images with more pixels than the kernels of a GPU can number."""
    for what, count in planned.counts(backward).items():
        if count > _MOST:
            why = f"{what}, which the kernels of a GPU count in 32 bits"
            name = next(iter(planned.gradients))  # what is read
            checks.fail(op, name, f"with at most {_MOST} pixels in an image", count, why)


def _plan(op: str, kind: Kind, given: Arrays, options: Arrays) -> Plan:
    if "grad_output" not in given:
        return plan(op, given, options)
    of_forward = {name: array for name, array in given.items() if name != "grad_output"}
    planned = plan(op.removesuffix("_backward"), of_forward, options, op)
    output = planned.results[0]
    checks.shape(op, "grad_output", given["grad_output"], output.shape, output.axes)
    chosen = given.get(_CHOSEN)  # its values may be any: kernels pass over what is no pixel
    if chosen is not None:
        images = ARGUMENTS[op].images
        dtype = planned.results[1].dtype_name({images: kind.dtype_name(given[images].dtype)})
        if kind.dtype_name(chosen.dtype) != dtype:
            checks.fail(op, _CHOSEN, f"of dtype {dtype}", chosen.dtype, error=TypeError)
    return planned


def results(op: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What the operator `op` makes of its arguments, as `locals` has them, to change."""
    return checked(op, *_apart(op, arguments)).forward()


def gradients(op: str, fields: Any, arguments: dict[str, Any]) -> Any:
    """The gradients that the function `op` returns, in the named tuple `fields`."""
    needs = arguments.pop("needs")
    given, options = _apart(op, arguments)
    optional = ARGUMENTS[op].optional
    absent = {name: None for name in optional if name in given and given[name] is None}
    needed = checks.needs(op, needs, absent, fields._fields)
    return fields(**checked(op, given, options).backward(needed))


def _apart(op: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and options of a call: an array of sizes is one of those, pairs are one of these."""
    roles = ARGUMENTS[op]
    given = {}
    for name in _TAKEN.get(op) or _taken(op, arguments):
        given[name] = arguments.pop(name)
    for name in roles.static:
        sizes = given[name]
        if sizes is None or isinstance(sizes, (list, tuple)):
            if isinstance(sizes, list):
                sizes = tuple(tuple(size) if isinstance(size, list) else size for size in sizes)
            given[name], arguments[name] = None, sizes
    return given, arguments


_TAKEN: dict[str, tuple[str, ...]] = {}  # by function


def _taken(op: str, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The names of the arrays among the arguments of a function."""
    names = ("grad_output", *ARGUMENTS[op].names, _CHOSEN)
    _TAKEN[op] = tuple(name for name in names if name in arguments)
    return _TAKEN[op]
