"""Memory that a kernel takes for itself: flat arrays, aligned for the widest vectors."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["empty", "zeroed"]

_ALIGNMENT = 64  # bytes: a line of the cache


def _allocate(context: Any, builder: Any, array: types.Array, count: Any) -> tuple[Any, Any]:
    """The array, and the number of its bytes."""
    itemsize = context.get_constant(types.intp, array.dtype.bitwidth // 8)
    size = builder.mul(count, itemsize)
    block = context.nrt.meminfo_alloc_aligned(builder, size, _ALIGNMENT)
    data = context.nrt.meminfo_data(builder, block)
    result = context.make_array(array)(context, builder)
    pointer = builder.bitcast(data, context.get_data_type(array.dtype).as_pointer())
    populate_array(result, pointer, [count], [itemsize], itemsize, block)
    return result, size


@intrinsic
def empty(typingctx, count, dtype):
    """`numpy.empty` of one axis, in a fraction of the time that Numba takes to compile that."""
    array = types.Array(dtype.dtype, 1, "C")

    def codegen(context, builder, signature, args):
        return _allocate(context, builder, array, args[0])[0]._getvalue()

    return array(types.intp, dtype), codegen


@intrinsic
def zeroed(typingctx, count, dtype):
    """`numpy.zeros` of one axis."""
    array = types.Array(dtype.dtype, 1, "C")

    def codegen(context, builder, signature, args):
        result, size = _allocate(context, builder, array, args[0])
        cgutils.memset(builder, result.data, size, 0)
        return result._getvalue()

    return array(types.intp, dtype), codegen
