"""Vectors for Numba kernels: load, store, fma and the block of a matrix product held in registers.

Written out, because LLVM neither vectorises a float sum without reassociating it nor keeps a block
of sums in registers. A vector is as wide as the registers of the processor that Numba compiles for,
which is not always the one at hand.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

_WIDE_SUM = """
target triple = "{}"
define <16 x float> @sum(<16 x float> %a, <16 x float> %b) {{
  %c = fadd <16 x float> %a, %b
  ret <16 x float> %c
}}
"""


def _register_file() -> tuple[int, int, int]:
    """Bytes of a vector register, then rows and vectors of the block that fits in all of them.

    Asked of the target machine itself: NUMBA_CPU_NAME and its like choose another than the host's,
    and Numba keeps compiled kernels by target. With sizes of anything else a kernel from the disk
    would read and write beyond what its caller has set aside for it.
    """
    machine = cpu_target.target_context.codegen()._tm
    code = machine.emit_assembly(llvmlite.binding.parse_assembly(_WIDE_SUM.format(machine.triple)))
    if "%zmm" in code:
        return 64, 12, 2
    if "%ymm" in code:
        return 32, 6, 2
    return 16, 6, 4 if machine.triple.startswith(("aarch64", "arm64")) else 2


VECTOR_BYTES, BLOCK_ROWS, _VECTORS = _register_file()
BLOCK_BYTES = _VECTORS * VECTOR_BYTES  # of a row of the block
_LOW_ROWS = BLOCK_ROWS // 3


class Vector(types.Type):
    """A register full of numbers of one dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = 8 * VECTOR_BYTES // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}, {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


