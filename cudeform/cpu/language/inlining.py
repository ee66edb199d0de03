"""Functions that are a part of each caller, put there in one go.

Numba copies such a function several times for each call of it, with all that it knows of it.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from numba.core import ir, types
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.inline_closurecall import (
    InlineWorker,
    _add_definitions,
    _get_callee_args,
    _replace_returns,
)
from numba.core.interpreter import Interpreter
from numba.core.ir_utils import build_definitions, get_definition, guard, simplify_CFG
from numba.core.rewrites.static_getitem import RewriteConstGetitems, RewriteConstSetitems
from numba.core.ssa import (
    _CacheListVars,
    _compute_phi_locations,
    _find_defs_violators,
    _FixSSAVars,
    _fresh_vars,
    _iterated_domfronts,
    _run_block_rewrite,
)
from numba.core.transforms import canonicalize_cfg
from numba.core.typed_passes import PreLowerStripPhis
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    InlineInlinables,
    IRProcessing,
    MakeFunctionToJitFunction,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)


class Passes(PassManager):
    """Numba's, which computes anew after each pass what only its last ones ask for."""

    def _runPass(self, index: int, each: Any, state: Any) -> None:
        each.analysis = self._analysis
        each.run_pass(state)


class _Interpreter(Interpreter):
    def post_process(self, peepholes: Any, function: Any) -> Any:
        needed = (each for each in peepholes if each.__name__ not in _UNNEEDED)
        return super().post_process(needed, function)


# They look for `with` and for dictionaries.
_UNNEEDED = "peep_hole_delete_with_exit", "peep_hole_fuse_dict_add_updates"


@register_pass(mutates_CFG=True, analysis_only=False)
class _Translate(TranslateByteCode):
    """From Python's code to Numba's."""

    _name = "translate"

    def run_pass(self, state: Any) -> bool:
        state.func_ir = _Interpreter(state.func_id).interpret(state.bc)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Canonical(IRProcessing):
    """What the passes up to the types need of Numba's: loops have one way back."""

    def run_pass(self, state: Any) -> bool:
        state.func_ir.blocks = canonicalize_cfg(state.func_ir.blocks)
        return True


# Numba's own end with the lives of variables, which nobody asks for before the last pass.
@register_pass(mutates_CFG=True, analysis_only=False)
class _Constant(GenericRewrites):
    """Elements at indices that are written out; nothing else is rewritten in our kernels."""

    _name = "constant"

    def run_pass(self, state: Any) -> bool:
        for each in RewriteConstGetitems, RewriteConstSetitems:
            rewrite = each(state)
            for label, block in state.func_ir.blocks.items():
                while rewrite.match(state.func_ir, block, state.typemap, state.calltypes):
                    state.func_ir.blocks[label] = block = rewrite.apply()
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Single(ReconstructSSA):
    """A name for each value that a variable gets.

    Numba goes through all blocks for each variable, twice: here through those that name it.
    """

    _name = "single"

    def run_pass(self, state: Any) -> bool:
        blocks = state.func_ir.blocks
        cfg = compute_cfg_from_blocks(blocks)
        fronts, variables = _iterated_domfronts(cfg), _CacheListVars()
        where: dict[str, dict[int, None]] = {}
        for label, block in blocks.items():
            for statement in block.body:
                for variable in statement.list_vars():
                    where.setdefault(variable.name, {})[label] = None
        for name in _find_defs_violators(blocks, cfg):
            own, definitions = _fresh_vars({label: blocks[label] for label in where[name]}, name)
            phis: dict[int, list[Any]] = defaultdict(list)
            known = {
                "scope": state.func_ir.blocks[min(blocks)].scope,
                "varname": name,
                "defmap": definitions,
                "phimap": phis,
                "cfg": cfg,
                "phi_locations": _compute_phi_locations(fronts, definitions),
            }
            blocks.update(_run_block_rewrite(own, known, _FixSSAVars(variables)))
            for label, found in phis.items():
                blocks[label].body = found + blocks[label].body
        self._patch_locals(_become(state, state.func_ir))
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Joined(PreLowerStripPhis):
    """And one for what is the same variable on several ways."""

    _name = "joined"

    def run_pass(self, state: Any) -> bool:
        return bool(_become(state, self._strip_phi_nodes(state.func_ir)))


def _become(state: Any, function: Any) -> Any:
    """Go on with other statements."""
    function._definitions = build_definitions(function.blocks)
    state.func_ir = function
    return state


@register_pass(mutates_CFG=True, analysis_only=False)
class _Inline(InlineInlinables):
    """Numba's, which reads a function anew wherever it is called."""

    def run_pass(self, state: Any) -> bool:
        function = state.func_ir
        work, found = list(function.blocks.values()), False
        while work:
            block = work.pop()
            for i, statement in enumerate(block.body):
                inlined = _inlined(function, statement)
                if inlined is not None:
                    # It may call what it was given, and that is known here.
                    work += _insert(function, block, i, inlined, _read(state, inlined))
                    found = True
                    break
        if found:
            for dead in compute_cfg_from_blocks(function.blocks).dead_nodes():
                del function.blocks[dead]
            function.blocks = canonicalize_cfg(simplify_CFG(function.blocks))
        return found


@register_pass(mutates_CFG=True, analysis_only=False)
class _Prune(DeadBranchPrune):
    """Numba's, which knows what is None, but not what else is not."""

    _name = "prune"

    def run_pass(self, state: Any) -> bool:
        blocks, found = state.func_ir.blocks, False
        for block in blocks.values():
            way = _way(state, block.terminator)
            if way is not None:
                block.body[-1], found = ir.Jump(way, block.terminator.loc), True
        if found:
            for dead in compute_cfg_from_blocks(blocks).dead_nodes():
                del blocks[dead]
        return super().run_pass(state) or found


