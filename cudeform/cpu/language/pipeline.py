"""Numba's compiler without what takes its time and changes nothing in our kernels.

Half of the time of a first call goes there. It takes the place of parts of Numba that are nobody's
business but Numba's, so `compiler` asks for it with those versions alone that it was tried with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import cpu_target
from numba.core.runtime.context import NRTContext
from numba.core.typing import Context

__all__ = ["Drafts", "Kernels", "Parts", "called"]

_MOST = 4096  # answers that are kept


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


# What they look for is not in our kernels: `with`, closures, expressions of whole arrays.
_UNNEEDED = {"WithLifting", "InlineClosureLikes", "NopythonRewrites"}


@functools.lru_cache(maxsize=_MOST)
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
        return _signature(func, tuple(args))


@functools.lru_cache(maxsize=_MOST)
def _signature(func: types.Function, args: tuple[Any, ...]) -> Any:
    return Context.resolve_function_type(_TYPING, func, args, {})


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


class Parts(Kernels):
    """The same, up to LLVM's code."""

    library = _Part

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


class Drafts(Parts):
    library = _Draft


def called(function: Callable[..., Any], pipeline: type[Compiler], options: Any) -> Any:
    """Compile for kernels to call: once for all integers that are written out."""
    compiled = njit(pipeline_class=pipeline, _nrt=False, **options)(function)
    template = getattr(compiled, "get_call_template", None)
    if template is not None:  # else NUMBA_DISABLE_JIT

        def of_any_number(args: Any, kws: Any) -> Any:
            return template(tuple(map(_any_number, args)), kws)

        compiled.get_call_template = of_any_number
    return compiled


def _any_number(kind: Any) -> Any:
    return types.int64 if isinstance(kind, types.IntegerLiteral) else kind
