"""The operators: what a caller passes, what is checked, what is computed where."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from cudeform.arrays import Kind

__all__ = ["implementation"]


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
