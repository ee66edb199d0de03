"""Numba's compiler without what takes its time and changes nothing in our kernels.

Half of the time of a first call goes there. It takes the place of parts of Numba that are nobody's
business but Numba's, so `compiler` asks for it with those versions alone that it was tried with.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import njit, types
from numba.core import base, config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags
from numba.core.imputils import builtin_registry
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.typed_passes import NativeLowering
from numba.core.typing import Context, mathdecl, npydecl
from numba.cpython import mathimpl
from numba.cpython.builtins import do_minmax
from numba.np import npyimpl

from cudeform.cpu.language.inlining import INSTEAD, Passes
from cudeform.cpu.language.lowering import Native

_MOST = 4096  # answers that are kept


def declare() -> None:
    """Ask those modules of Numba what they declare that kernels are made of.

    It would ask all of its own before the first kernel, which load SciPy's linear algebra, random
    numbers and lists: that takes as long as a small kernel.
    """
    for name in _DECLARING:
        importlib.import_module(name)
    target = cpu_target.target_context
    rtsys.initialize(target)
    for implemented in (builtin_registry, mathimpl.registry, npyimpl.registry):
        target.install_registry(implemented)
    with _asking_no_other():
        for declared in (mathdecl.registry, npydecl.registry):
            _TYPING.install_registry(declared)
        _TYPING._load_builtins()


_DECLARING = "numba.cpython.numbers", "numba.cpython.tupleobj", "numba.cpython.rangeobj"


@contextmanager
def _asking_no_other() -> Iterator[None]:
    """Within Numba's lock: it asks all modules anew for each intrinsic and method that it meets."""
    target = cpu_target.target_context
    given = vars(target)
    before = given.get("refresh")
    given["refresh"] = functools.partial(target.install_registry, builtin_registry)
    try:
        yield
    finally:
        del given["refresh"]
        if before is not None:
            given["refresh"] = before


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Nearly all that is made while a kernel is compiled is in use until the end."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _nothing() -> None:
    pass


class Kernels(Compiler):
    """Numba's compiler without the passes that change nothing here."""

    library: type[JITCodeLibrary]
    apart = False  # whether LLVM is told that its arrays are

    def __init__(self, typing: Any, target: Any, *rest: Any) -> None:
        target = copy.copy(target)
        target.refresh = _nothing
        super().__init__(_TYPING, target, *rest)
        del self.state.targetctx.refresh  # what is not found asks for all

    def _compile_core(self) -> Any:
        self.state.flags = _Flags(self.state.flags)
        with _asking_no_other(), _collecting_nothing():
            return super()._compile_core()

    def define_pipelines(self) -> Any:
        state = self.state
        state.flags.noalias = self.apart
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        state.targetctx.get_abi_sizeof = _size_of
        state.targetctx.get_function = functools.partial(_implementation, state.targetctx)
        (given,) = super().define_pipelines()
        passes = Passes(given.pipeline_name)
        for each, what in given.passes:
            if each.__name__ not in _UNNEEDED:
                passes.add_pass(_INSTEAD.get(each, each), what)
        passes.finalize()
        return [passes]


# What they look for is not in our kernels: `with`, closures, literals, expressions of whole arrays,
# variables whose references are counted.
_UNNEEDED = {
    "AnnotateTypes",
    "FindLiterallyCalls",
    "IRLegalization",
    "InlineClosureLikes",
    "InlineOverloads",
    "LiteralPropagationSubPipelinePass",
    "LiteralUnroll",
    "NoPythonSupportedFeatureValidation",
    "NopythonRewrites",
    "RewriteDynamicRaises",
    "WithLifting",
}
_INSTEAD = {**INSTEAD, NativeLowering: Native}


class _Flags(Flags):
    """Numba's, which it compares for each call of a function of its own, by all that there are."""

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Flags) and self._values == other._values
        return same or super().__eq__(other)

    def __hash__(self) -> int:
        return _HASH


