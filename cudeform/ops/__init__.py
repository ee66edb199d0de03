"""The operators: what a caller passes, what is checked, what is computed where."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from cudeform import checks
from cudeform.arrays import Kind, contiguous
from cudeform.geometry import Points, RoiPlan

__all__ = ["check_reach", "implementation", "pool", "pool_gradients"]

_MOST = 2**31 - 2**10  # what a kernel counts in 32 bits, with room for a block beyond the end


def implementation(kind: Kind, family: str) -> ModuleType:
    """The module that computes this family of operators on arrays of this kind.

    Imported at the first call, so that ``import cudeform`` loads neither Numba nor CuPy.
    """
    if not isinstance(kind.backend, str):
        return kind.backend
    return _imported(kind.backend, family)


@functools.cache
def _imported(backend: str, family: str) -> ModuleType:
    return importlib.import_module(f"cudeform.{backend}.{family}")


def check_reach(op: str, kind: Kind, plan: Points | RoiPlan, backward: bool = False) -> None:
    """Refuse images with more pixels than the kernels of a GPU can number.

    They count those of a plane in 32 bits; in a backward with the cells between them, of all
    planes of an image whose points are sorted at once.
    """
    if kind.backend != "cuda":
        return
    cells, symbols = (plan.height + 1) * (plan.width + 1), "(H + 1)*(W + 1)"
    counts = {}
    if isinstance(plan, RoiPlan):
        if backward:
            cells *= plan.classes * plan.groups[0] * plan.groups[1]
            symbols = "classes*groups*" + symbols
    else:
        counts["Ho*Wo"] = plan.pixels
        counts["the padded height"] = plan.height - plan.origin[0]
        counts["the padded width"] = plan.width - plan.origin[1]
        if backward:
            cells, symbols = cells * plan.offset_groups, "offset_groups*" + symbols
    for what, count in {symbols: cells, **counts}.items():
        if count > _MOST:
            why = f"{what}, which the kernels of a GPU count in 32 bits"
            checks.fail(op, "input", f"with at most {_MOST} pixels in an image", count, why)


def pool(
    op: str, plan: RoiPlan, kind: Kind, input: Any, rows: Any, offset: Any = None, mask: Any = None
) -> tuple[Any, Any]:
    """A pooling of regions, and for "max" which pixels it chose."""
    check_reach(op, kind, plan)
    given = contiguous(input), rows, contiguous(offset), contiguous(mask)
    return implementation(kind, "roi").forward(plan, *given)


def pool_gradients(
    op: str,
    plan: RoiPlan,
    kind: Kind,
    grad_output: Any,
    input: Any,
    rows: Any,
    needed: frozenset[str],
    *,
    offset: Any = None,
    mask: Any = None,
    argmax: Any = None,
) -> dict[str, Any]:
    """The gradients of a pooling of regions that are in `needed`.

    For "max", `argmax` is which pixels the forward chose; without, that is computed once more.
    """
    check_reach(op, kind, plan, backward=True)
    if plan.reads == "max" and argmax is None and needed:
        _, argmax = pool(op, plan, kind, input, rows)
    given = contiguous(input), rows, contiguous(offset), contiguous(mask), contiguous(argmax)
    return implementation(kind, "roi").backward(plan, contiguous(grad_output), *given, needed)
