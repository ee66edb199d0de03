"""From Numba's intermediate code to LLVM's, without what Numba looks for in code of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from operator import getitem, setitem
from typing import Any

from numba.core import ir
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import NativeLowering


@register_pass(mutates_CFG=True, analysis_only=False)
class Native(NativeLowering):
    """Numba's, with another lowering."""

    _name = "native"

    @property
    def lowering_class(self) -> type[Lower]:
        return _Lowering


class _Lowering(Lower):
    """Numba's, which writes every statement down for messages that nobody reads."""

    def _find_singly_assigned_variable(self) -> None:
        """Those that are set once and read in that block only: they need no place in memory."""
        places: dict[str, int] = {}
        self._singly_assigned_vars, self._blk_local_varmap = set(), {}
        local = self._singly_assigned_vars
        for label, block in self.func_ir.blocks.items():
            for statement in block.body:
                for name in _read(statement):
                    if places.setdefault(name, label) != label or name not in local:
                        places[name] = -1
                        local.discard(name)
                if type(statement) is ir.Assign:
                    name = statement.target.name
                    if name in places:
                        places[name] = -1
                        local.discard(name)
                    else:
                        places[name] = label
                        local.add(name)

    def pre_block(self, block: Any) -> None:
        self._cur_ir_block = block

    def lower_block(self, block: Any) -> None:
        self.pre_block(block)
        for statement in block.body:
            self.loc = statement.loc
            self.lower_inst(statement)

    def lower_inst(self, statement: Any) -> None:
        if type(statement) is ir.Assign:
            target = statement.target.name
            self.storevar(self.lower_assign(self.typeof(target), statement), target)
        else:
            super().lower_inst(statement)

    def lower_binop(self, kind: Any, expression: Any, operator: Any) -> Any:
        signature = self.fndesc.calltypes[expression]
        found = self._applied(operator, (expression.lhs, expression.rhs), signature)
        return self.context.cast(self.builder, found, signature.return_type, kind)

    def lower_getitem(self, kind: Any, _: Any, value: Any, index: Any, signature: Any) -> Any:
        found = self._applied(getitem, (value, index), signature)
        return self.context.cast(self.builder, found, signature.return_type, kind)

    def lower_setitem(self, target: Any, index: Any, value: Any, signature: Any) -> Any:
        return self._applied(setitem, (target, index, value), signature)

    def _applied(self, operator: Any, variables: tuple[Any, ...], signature: Any) -> Any:
        """With the signature that is known; Numba looks for one again, up to three times."""
        given = [
            self.context.cast(self.builder, self.loadvar(v.name), self.typeof(v.name), wanted)
            for v, wanted in zip(variables, signature.args, strict=True)
        ]
        typing = self.context.typing_context
        function = typing.resolve_value_type(operator)
        if signature.args not in function._impl_keys:  # there were fewer when it was found
            function.get_call_type(typing, signature.args, {})
        return self.context.get_function(function, signature)(self.builder, given)

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))


def _read(value: Any) -> Iterator[str]:
    """The variables that a statement reads, or a part of one."""
    kind = type(value)
    if kind is ir.Var:
        yield value.name
    elif kind is ir.Assign:
        yield from _read(value.value)
    elif kind is ir.Expr:
        for each in value._kws.values():
            yield from _read(each)
    elif kind is tuple or kind is list:
        for each in value:
            yield from _read(each)
    elif isinstance(value, ir.Stmt):
        yield from (variable.name for variable in value.list_vars())
