"""One call of an operator: what was checked is what is computed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cudeform import arrays, checks
from cudeform.arrays import Kind
from cudeform.boxes import box_outline, box_rows
from cudeform.levels import check_sizes, sizes_on_host
from cudeform.plans import ARGUMENTS, TYPES, Plan, known_options, plan
from cudeform.plans.arguments import Arguments

Arrays = Mapping[str, Any]
_CHOSEN = "argmax"  # what a backward may be given of the second result of its forward
_MOST_KNOWN = 1024
_KNOWN: dict[Any, Call] = {}  # calls that have passed the checks
_MOST = 2**31 - 2**10  # what a kernel counts in 32 bits, with room for a block beyond the end


class Call(NamedTuple):
    """What the checks of a call found without looking at values.

    The arrays that it computes on are by name, C-contiguous but for `STRIDED`, and None where they
    are not given.
    """

    kind: Kind
    plan: Plan
    needs: frozenset[str] = frozenset()  # of a backward
    arrays: tuple[str, ...] = ()  # all, by name
    contiguous: tuple[str, ...] = ()  # those that are given and have to be

    def lay_out(self, op: str, given: dict[str, Any]) -> None:
        """Make of arrays as they came what is computed on; of boxes, look at which images."""
        roles = ARGUMENTS[op]
        for name in roles.static:
            if isinstance(given[name], tuple):
                given[name] = None  # its pairs are in the plan
        if roles.boxes is not None:
            boxes, images = given[roles.boxes], given[roles.images]
            if isinstance(boxes, tuple) and self.kind.backend == "cuda":
                given[roles.boxes] = implementation(self.kind, "box_rows").join(boxes, images)
            else:
                given[roles.boxes] = box_rows(op, boxes, images, self.kind)
        for name in self.contiguous:
            if not given[name].flags.c_contiguous:
                given[name] = arrays.contiguous(given[name])

    def forward(self, given: Arrays) -> tuple[Any, ...]:
        """All results that the plan names."""
        return implementation(self.kind, self.plan.family).forward(self.plan, **given)

    def backward(self, given: Arrays) -> dict[str, Any]:
        """The gradients that are needed, by name."""
        return self.gradients(implementation(self.kind, self.plan.family), given)

    def gradients(self, module: Any, given: Arrays) -> dict[str, Any]:
        """The same by a module, which is asked first for what is chosen if that is not given."""
        if len(self.plan.results) > 1 and given.get(_CHOSEN) is None and self.needs:
            of_forward = {n: a for n, a in given.items() if n not in ("grad_output", _CHOSEN)}
            given = {**given, _CHOSEN: module.forward(self.plan, **of_forward)[1]}
        return module.backward(self.plan, needs=self.needs, **given)


def implementation(kind: Kind, family: str) -> Any:
    """What computes this family of operators on arrays of this kind: a module or its likeness.

    Imported at the first call, so that ``import cudeform`` loads neither Numba nor CuPy.
    """
    return _imported(kind.backend, family)


@functools.lru_cache(maxsize=64)
def _imported(backend: str, family: str) -> Any:
    module = importlib.import_module(f"cudeform.{backend}.{family}")
    if backend == "cpu":
        return module
    return importlib.import_module("cudeform.cuda.recorded").Family(module)


def outlined(op: str, given: Arrays, options: Arrays) -> tuple[Kind, Plan]:
    """Check all of a call of the function `op` but the values in its arrays.

    For frameworks that trace, and ask what a call will return before there are any values.

    Raises
    ------
    TypeError, ValueError
        What is wrong, before anything is computed.
    """
    kind = _kind(op, ARGUMENTS[op], given)
    return kind, _planned(op, kind, given, options)


def checked(
    op: str, arguments: dict[str, Any], fields: tuple[str, ...] = ()
) -> tuple[Call, dict[str, Any]]:
    """The same, and look at values too: on the CPU, at which image boxes are of. With the arrays.

    `arguments` are all of the function's, to change; `fields` are the gradients that it returns.
    Where arrays are like those of a call before, only values are left to look at.
    """
    roles = ARGUMENTS[op]
    if roles.own:
        _freeze(roles, arguments)
    key = _known_as(op, roles, arguments)
    known = _KNOWN.get(key)
    if known is None:
        known, given = _looked_at(op, roles, arguments, fields)
        if key is not None:
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[key] = known
    else:
        given = {name: arguments[name] for name in known.arrays}
    known.lay_out(op, given)
    return known, given


def _freeze(roles: Arguments, arguments: dict[str, Any]) -> None:
    """Make tuples of lists of boxes and sizes: nobody changes those meanwhile."""
    boxes = roles.boxes
    if boxes is not None and isinstance(arguments[boxes], list):
        arguments[boxes] = tuple(arguments[boxes])
    for name in roles.static:
        sizes = arguments[name]
        if isinstance(sizes, list):
            arguments[name] = tuple(tuple(s) if isinstance(s, list) else s for s in sizes)


def _known_as(op: str, roles: Arguments, arguments: Arrays) -> Any:
    """All that the checks of a call look at but values; None where they look at more.

    No option may be an array, and of a call that failed nothing is remembered.
    """
    key: list[Any] = [op]
    values = list(arguments.values())
    boxes = arguments[roles.boxes] if roles.boxes is not None else None
    if isinstance(boxes, tuple):
        values = [*(value for value in values if value is not boxes), len(boxes), *boxes]
    for value in values:
        of = type(value)
        if of is np.ndarray:
            key += value.shape, value.dtype
        elif of in TYPES:
            key += of, value
        elif (kind := arrays.kind_of_type(of)) is not None:
            key += of, value.shape, value.dtype, kind.device(value)
        else:
            known = known_options((value,))
            if known is None:
                return None
            key += known
    for name in roles.static:
        if isinstance(arguments[name], np.ndarray):
            return None
    return tuple(key)


def _looked_at(
    op: str, roles: Arguments, arguments: dict[str, Any], fields: tuple[str, ...]
) -> tuple[Call, dict[str, Any]]:
    """What the checks find, and the arrays."""
    needs = arguments.pop("needs", None)
    given, options = _apart(op, roles, arguments)
    needed: frozenset[str] = frozenset()
    if fields:
        absent = {name: None for name in roles.optional if name in given and given[name] is None}
        needed = checks.needs(op, needs, absent, fields)
    kind = _kind(op, roles, given)
    for name in roles.static:  # an array on the host is pairs, too
        pairs = None if given[name] is None else sizes_on_host(op, given[name])
        if pairs is not None:
            given[name], options[name] = None, pairs
    planned = _planned(op, kind, given, options)
    if kind.backend == "cuda":
        _check_counts(op, planned, "grad_output" in given)
    strided = getattr(implementation(kind, planned.family), "STRIDED", ())  # taken as they lie
    strided = {*strided, roles.boxes}  # rows of boxes are made to be contiguous
    contiguous = tuple(n for n, a in given.items() if a is not None and n not in strided)
    return Call(kind, planned, needed, tuple(given), contiguous), given


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


def _check_counts(op: str, planned: Plan, backward: bool) -> None:
    """Refuse images with more pixels than the kernels of a GPU can number."""
    for what, count in planned.counts(backward).items():
        if count > _MOST:
            why = f"{what}, which the kernels of a GPU count in 32 bits"
            name = next(iter(planned.gradients))  # what is read
            checks.fail(op, name, f"with at most {_MOST} pixels in an image", count, why)


def _planned(op: str, kind: Kind, given: Arrays, options: Arrays) -> Plan:
    roles = ARGUMENTS[op]
    if roles.boxes is not None:
        boxes = box_outline(op, given[roles.boxes], given[roles.images], kind)
        given = {**given, roles.boxes: boxes}
    if "grad_output" not in given:
        return plan(op, given, options)
    of_forward = {name: array for name, array in given.items() if name != "grad_output"}
    planned = plan(op.removesuffix("_backward"), of_forward, options, op)
    output = planned.results[0]
    checks.shape(op, "grad_output", given["grad_output"], output.shape, output.axes)
    chosen = given.get(_CHOSEN)  # its values may be any: kernels pass over what is no pixel
    if chosen is not None:
        images = roles.images
        dtype = planned.results[1].dtype_name({images: kind.dtype_name(given[images].dtype)})
        if kind.dtype_name(chosen.dtype) != dtype:
            checks.fail(op, _CHOSEN, f"of dtype {dtype}", chosen.dtype, error=TypeError)
    return planned


def results(op: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What the operator `op` makes of its arguments, as `locals` has them, to change."""
    call, given = checked(op, arguments)
    return call.forward(given)


def gradients(op: str, fields: Any, arguments: dict[str, Any]) -> Any:
    """The gradients that the function `op` returns, in the named tuple `fields`."""
    if isinstance(arguments["needs"], list):
        arguments["needs"] = tuple(arguments["needs"])
    call, given = checked(op, arguments, fields._fields)
    return fields(**call.backward(given))


def _apart(
    op: str, roles: Arguments, arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and options of a call: an array of sizes is one of those, pairs are one of these."""
    names = ("grad_output", *roles.names, _CHOSEN)
    given = {name: arguments.pop(name) for name in names if name in arguments}
    for name in roles.static:
        if given[name] is None or isinstance(given[name], tuple):
            given[name], arguments[name] = None, given[name]
    return given, arguments
