"""Arrays and named integers as kernels hand them on: a place in memory, and no more.

Numba's array has seven parts, and with each function that takes some of them, and each tuple that
holds them, the code that LLVM has to read grows by as many instructions. Whoever makes a bare array
keeps the memory: the caller of a kernel that of its arguments, and a kernel what it is lent.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin, lower_getattr_generic
from numba.core.runtime.context import NRTContext
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model

from cudeform.cpu.language.simd import pointer_to


class _Bare(types.Array):
    """A flat array whose size nobody knows, and whose indices are not negative."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(dtype, 1, "C", name=f"Bare({dtype})")

    def copy(self, *_: Any, **__: Any) -> _Bare:
        return self


@register_model(_Bare)
class _BareModel(models.StructModel):
    def __init__(self, manager: Any, array: _Bare) -> None:
        super().__init__(manager, array, [("data", types.CPointer(array.dtype))])


class _Lent(_Bare):
    """The same, of memory that has to be given back."""


_ALIGNMENT = 64  # bytes: a line of the cache
_OWNER = types.MemInfoPointer(types.voidptr)


@register_model(_Lent)
class _LentModel(models.StructModel):
    def __init__(self, manager: Any, array: _Lent) -> None:
        members = [("data", types.CPointer(array.dtype)), ("owner", types.voidptr)]
        super().__init__(manager, array, members)


@intrinsic
def bare(typingctx, array, first):
    """A flat array from this element on."""
    result = _Bare(array.dtype)

    def codegen(context, builder, signature, args):
        made = context.make_array(result)(context, builder)
        made.data = pointer_to(context, builder, array, *args)
        return made._getvalue()

    return result(array, types.intp), codegen


@intrinsic
def seen_as(typingctx, array, like):
    """The same memory as numbers of another type, if these are as wide: what copies the ones need
    not be compiled again for the others.
    """
    same = array.dtype.bitwidth == like.dtype.bitwidth
    result = _Bare(like.dtype if same else array.dtype)

    def codegen(context, builder, signature, args):
        given = context.make_array(array)(context, builder, args[0])
        made = context.make_array(result)(context, builder)
        made.data = builder.bitcast(given.data, made.data.type)
        return made._getvalue()

    return result(array, like), codegen


def _lend(dtype: Any, clear: bool) -> Any:
    """An intrinsic's type and code."""
    result = _Lent(dtype.dtype)

    def codegen(context, builder, signature, args):
        references = NRTContext(context, True)
        itemsize = context.get_constant(types.intp, dtype.dtype.bitwidth // 8)
        size = builder.mul(args[0], itemsize)
        array = context.make_array(result)(context, builder)
        array.owner = references.meminfo_alloc_aligned(builder, size, _ALIGNMENT)
        data = references.meminfo_data(builder, array.owner)
        if clear:
            cgutils.memset(builder, data, size, 0)
        array.data = builder.bitcast(data, array.data.type)
        return array._getvalue()

    return result(types.intp, dtype), codegen


@intrinsic
def lent(typingctx, count, dtype):
    """A bare array of so many numbers, aligned for the widest vectors, to be given back."""
    return _lend(dtype, False)


@intrinsic
def cleared(typingctx, count, dtype):
    """The same, of zeros."""
    return _lend(dtype, True)


@intrinsic
def give_back(typingctx, array):
    """The end of an array that was `lent`."""

    def codegen(context, builder, signature, args):
        owner = context.make_array(array)(context, builder, args[0]).owner
        NRTContext(context, True).decref(builder, _OWNER, owner)
        return context.get_dummy_value()

    return types.void(array), codegen


@lower_builtin(operator.getitem, _Bare, types.Integer)
def _get(context, builder, signature, args):
    pointer = pointer_to(context, builder, signature.args[0], *args)
    return context.unpack_value(builder, signature.args[0].dtype, pointer)


@lower_builtin(operator.setitem, _Bare, types.Integer, types.Any)
def _set(context, builder, signature, args):
    array, _, kind = signature.args
    value = context.cast(builder, args[2], kind, array.dtype)
    context.pack_value(builder, array.dtype, value, pointer_to(context, builder, array, *args[:2]))
    return context.get_dummy_value()


class _Record(types.Type):
    """Integers with the names of a named tuple's."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        super().__init__(name=f"Record({kind.__module__}.{kind.__qualname__})")


@register_model(_Record)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, manager: Any, record: _Record) -> None:
        super().__init__(manager, record, ir.IntType(64).as_pointer())


@infer_getattr
class _Fields(AttributeTemplate):
    key = _Record

    def generic_resolve(self, record: _Record, name: str) -> Any:
        return types.int64 if name in record.kind._fields else None


@lower_getattr_generic(_Record)
def _field(context, builder, record, value, name):
    at = context.get_constant(types.intp, record.kind._fields.index(name))
    loaded = builder.load(builder.gep(value, [at]))
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
    return loaded


def records(*kinds: type) -> Callable[..., Any]:
    """For kernels: the named tuples of integers that begin an array, one after the other.

    The array stays as it is as long as there are kernels that read it.
    """
    result = types.Tuple([_Record(kind) for kind in kinds])

    @intrinsic
    def read(typingctx, numbers):
        def codegen(context, builder, signature, args):
            found, at = [], 0
            for kind in kinds:
                place = context.get_constant(types.intp, at)
                found.append(pointer_to(context, builder, numbers, args[0], place))
                at += len(kind._fields)
            return context.make_tuple(builder, result, found)

        return result(numbers), codegen

    return read
