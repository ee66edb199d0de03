"""The operators: what a caller passes, what is checked, what is computed where."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from cudeform.arrays import Kind, contiguous
from cudeform.geometry import RoiPlan

__all__ = ["implementation", "pool", "pool_gradients"]


def implementation(kind: Kind, family: str) -> ModuleType:
    """The module that computes this family of operators on arrays of this kind.

    Imported at the first call, so that ``import cudeform`` loads neither Numba nor CuPy.
    """
    if not isinstance(kind.backend, str):
        return kind.backend
    return _imported(kind.backend, family)


@functools.lru_cache(maxsize=64)
def _imported(backend: str, family: str) -> ModuleType:
    return importlib.import_module(f"cudeform.{backend}.{family}")


def pool(
    plan: RoiPlan, kind: Kind, input: Any, rows: Any, offset: Any = None, mask: Any = None
) -> tuple[Any, Any]:
    """A pooling of regions, and for "max" which pixels it chose."""
    given = contiguous(input), rows, contiguous(offset), contiguous(mask)
    return implementation(kind, "roi").forward(plan, *given)


def pool_gradients(
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
    if plan.reads == "max" and argmax is None and needed:
        _, argmax = pool(plan, kind, input, rows)
    given = contiguous(input), rows, contiguous(offset), contiguous(mask), contiguous(argmax)
    return implementation(kind, "roi").backward(plan, contiguous(grad_output), *given, needed)