def _way(state: Any, branch: Any) -> int | None:
    """Where a branch goes that asks whether an argument is None which is something else."""
    if not isinstance(branch, ir.Branch):
        return None

    def defined(variable: Any) -> Any:
        return guard(get_definition, state.func_ir, variable)

    asked = defined(branch.cond)
    if isinstance(asked, ir.Expr) and asked.op == "call" and len(asked.args) == 1:  # bool
        asked = defined(asked.args[0])
    if not isinstance(asked, ir.Expr) or asked.op != "binop":
        return None
    given, none = defined(asked.lhs), defined(asked.rhs)
    if not isinstance(given, ir.Arg) or not isinstance(none, ir.Const) or none.value is not None:
        return None
    if isinstance(state.args[given.index], types.NoneType | types.Optional | types.Omitted):
        return None
    return {operator.is_: branch.falsebr, operator.is_not: branch.truebr}.get(asked.fn)


def _inlined(function: Any, statement: Any) -> Callable[..., Any] | None:
    """The function that a statement calls and that is to be inlined."""
    call = statement.value if isinstance(statement, ir.Assign) else None
    if not isinstance(call, ir.Expr) or call.op != "call":
        return None
    found = guard(get_definition, function, call.func)
    called = found.value if isinstance(found, ir.Global | ir.FreeVar) else None
    inlines = getattr(called, "targetoptions", {}).get("inline") == "always"
    return called.py_func if inlines else None


_PASSES = (
    _Translate,
    FixupArgs,
    _Canonical,
    RewriteSemanticConstants,
    DeadBranchPrune,
    _Constant,
    MakeFunctionToJitFunction,
    _Inline,
    DeadBranchPrune,
)
INSTEAD = {
    DeadBranchPrune: _Prune,
    GenericRewrites: _Constant,
    InlineInlinables: _Inline,
    IRProcessing: _Canonical,
    PreLowerStripPhis: _Joined,
    ReconstructSSA: _Single,
    TranslateByteCode: _Translate,
}
_READ: dict[Callable[..., Any], Any] = {}


def _read(state: Any, function: Callable[..., Any]) -> Any:
    """What a function does, of which callers make copies."""
    state.flags.enable_ssa = False  # as if it was read here
    if function not in _READ:
        worker = InlineWorker(
            state.typingctx, state.targetctx, state.locals, state.pipeline, state.flags
        )
        worker._compiler_pipeline = _passes
        found = worker.run_untyped_passes(function)
        found.blocks = simplify_CFG(found.blocks)
        _READ[function] = found
    return _READ[function]


def _passes(state: Any) -> Passes:
    passes = Passes("inlined")
    for each in _PASSES:
        passes.add_pass(each, each.__name__)
    return passes


def _insert(function: Any, block: Any, i: int, inlined: Callable[..., Any], read: Any) -> list[Any]:
    """Put a function in the place of statement i. Returns the blocks of it and of what follows."""
    call, target, loc = block.body[i].value, block.body[i].target, block.body[i].loc
    first = max(function.blocks) + 1
    last = first + max(read.blocks) + 1
    copier = _Copier(block.scope, f"{read.func_id.func_name}.{first}", first)
    copier.arguments = _get_callee_args(call, inlined, loc, function)
    blocks = {first + label: copier.block(each) for label, each in read.blocks.items()}
    _replace_returns(blocks, target, last)
    before = function._definitions[target.name]
    function._definitions[target.name] = [each for each in before if each is not call]
    for each in blocks.values():
        _add_definitions(function, each)
    rest = ir.Block(block.scope, block.loc)
    rest.body = block.body[i + 1 :]
    block.body = [*block.body[:i], ir.Jump(first + min(read.blocks), loc)]
    function.blocks.update(blocks)
    function.blocks[last] = rest
    return [*blocks.values(), rest]


class _Copier:
    """Copies statements, with other variables, labels that begin elsewhere, and arguments."""

    def __init__(self, scope: Any, name: str, first: int) -> None:
        self._scope, self._name, self._first = scope, name, first
        self._variables: dict[str, Any] = {}
        self.arguments: Any = ()

    def block(self, block: Any) -> Any:
        copied = ir.Block(self._scope, block.loc)
        copied.body = [self._statement(each) for each in block.body]
        return copied

    def _statement(self, given: Any) -> Any:
        copied = object.__new__(type(given))
        for name, value in given.__dict__.items():
            copied.__dict__[name] = self._value(value)
        if isinstance(given, ir.Jump):
            copied.target += self._first
        elif isinstance(given, ir.Branch):
            copied.truebr += self._first
            copied.falsebr += self._first
        return copied

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind is ir.Var:
            return self._variable(value)
        if kind is ir.Expr:
            return ir.Expr(value.op, value.loc, **self._value(value._kws))
        if kind is ir.Arg:
            return self.arguments[value.index]
        if kind is list or kind is tuple:
            return kind(map(self._value, value))
        if kind is dict:
            return {name: self._value(each) for name, each in value.items()}
        return value

    def _variable(self, given: Any) -> Any:
        if given.name not in self._variables:
            name = f"{self._name}.{given.name}"
            self._variables[given.name] = self._scope.redefine(name, given.loc)
        return self._variables[given.name]