_HASH = hash(Flags())  # of the names alone, which Numba sorts for each call


def _implementation(context: Any, function: Any, signature: Any, _firstcall: bool = True) -> Any:
    """How a function is lowered, one perhaps that was declared while this kernel is compiled.

    Numba would ask all of its modules for what they declare.
    """
    compare = _COMPARED.get(getattr(function, "typing_key", None))
    if compare is not None:
        return _pick(context, signature.args, compare)
    context.install_registry(builtin_registry)
    # What has a name may be there or not; what else is not there asks for all after all.
    ask = _firstcall and not isinstance(function, str)
    return type(context).get_function(context, function, signature, ask)


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


class _Typing(Context):
    """Numba's, with a memory: to find the type of a sum it tries all sums that there are."""

    def __init__(self, context: Any) -> None:
        self.__dict__ = context.__dict__

    def refresh(self) -> None:
        declare()

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        if type(func) not in (types.Function, types.NumberClass) or kws:
            return super().resolve_function_type(func, args, kws)
        return _signature(func, tuple(args))

    def resolve_getattr(self, typ: Any, attr: str) -> Any:
        if isinstance(typ, types.Module):  # others may come to be there
            return super().resolve_getattr(typ, attr)
        return _attribute(typ, attr)

    def resolve_setitem(self, target: Any, index: Any, value: Any) -> Any:
        return _signature(self.resolve_value_type(operator.setitem), (target, index, value))


@functools.lru_cache(maxsize=_MOST)
def _signature(func: Any, args: tuple[Any, ...]) -> Any:
    if getattr(func, "typing_key", None) in _COMPARED:
        kind = _TYPING.unify_types(*map(types.unliteral, args))
        return kind(*[kind] * len(args))
    return Context.resolve_function_type(_TYPING, func, args, {})


@functools.lru_cache(maxsize=_MOST)
def _attribute(kind: Any, name: str) -> Any:
    return Context.resolve_getattr(_TYPING, kind, name)


_TYPING = _Typing(cpu_target.typing_context)
base._has_loc = functools.lru_cache(maxsize=_MOST)(base._has_loc)  # asked for each statement


class _Whole(JITCodeLibrary):
    """The code of a kernel, with that of all it calls: LLVM sees that once, as a whole."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """At the third level LLVM makes a copy of a loop for each answer to what is asked in it."""
        codegen = self._codegen
        cheap = {"loop_vectorize": codegen._loopvect, "slp_vectorize": False, "cost": "cheap"}
        for options in ({**cheap, "opt": codegen._opt_level}, {"opt": min(config.OPT, 2)}):
            passes, builder = codegen._module_pass_manager(**options)
            passes.run(self._final_module, builder)

    def add_linking_library(self, library: Any) -> None:
        super().add_linking_library(library)
        if isinstance(library, _Draft):
            for called in library._linking_libraries:
                self.add_linking_library(called)


class _Part(_Whole):
    """The code of a function that only kernels call, as LLVM made it by itself.

    Machine code of it is written as a part of kernels; Numba would do so here as well, for nobody.
    """

    _optimize_functions = JITCodeLibrary._optimize_functions

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

    _optimize_functions = _Whole._optimize_functions

    def add_linking_library(self, library: Any) -> None:
        JITCodeLibrary.add_linking_library(self, library)

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalize_final_module()


class Parts(Kernels):
    """The same, up to LLVM's code."""

    library = _Part


class Drafts(Kernels):
    library = _Draft


class Apart(Drafts):
    """The same of a function whose arrays have nothing in common: LLVM needs no code to find that
    out, nor a second loop for where they have.
    """

    apart = True


Kernels.library = _Whole


def called(function: Callable[..., Any], pipeline: type[Compiler], options: Any) -> Any:
    """Compile for kernels to call: once for all numbers that are written out, and for an array
    whether or not it may be written. What writes to one that may not is found with other versions.
    """
    compiled = njit(pipeline_class=pipeline, **options)(function)
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
