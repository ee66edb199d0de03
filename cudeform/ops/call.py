"""One call of an operator: what was checked is what is computed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Container, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from cudeform import arrays, checks
from cudeform.arrays import Kind
from cudeform.boxes import box_outline, box_rows
from cudeform.levels import check_sizes, sizes_on_host
from cudeform.plans import FINER, Plan, plan

__all__ = ["Call", "checked", "gradients", "implementation", "outlined", "results"]

Arrays = Mapping[str, Any]
_ODD = ("boxes", "argmax", "spatial_shapes")  # have dtypes of their own
_MOST = 2**31 - 2**10  # what a kernel counts in 32 bits, with room for a block beyond the end


class Call(NamedTuple):
    """Arrays and options that have passed all checks."""

    kind: Kind
    plan: Plan
    arrays: dict[str, Any]  # C-contiguous but for `STRIDED`; None for those that are not given

    def forward(self) -> tuple[Any, ...]:
        """All results that the plan names."""
        return implementation(self.kind, self.plan.family).forward(self.plan, **self.arrays)

    def backward(self, needs: frozenset[str]) -> dict[str, Any]:
        """The gradients that are needed, by name."""
        module = implementation(self.kind, self.plan.family)
        given = self.arrays
        if len(self.plan.results) > 1 and given.get("argmax") is None and needs:
            of_forward = {n: a for n, a in given.items() if n not in ("grad_output", "argmax")}
            given = {**given, "argmax": module.forward(self.plan, **of_forward)[1]}
        return module.backward(self.plan, needs=needs, **given)


def implementation(kind: Kind, family: str) -> ModuleType:
    """The module that computes this family of operators on arrays of this kind.

    Imported at the first call, so that ``import cudeform`` loads neither Numba nor CuPy.
    """
    return _imported(kind.backend, family)


@functools.lru_cache(maxsize=64)
def _imported(backend: str, family: str) -> ModuleType:
    return importlib.import_module(f"cudeform.{backend}.{family}")


def outlined(
    op: str, given: Arrays, options: Arrays, optional: Container[str] = ()
) -> tuple[Kind, Plan]:
    """Check all of a call of the function `op` but the values in its arrays.

    For frameworks that trace, and ask what a call will return before there are any values.

    Raises
    ------
    TypeError, ValueError
        What is wrong, before anything is computed.
    """
    kind = _kind(op, given, optional)
    if "boxes" in given:
        given = {**given, "boxes": box_outline(op, given["boxes"], given["input"], kind)}
    return kind, _plan(op, kind, given, options)


def checked(op: str, given: Arrays, options: Arrays, optional: Container[str] = ()) -> Call:
    """The same, and look at values too: boxes say which image they belong to."""
    kind = _kind(op, given, optional)
    if "boxes" in given:
        given = {**given, "boxes": box_rows(op, given["boxes"], given["input"], kind)}
    given, options = _sized(op, given, options)
    found = _plan(op, kind, given, options)
    if kind.backend == "cuda":
        _check_counts(op, found, "grad_output" in given)
    strided = getattr(implementation(kind, found.family), "STRIDED", ())  # taken as they lie
    taken = {n: a if n in strided else arrays.contiguous(a) for n, a in given.items()}
    return Call(kind, found, taken)


def _kind(op: str, given: Arrays, optional: Container[str]) -> Kind:
    """The kind of all arrays; some have dtypes of their own."""
    finer = FINER.get(op.removesuffix("_backward"), ())
    if "boxes" not in given and "spatial_shapes" not in given:
        return arrays.kind_of(op, given, optional, finer)
    alike = {name: a for name, a in given.items() if name not in _ODD}
    kind = arrays.kind_of(op, alike, optional, finer)
    if given.get("argmax") is not None:
        arrays.same_place(op, "argmax", given["argmax"], "input", given["input"])
    if given.get("spatial_shapes") is not None:
        check_sizes(op, given["spatial_shapes"], *next(iter(alike.items())))
    return kind


def _sized(op: str, given: Arrays, options: Arrays) -> tuple[Arrays, Arrays]:
    """Arrays and options, with sizes of levels that lie on the host as an option."""
    sizes = given.get("spatial_shapes")
    pairs = None if sizes is None else sizes_on_host(op, sizes)
    if pairs is None:
        return given, options
    return {**given, "spatial_shapes": None}, {**options, "spatial_shapes": pairs}


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
    argmax = given.get("argmax")  # its values may be any: kernels pass over what is no pixel
    if argmax is not None:
        dtype = planned.results[1].dtype_name({"input": kind.dtype_name(given["input"].dtype)})
        if kind.dtype_name(argmax.dtype) != dtype:
            checks.fail(op, "argmax", f"of dtype {dtype}", argmax.dtype, error=TypeError)
    return planned


def results(
    op: str, given: Arrays, options: Arrays, optional: Container[str] = ()
) -> tuple[Any, ...]:
    """What the operator `op` makes of arrays."""
    return checked(op, given, options, optional).forward()


def gradients(
    op: str,
    fields: type,
    given: Arrays,
    options: Arrays,
    needs: Iterable[str] | None,
    optional: Container[str] = (),
) -> Any:
    """The gradients that the function `op` returns, in the named tuple `fields`."""
    call = checked(op, given, options, optional)
    absent = {name: None for name in optional if given[name] is None}
    return fields(**call.backward(checks.needs(op, needs, absent, fields._fields)))
