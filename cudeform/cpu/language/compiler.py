"""How a kernel is compiled: without the GIL, with a copy on disk for the next process."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from numba import njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime.context import NRTContext
from numba.core.typing import Context
from numba.extending import intrinsic

from cudeform.cpu.language import disk

__all__ = ["Kernels", "inlined", "inner", "kernel", "record", "unrolled"]


_OPTIONS = {"nogil": True, "error_model": "numpy"}


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


class Kernels(Compiler):
    """Numba's compiler without the passes that change nothing here."""

    def define_pipelines(self) -> Any:
        state = self.state
        state.typingctx, state.targetctx.get_abi_sizeof = _TYPING, _size_of
        state.targetctx.nrt = _References(state.targetctx, state.targetctx.enable_nrt)
        (passes,) = super().define_pipelines()
        passes.passes = [each for each in passes.passes if each[0].__name__ not in _UNNEEDED]
        passes.finalize()
        return [passes]

    def _compile_core(self) -> Any:
        """Without looks for garbage: of the thousands of objects that are made none is, yet."""
        if not gc.isenabled():
            return super()._compile_core()
        gc.disable()
        try:
            return super()._compile_core()
        finally:
            gc.enable()


# What they look for is not in our kernels: `with`, closures, expressions of whole arrays.
_UNNEEDED = {"WithLifting", "InlineClosureLikes", "NopythonRewrites"}


@functools.cache
def _size_of(kind: Any) -> int:
    """Bytes of a type, which Numba asks for each variable, and LLVM reads a module to answer."""
    return cpu_target.target_context.get_abi_sizeof(kind)


class _References(NRTContext):
    """Numba's counts of references, which looks for arrays in numbers as well, one by one."""

    def get_meminfos(self, builder: Any, ty: Any, val: Any) -> list[tuple[Any, Any]]:
        model = self._context.data_model_manager[ty]
        found = [(ty, model.get_nrt_meminfo(builder, val))] if model.has_nrt_meminfo() else []
        for member, getter in model.traverse(builder):
            if self._context.data_model_manager[member].contains_nrt_meminfo():
                found += self.get_meminfos(builder, member, getter(val))
        return found


class _Typing(Context):
    """Numba's, with a memory: to find the type of a sum it tries all sums that there are."""

    def __init__(self, context: Any) -> None:
        self.__dict__ = context.__dict__

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        if type(func) is not types.Function or kws:
            return super().resolve_function_type(func, args, kws)
        key = func, tuple(args)
        if key not in _SIGNATURES:
            _SIGNATURES[key] = super().resolve_function_type(func, args, kws)
        return _SIGNATURES[key]


_SIGNATURES: dict[Any, Any] = {}
_TYPING = _Typing(cpu_target.typing_context)


class _Part(JITCodeLibrary):
    """The code of a function that only kernels call, as LLVM made it by itself.

    Machine code of it is written as a part of kernels; Numba would do so here as well, for nobody.
    """

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # as of a function without a wrapper for Python

    @property
    def codegen(self) -> Any:
        """What Numba tells of the environment of machine code, which is none."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        pass


class _Draft(_Part):
    """The same, which LLVM gets to see as a part of kernels only."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass


class _Parts(Kernels):
    """The same, up to LLVM's code."""

    library = _Part

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


class _Drafts(_Parts):
    library = _Draft


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for Python to call, at the first call of each dtype; kept on disk where possible."""
    compiled = njit(no_cfunc_wrapper=True, pipeline_class=Kernels, **_OPTIONS)(_named(function))
    disk.keep(compiled)
    return compiled


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for kernels to call: once for all integers that are written out."""
    return _called(function, _Drafts)


def unrolled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same with short loops in which the time goes.

    LLVM takes more turns of a loop at once where it sees the function alone first, and then as a
    part of a kernel.
    """
    return _called(function, _Parts)


def _called(function: Callable[..., Any], pipeline: type[Compiler]) -> Callable[..., Any]:
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False, **_OPTIONS}
    compiled = njit(pipeline_class=pipeline, **options)(_named(function))
    template = getattr(compiled, "get_call_template", None)
    if template is not None:  # else NUMBA_DISABLE_JIT

        def of_any_number(args: Any, kws: Any) -> Any:
            return template(tuple(map(_any_number, args)), kws)

        compiled.get_call_template = of_any_number
    return compiled


def _any_number(kind: Any) -> Any:
    return types.int64 if isinstance(kind, types.IntegerLiteral) else kind


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of each caller."""
    return njit(inline="always", **_OPTIONS)(_named(function))


def record(kind: type) -> Callable[..., Any]:
    """For kernels: the named tuple of integers that stands in an array from an index on.

    From Python a kernel takes an array in the time of one or two integers.
    """
    result = types.NamedUniTuple(types.int64, len(kind._fields), kind)

    @intrinsic
    def read(typingctx, numbers, at):
        def codegen(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            first = builder.gep(data, [args[1]])
            places = (context.get_constant(types.intp, i) for i in range(result.count))
            fields = [builder.load(builder.gep(first, [place])) for place in places]
            return context.make_tuple(builder, result, fields)

        return result(numbers, types.intp), codegen

    return read


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
