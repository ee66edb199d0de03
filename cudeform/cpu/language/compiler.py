"""How a kernel is compiled: without the GIL, with a copy on disk for the next process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
from numba import njit
from numba.core.compiler_lock import global_compiler_lock

from cudeform.cpu.language import disk

_OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False}  # nobody counts references
_PART = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}
# With other versions a first call takes twice as long or more.
TRIED = numba.__version__.startswith("0.68.")
if TRIED:
    from cudeform.cpu.language import pipeline


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a function makes of its arguments is named after them.

    A linker takes the first of two symbols of one name for both. Numba numbers what has one name,
    but counts anew in each process, and kernels that lie on disk come from several.
    """
    if function.__closure__:
        around = (cell.cell_contents for cell in function.__closure__)
        parts = (getattr(value, "__qualname__", None) or repr(value) for value in around)
        function.__qualname__ += f"[{','.join(parts)}]"
    return function


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for Python to call, at the first call of each dtype; kept on disk where possible.

    No kernel counts references: it gives back what it is `lent`.
    """
    options = {"pipeline_class": pipeline.Kernels} if TRIED else {}
    compiled = njit(no_cfunc_wrapper=True, **options, **_OPTIONS)(_named(function))
    disk.keep(compiled, pipeline.declare if TRIED else None)
    return compiled


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for kernels to call: nothing for Python, and only as a part of these."""
    if TRIED:
        return pipeline.called(_named(function), pipeline.Drafts, _PART)
    return njit(**_PART)(_named(function))


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same where no array that is written has anything in common with another."""
    if TRIED:
        return pipeline.called(_named(function), pipeline.Apart, _PART)
    return njit(**_PART)(_named(function))


def unrolled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same with short loops in which the time goes.

    LLVM takes more turns of a loop at once where it sees the function alone first, and then as a
    part of a kernel.
    """
    if TRIED:
        return pipeline.called(_named(function), pipeline.Parts, _PART)
    return njit(**_PART)(_named(function))


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of each caller."""
    return njit(inline="always", **_OPTIONS)(_named(function))


def host() -> str:
    """What LLVM calls the processor that this runs on."""
    return llvmlite.binding.get_host_cpu_name()


# In a child after a fork no other thread exists, and what one was compiling would stay half done
# and locked for ever. So a fork waits until nothing is compiled: for Numba's lock, which is held
# for as long as it compiles, then for LLVM's; Numba takes them in this order too.
_LOCKS = (global_compiler_lock._lock, llvmlite.binding.ffi.lib._lock._lock)


def _before_fork() -> None:
    for lock in _LOCKS:
        lock.acquire()


def _after_fork() -> None:
    for lock in reversed(_LOCKS):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