def _index(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


def pointer_to(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    """For intrinsics: the place of an element of a flat array."""
    data = context.make_array(array)(context, builder, value).data
    return builder.gep(data, [index])


def _as_vector(context: Any, builder: Any, vector: Vector, pointer: Any) -> Any:
    return builder.bitcast(pointer, context.get_value_type(vector).as_pointer())


def _broadcast(context: Any, builder: Any, vector: Vector, scalar: Any) -> Any:
    llvm = context.get_value_type(vector)
    first = builder.insert_element(
        ir.Constant(llvm, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, first, lanes)


def _in_register(builder: Any, value: Any) -> Any:
    """The same vector, made here and not earlier.

    LLVM's scheduler would make the copies of all elements of a column before the first of them is
    used, more than there are registers for, and keep them in memory. It moves nothing into an empty
    piece of assembly that says it changes the vector, or out of it.
    """
    x86 = builder.module.triple.startswith(("x86", "i386", "i686"))
    arm = builder.module.triple.startswith(("aarch64", "arm64"))
    if not x86 and not arm:
        return value
    function = ir.FunctionType(value.type, [value.type])
    return builder.asm(function, "", "=v,0" if x86 else "=w,0", [value], side_effect=False)


def _fused(context: Any, builder: Any, vector: Vector, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: a machine without the instruction multiplies and adds
    llvm = context.get_value_type(vector)
    name = f"llvm.fmuladd.v{vector.lanes}f{vector.dtype.bitwidth}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(llvm, [llvm] * 3), name
    )
    return builder.call(function, [a, b, c])


def _constant(value: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _index(value)

    return codegen


@intrinsic
def lanes(typingctx, array):
    """Elements of this array's dtype in a vector."""
    return types.intp(array), _constant(Vector(array.dtype).lanes)


@intrinsic
def block_rows(typingctx, array):
    """Rows of the block that `add_product` computes."""
    return types.intp(array), _constant(BLOCK_ROWS)


@intrinsic
def low_rows(typingctx, array):
    """Rows of the block that `add_low_product` computes; `block_rows` is a multiple of them."""
    return types.intp(array), _constant(_LOW_ROWS)


@intrinsic
def block_columns(typingctx, array):
    """Columns of the block that `add_product` computes."""
    return types.intp(array), _constant(_VECTORS * Vector(array.dtype).lanes)


@intrinsic
def load(typingctx, array, index):
    """The vector that starts at this element of a flat array."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        return builder.load(
            _as_vector(context, builder, vector, pointer), align=array.dtype.bitwidth // 8
        )

    return vector(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, value):
    """Write a vector from this element of a flat array on."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        pointer = _as_vector(context, builder, value, pointer)
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


def _first_lanes(builder: Any, lanes: int, count: Any) -> Any:
    """Which lanes of a vector are among its first so many."""
    wide = ir.VectorType(ir.IntType(32), lanes)
    number = ir.Constant(wide, list(range(lanes)))
    limit = builder.trunc(count, ir.IntType(32))
    first = builder.insert_element(
        ir.Constant(wide, ir.Undefined), limit, ir.Constant(ir.IntType(32), 0)
    )
    limits = builder.shuffle_vector(first, first, ir.Constant(wide, [0] * lanes))
    return builder.icmp_signed("<", number, limits)


def _masked(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def masked_load(builder: Any, pointer: Any, lanes: int, count: Any, size: int) -> Any:
    """For intrinsics: the vector of `count` elements of so many bytes from a place on."""
    element = pointer.type.pointee
    vector = ir.VectorType(element, lanes)
    kind = "i" if isinstance(element, ir.IntType) else "f"
    name = f"llvm.masked.load.v{lanes}{kind}{8 * size}.p0"
    align = ir.Constant(ir.IntType(32), size)
    none = ir.Constant(vector, [0 if kind == "i" else 0.0] * lanes)
    mask = _first_lanes(builder, lanes, count)
    pointer = builder.bitcast(pointer, vector.as_pointer())
    return _masked(builder, name, vector, [pointer, align, mask, none])


# Where LLVM sees that `count` is all lanes, it makes a plain load of this, or a plain store.
@intrinsic
def load_some(typingctx, array, index, count):
    """A vector of `count` elements from this one on, and zeros behind them, which are not read."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        return masked_load(builder, pointer, vector.lanes, args[2], array.dtype.bitwidth // 8)

    return vector(array, types.intp, types.intp), codegen


def masked_store(builder: Any, pointer: Any, value: Any, count: Any, size: int) -> None:
    """For intrinsics: write the first `count` elements, of so many bytes, of a vector."""
    lanes = value.type.count
    kind = "i" if isinstance(value.type.element, ir.IntType) else "f"
    name = f"llvm.masked.store.v{lanes}{kind}{8 * size}.p0"
    align = ir.Constant(ir.IntType(32), size)
    pointer = builder.bitcast(pointer, value.type.as_pointer())
    mask = _first_lanes(builder, lanes, count)
    _masked(builder, name, ir.VoidType(), [value, pointer, align, mask])


@intrinsic
def store_some(typingctx, array, index, value, count):
    """Write the first `count` elements of a vector."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        masked_store(builder, pointer, args[2], args[3], array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value, types.intp), codegen


@intrinsic
def zeros(typingctx, array):
    """A vector of zeros of this array's dtype."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(vector), [0.0] * vector.lanes)

    return vector(array), codegen


@intrinsic
def splat(typingctx, array, scalar):
    """A vector of copies of one number, in this array's dtype."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        return _broadcast(context, builder, vector, args[1])

    return vector(array, array.dtype), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c."""

    def codegen(context, builder, signature, args):
        return _fused(context, builder, a, *args)

    return a(a, a, a), codegen


@intrinsic
def select(typingctx, condition, value, other):
    """The value where the condition holds, else the other: for Numba one step, no branch."""
    kind = typingctx.unify_types(types.unliteral(value), types.unliteral(other))

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return kind(types.boolean, kind, kind), codegen


@intrinsic
def total(typingctx, value):
    """The sum of the lanes, halves first: the same order every time."""

    def codegen(context, builder, signature, args):
        result, width = args[0], value.lanes
        while width > 1:
            width //= 2
            pick = ir.VectorType(ir.IntType(32), width)
            low = builder.shuffle_vector(result, result, ir.Constant(pick, list(range(width))))
            high = ir.Constant(pick, list(range(width, 2 * width)))
            result = builder.fadd(low, builder.shuffle_vector(result, result, high))
        return builder.extract_element(result, ir.Constant(ir.IntType(32), 0))

    return value.dtype(value), codegen


@intrinsic
def totals(typingctx, a, b, c, d):
    """The sums of the lanes of four vectors, in fewer steps than one after the other takes."""

    def codegen(context, builder, signature, args):
        def pick(one, other, lanes):
            mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
            return builder.shuffle_vector(one, other, mask)

        def folded(one, other):
            """The halves of two vectors added up, side by side."""
            width = one.type.count
            low = [*range(width // 2), *range(width, width + width // 2)]
            high = [lane + width // 2 for lane in low]
            return builder.fadd(pick(one, other, low), pick(one, other, high))

        pairs = folded(args[0], args[1]), folded(args[2], args[3])
        width = a.lanes // 2  # lanes of each vector that are left
        while width > 1:
            width //= 2
            lanes = [lane for first in (0, 2 * width) for lane in range(first, first + width)]
            others = [lane + width for lane in lanes]
            pairs = tuple(builder.fadd(pick(p, p, lanes), pick(p, p, others)) for p in pairs)
        sums = [builder.extract_element(p, _index(i)) for p in pairs for i in (0, 1)]
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(a.dtype, 4)(a, a, a, a), codegen


@intrinsic
def transpose_square(typingctx, source, at, step, target, to, pitch):
    """target[to + j*pitch + i] = source[at + i*step + j] for i and j below `lanes`."""
    vector = Vector(source.dtype)
    width = vector.lanes

    def codegen(context, builder, signature, args):
        bytes_each = source.dtype.bitwidth // 8

        def rows(array, value, start, step):
            for i in range(width):
                index = builder.add(start, builder.mul(step, _index(i)))
                pointer = pointer_to(context, builder, array, value, index)
                yield _as_vector(context, builder, vector, pointer)

        def interleave(a, b, first):
            lanes = [first + i // 2 + width * (i % 2) for i in range(width)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), width), lanes)
            return builder.shuffle_vector(a, b, mask)

        values = [builder.load(p, align=bytes_each) for p in rows(source, *args[:3])]
        for _ in range(width.bit_length() - 1):
            pairs = zip(values[: width // 2], values[width // 2 :], strict=True)
            values = [interleave(a, b, first) for a, b in pairs for first in (0, width // 2)]
        for value, pointer in zip(values, rows(target, *args[3:]), strict=True):
            builder.store(value, pointer, align=bytes_each)
        return context.get_dummy_value()

    i = types.intp
    return types.void(source, i, i, target, i, i), codegen


def _product(rows: int, a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """Type and code of `add_product` for a block of so many rows."""
    vector = Vector(a.dtype)

    def codegen(context, builder, signature, args):
        a_row, a_step, b_step, c_row, depth, fresh = (args[n] for n in (2, 3, 6, 9, 10, 11))
        a_base = pointer_to(context, builder, a, args[0], args[1])
        b_base = pointer_to(context, builder, b, args[4], args[5])
        c_base = pointer_to(context, builder, c, args[7], args[8])
        bytes_each = a.dtype.bitwidth // 8

        def row(base, step, i):
            return builder.gep(base, [builder.mul(step, i)])

        def vectors(base):
            for v in range(_VECTORS):
                pointer = builder.gep(base, [_index(v * vector.lanes)])
                yield _as_vector(context, builder, vector, pointer)

        block = [p for i in range(rows) for p in vectors(row(c_base, c_row, _index(i)))]
        zero = ir.Constant(context.get_value_type(vector), [0.0] * vector.lanes)
        sums = []  # LLVM makes registers of them
        for pointer in block:
            before = builder.load(pointer, align=bytes_each)
            start = builder.select(fresh, zero, before)
            sums.append(cgutils.alloca_once_value(builder, start))
        with cgutils.for_range(builder, depth) as loop:
            b_row = row(b_base, b_step, loop.index)
            across = [builder.load(p, align=bytes_each) for p in vectors(b_row)]
            a_column = row(a_base, a_step, loop.index)
            for i in range(rows):
                element = builder.load(row(a_column, a_row, _index(i)))
                down = _in_register(builder, _broadcast(context, builder, vector, element))
                for v, value in enumerate(sums[i * _VECTORS : (i + 1) * _VECTORS]):
                    added = _fused(context, builder, vector, down, across[v], builder.load(value))
                    builder.store(added, value)
        for pointer, value in zip(block, sums, strict=True):
            builder.store(builder.load(value), pointer, align=bytes_each)
        return context.get_dummy_value()

    i = types.intp
    return types.void(a, i, i, i, b, i, i, c, i, i, i, types.boolean), codegen


@intrinsic
def add_product(typingctx, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, depth, fresh):
    """Add a product of two matrices to a block, or set the block to it where `fresh`.

    c[c_at + i*c_row + j] += sum over k of a[a_at + i*a_row + k*a_step] * b[b_at + k*b_step + j]
    for i < block_rows, j < block_columns, k < depth; the block stays in registers meanwhile.
    """
    return _product(BLOCK_ROWS, a, b, c)


@intrinsic
def add_low_product(
    typingctx, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, depth, fresh
):
    """The same for i < low_rows, where fewer rows are left."""
    return _product(_LOW_ROWS, a, b, c)
