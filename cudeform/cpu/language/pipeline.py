"""Numba's compiler without what takes its time and changes nothing in our kernels.

Half of the time of a first call goes there. It takes the place of parts of Numba that are nobody's
business but Numba's, so `compiler` asks for it with those versions alone that it was tried with.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags
from numba.core.compiler_machinery import register_pass
from numba.core.imputils import builtin_registry
from numba.core.inline_closurecall import InlineWorker
from numba.core.ir import Scope
from numba.core.registry import cpu_target
from numba.core.runtime.context import NRTContext
from numba.core.typing import Context
from numba.core.untyped_passes import InlineInlinables
from numba.cpython.builtins import do_minmax

__all__ = ["Drafts", "Kernels", "Parts", "called"]

_MOST = 4096  # answers that are kept


class Kernels(Compiler):
    """Numba's compiler without the passes that change nothing here."""

    library: type[JITCodeLibrary]

    def _compile_core(self) -> Any:
        self.state.flags = _Flags(self.state.flags)
        return super()._compile_core()

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        state.typingctx, state.targetctx.get_abi_sizeof = _TYPING, _size_of
        state.targetctx.nrt = _References(state.targetctx, state.targetctx.enable_nrt)
        state.targetctx.get_function = functools.partial(_implementation, state.targetctx)
        (passes,) = super().define_pipelines()
        passes.passes = [
            (_INSTEAD.get(each, each), what)
            for each, what in passes.passes
            if each.__name__ not in _UNNEEDED
        ]
        passes.finalize()
        return [passes]


# What they look for is not in our kernels: `with`, closures, expressions of whole arrays.
_UNNEEDED = {"WithLifting", "InlineClosureLikes", "NopythonRewrites"}


class _Flags(Flags):
    """Numba's, which it compares for each call of a function of its own, by all that there are."""

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Flags) and self._values == other._values
        return same or super().__eq__(other)

    __hash__ = Flags.__hash__


@register_pass(mutates_CFG=True, analysis_only=False)
class _Inline(InlineInlinables):
    """Numba's, which reads a function anew wherever it is called."""

    def _do_work(self, state: Any, work: Any, block: Any, i: int, call: Any, worker: Any) -> Any:
        worker.run_untyped_passes = functools.partial(_read, worker)
        return super()._do_work(state, work, block, i, call, worker)


_INSTEAD = {InlineInlinables: _Inline}


def _read(worker: Any, function: Callable[..., Any]) -> Any:
    """What a function does, of which callers make copies."""
    worker.flags.enable_ssa = False  # as if it was read here
    if function not in _READ:
        found = InlineWorker.run_untyped_passes(worker, function)
        for block in found.blocks.values():
            block.scope.__class__ = _Names
        _READ[function] = found
    return _READ[function]


_READ: dict[Callable[..., Any], Any] = {}


class _Names(Scope):
    """The variables of such a function, which stay as they are.

    Numba copies all of them with each block of it, and adds those that the caller calls them.
    """

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def redefine(self, name: str, loc: Any, rename: bool = True) -> Any:
        return None


def _implementation(context: Any, function: Any, signature: Any, _firstcall: bool = True) -> Any:
    """How a function is lowered, one perhaps that was declared while this kernel is compiled.

    Numba would ask all of its modules for what they declare.
    """
    compare = _COMPARED.get(getattr(function, "typing_key", None))
    if compare is not None:
        return _pick(context, signature.args, compare)
    context.install_registry(builtin_registry)
    return type(context).get_function(context, function, signature, _firstcall)


# For each pair of types Numba compiles a function of two numbers.
_COMPARED = {min: operator.lt, max: operator.gt}


def _pick(context: Any, kinds: Any, compare: Any) -> Any:
    def pick(builder: Any, numbers: Any, loc: Any = None) -> Any:
        return do_minmax(context, builder, kinds, numbers, compare)

    return pick


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
    if func.typing_key in _COMPARED:
        kind = _TYPING.unify_types(*map(types.unliteral, args))
        return kind(*[kind] * len(args))
    return Context.resolve_function_type(_TYPING, func, args, {})


_TYPING = _Typing(cpu_target.typing_context)


class _Whole(JITCodeLibrary):
    """The code of a kernel, with that of all it calls: LLVM sees that once, as a whole."""

    def add_linking_library(self, library: Any) -> None:
        super().add_linking_library(library)
        if isinstance(library, _Draft):
            for called in library._linking_libraries:
                self.add_linking_library(called)


class _Part(_Whole):
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
    """The same, which LLVM gets to see as a part of kernels only, beside what it calls."""

    def add_linking_library(self, library: Any) -> None:
        JITCodeLibrary.add_linking_library(self, library)

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalize_final_module()


class Parts(Kernels):
    """The same, up to LLVM's code."""

    library = _Part


class Drafts(Kernels):
    library = _Draft


Kernels.library = _Whole


def called(function: Callable[..., Any], pipeline: type[Compiler], options: Any) -> Any:
    """Compile for kernels to call: once for all numbers that are written out, and for an array
    whether or not it may be written. What writes to one that may not is found with other versions.
    """
    compiled = njit(pipeline_class=pipeline, _nrt=False, **options)(function)
    template = getattr(compiled, "get_call_template", None)
    if template is not None:  # else NUMBA_DISABLE_JIT

        def in_general(args: Any, kws: Any) -> Any:
            return template(tuple(map(_general, args)), kws)

        compiled.get_call_template = in_general
    return compiled


def _general(kind: Any) -> Any:
    if isinstance(kind, types.Array):
        return kind.copy(readonly=False)
    # Those in a tuple are steps in the loop of a product, which LLVM is to know.
    return kind if isinstance(kind, types.BaseTuple) else types.unliteral(kind)
