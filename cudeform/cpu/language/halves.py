"""Numbers of 16 bits, widened where kernels read them.

Numba has neither type. An array of bfloat16 goes to a kernel as its words without a sign, one of
float16 as words with one, see `words`; arrays of other types are read as they are.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from cudeform.cpu.language.simd import Vector, masked_load, masked_store, pointer_to

_WORDS = {"bfloat16": np.uint16, "float16": np.int16}
_CONVERSION = """
target triple = "{}"
define <4 x float> @widen(<4 x half> %a) {{
  %b = fpext <4 x half> %a to <4 x float>
  ret <4 x float> %b
}}
"""


def _has_conversion() -> bool:
    """Whether the processor that Numba compiles for widens float16 itself, without a library."""
    machine = cpu_target.target_context.codegen()._tm
    module = llvmlite.binding.parse_assembly(_CONVERSION.format(machine.triple))
    code = machine.emit_assembly(module)
    return not any(name in code for name in ("__extendhfsf2", "__gnu_h2f"))


CONVERTS = _has_conversion()


def words(array: np.ndarray) -> np.ndarray:
    """The array as kernels take it."""
    if array.itemsize > 2:
        return array  # the name of a dtype takes microseconds
    as_words = _WORDS.get(array.dtype.name)
    return array if as_words is None else array.view(as_words)


def _is_half(dtype: Any) -> bool:
    return isinstance(dtype, types.Integer) and dtype.bitwidth == 16


def _wide(dtype: Any) -> Any:
    return types.float32 if _is_half(dtype) else dtype


def _alike(value: Any, kind: Any, number: Any = None) -> Any:
    """A type, or a constant of it, with as many lanes as a value has."""
    if not isinstance(value.type, ir.VectorType):
        return kind if number is None else ir.Constant(kind, number)
    lanes = value.type.count
    vector = ir.VectorType(kind, lanes)
    return vector if number is None else ir.Constant(vector, [number] * lanes)


def _widened(builder: Any, dtype: Any, value: Any) -> Any:
    """One number or a vector of them as float32, exactly."""
    if not _is_half(dtype):
        return value

    def alike(kind: Any, number: Any = None) -> Any:
        return _alike(value, kind, number)

    whole, real = ir.IntType(32), ir.FloatType()
    if dtype.signed and CONVERTS:
        return builder.fpext(builder.bitcast(value, alike(ir.HalfType())), alike(real))
    bits = builder.zext(value, alike(whole))
    if not dtype.signed:  # the first half of a float32
        return builder.bitcast(builder.shl(bits, alike(whole, 16)), alike(real))
    sign = builder.shl(builder.and_(bits, alike(whole, 0x8000)), alike(whole, 16))
    rest = builder.shl(builder.and_(bits, alike(whole, 0x7FFF)), alike(whole, 13))
    scaled = builder.fmul(builder.bitcast(rest, alike(real)), alike(real, 2.0**112))
    endless = builder.icmp_unsigned(">=", rest, alike(whole, 0x7C00 << 13))  # or no number
    largest = builder.or_(rest, alike(whole, 0x7F800000))
    rest = builder.select(endless, largest, builder.bitcast(scaled, alike(whole)))
    return builder.bitcast(builder.or_(rest, sign), alike(real))


@intrinsic
def element(typingctx, array, index):
    """The number at an index of a flat array, which is not negative: Numba asks that each time."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _widened(builder, array.dtype, value)

    return _wide(array.dtype)(array, types.intp), codegen


@intrinsic
def load_wide(typingctx, array, index):
    """The vector of the numbers from an index on."""
    vector = Vector(_wide(array.dtype))

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        given = ir.VectorType(pointer.type.pointee, vector.lanes)
        pointer = builder.bitcast(pointer, given.as_pointer())
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _widened(builder, array.dtype, value)

    return vector(array, types.intp), codegen


@intrinsic
def load_wide_some(typingctx, array, index, count):
    """The vector of `count` numbers from an index on, and zeros behind them, which are not read."""
    vector = Vector(_wide(array.dtype))

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        value = masked_load(builder, pointer, vector.lanes, args[2], array.dtype.bitwidth // 8)
        return _widened(builder, array.dtype, value)

    return vector(array, types.intp, types.intp), codegen


def _bfloat16(builder: Any, bits: Any, word: Any) -> Any:
    """The words nearest to float32 numbers, ties to even; `word` makes constants."""
    odd = builder.and_(builder.lshr(bits, word(16)), word(1))
    rounded = builder.add(builder.add(bits, word(0x7FFF)), odd)
    number = builder.icmp_unsigned("<=", builder.and_(bits, word(0x7FFFFFFF)), word(0x7F800000))
    none = builder.or_(bits, word(0x400000))  # stays none where its last bits are cut off
    return builder.lshr(builder.select(number, rounded, none), word(16))


def _float16(builder: Any, bits: Any, word: Any) -> Any:
    """The same; 0.5 is added to what is below the least normal number, so that the sum's last bits
    are the result.
    """
    sign = builder.lshr(builder.and_(bits, word(0x80000000)), word(16))
    rest = builder.and_(bits, word(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(rest, word(13)), word(1))
    normal = builder.add(builder.add(rest, word((0xFFF - (112 << 23)) & 0xFFFFFFFF)), odd)
    normal = builder.lshr(normal, word(13))
    half = _alike(bits, ir.FloatType(), 0.5)
    small = builder.bitcast(builder.fadd(builder.bitcast(rest, half.type), half), bits.type)
    small = builder.sub(small, word(126 << 23))
    found = builder.select(builder.icmp_unsigned("<", rest, word(113 << 23)), small, normal)
    number = builder.icmp_unsigned("<=", rest, word(0x7F800000))
    endless = builder.select(number, word(0x7C00), word(0x7E00))
    found = builder.select(builder.icmp_unsigned(">=", rest, word(143 << 23)), endless, found)
    return builder.or_(found, sign)


def _narrowed(builder: Any, dtype: Any, value: Any) -> Any:
    """One number or a vector of them as words, rounded once."""
    if not _is_half(dtype):
        return value
    whole = ir.IntType(32)
    bits = builder.bitcast(value, _alike(value, whole))
    narrow = _float16 if dtype.signed else _bfloat16
    found = narrow(builder, bits, lambda number: _alike(value, whole, number))
    return builder.trunc(found, _alike(value, ir.IntType(16)))


@intrinsic
def put(typingctx, array, index, value):
    """Write a number at an index of a flat array, rounded once."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        number = _narrowed(builder, array.dtype, args[2])
        builder.store(number, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, _wide(array.dtype)), codegen


@intrinsic
def put_vector(typingctx, array, index, value):
    """Write a vector from an index on, rounded once."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        words = _narrowed(builder, array.dtype, args[2])
        pointer = builder.bitcast(pointer, words.type.as_pointer())
        builder.store(words, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def put_some(typingctx, array, index, value, count):
    """Write the first `count` numbers of a vector, rounded once."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1])
        words = _narrowed(builder, array.dtype, args[2])
        masked_store(builder, pointer, words, args[3], array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value, types.intp), codegen
