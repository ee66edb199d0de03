"""Rows of numbers in and out of kernels: widened, rounded, as pairs and apart; and their softmax.

Rows are short, and LLVM's own loops take many vectors at a time; so these are written out.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.language.halves import (
    element,
    load_wide,
    load_wide_some,
    put_some,
    put_vector,
)
from cudeform.cpu.language.simd import (
    Vector,
    fma,
    lanes,
    load,
    load_some,
    splat,
    store,
    store_some,
)


def _rearranged(a: Any, masks: Any) -> Any:
    """An intrinsic's type and code: two vectors whose lanes are picked from those of two."""

    def codegen(context, builder, signature, args):
        found = []
        for mask in masks:
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), a.lanes), mask)
            found.append(builder.shuffle_vector(*args, lanes))
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(a, 2)(a, a), codegen


@intrinsic
def _unzipped(typingctx, a, b):
    """The first of each pair that lies in two vectors one after the other, and the second."""
    return _rearranged(a, [list(range(first, 2 * a.lanes, 2)) for first in (0, 1)])


@intrinsic
def _zipped(typingctx, a, b):
    """The inverse of `_unzipped`."""
    pairs = [lane for i in range(a.lanes) for lane in (i, a.lanes + i)]
    return _rearranged(a, [pairs[: a.lanes], pairs[a.lanes :]])


@intrinsic
def _wide_lanes(typingctx, array):
    """Elements of an array in a vector, as they are computed with."""

    def codegen(context, builder, signature, args):
        dtype = types.float32 if array.dtype.bitwidth == 16 else array.dtype
        return ir.Constant(ir.IntType(64), Vector(dtype).lanes)

    return types.intp(array), codegen


# `places` are where the first row begins and how far the next one is, in the source and then in
# the target; `size` is the number of rows, and of numbers or pairs in each.


@inner
def read_rows(source, target, places, size):
    """Copy rows, widened or rounded."""
    at, pitch, to, step = places
    rows, count = size
    width = _wide_lanes(target)
    tail = count & (width - 1)
    whole = count - tail
    for r in range(rows):
        start, end = at + r * pitch, to + r * step
        for i in range(0, whole, width):
            put_vector(target, end + i, load_wide(source, start + i))
        if tail:
            put_some(target, end + whole, load_wide_some(source, start + whole, tail), tail)


write_rows = read_rows


@inner
def split_pairs(source, target, places, size, apart):
    """Copy rows of pairs, widened, the second of each pair `apart` from the first."""
    at, pitch, to, step = places
    rows, count = size
    width = lanes(target)
    tail = count & (width - 1)
    whole = count - tail
    for r in range(rows):
        start, end = at + r * pitch, to + r * step
        for i in range(0, whole, width):
            a = load_wide(source, start + 2 * i)
            x, y = _unzipped(a, load_wide(source, start + 2 * i + width))
            store(target, end + i, x)
            store(target, end + apart + i, y)
        if tail:
            start, end, left = start + 2 * whole, end + whole, min(2 * tail, width)
            a = load_wide_some(source, start, left)
            x, y = _unzipped(a, load_wide_some(source, start + width, 2 * tail - left))
            store_some(target, end, x, tail)
            store_some(target, end + apart, y, tail)


@inner
def join_pairs(source, target, places, size, apart):
    """The inverse of `split_pairs`, rounded."""
    at, pitch, to, step = places
    rows, count = size
    width = lanes(source)
    tail = count & (width - 1)
    whole = count - tail
    for r in range(rows):
        start, end = at + r * pitch, to + r * step
        for i in range(0, whole, width):
            x = load(source, start + i)
            a, b = _zipped(x, load(source, start + apart + i))
            put_vector(target, end + 2 * i, a)
            put_vector(target, end + 2 * i + width, b)
        if tail:
            start, end, left = start + whole, end + 2 * whole, min(2 * tail, width)
            x = load_some(source, start, tail)
            a, b = _zipped(x, load_some(source, start + apart, tail))
            put_some(target, end, a, left)
            put_some(target, end + width, b, 2 * tail - left)


@inlined
def _scale(row, at, count, factor, addend):
    """row[at + i] = factor * row[at + i] + addend."""
    step = lanes(row)
    tail = count & (step - 1)
    whole = count - tail
    f, a = splat(row, factor), splat(row, addend)
    for i in range(at, at + whole, step):
        store(row, i, fma(f, load(row, i), a))
    if tail:
        store_some(row, at + whole, fma(f, load_some(row, at + whole, tail), a), tail)


@inner
def softmax_rows(array, rows, count):
    """The softmax of each of so many rows of `count` numbers, which stand one after the other."""
    zero, one = array.dtype.type(0), array.dtype.type(1)
    for at in range(0, rows * count, count):
        most = element(array, at)
        for k in range(at + 1, at + count):
            most = max(most, element(array, k))
        _scale(array, at, count, one, -most)
    for i in range(rows * count):
        array[i] = _exponential(array[i])
    for at in range(0, rows * count, count):
        total = zero
        for k in range(at, at + count):
            total += element(array, k)
        _scale(array, at, count, one / total, zero)


# exp(x) = 2**n exp(r): octaves in 1, log 2 in two parts, and the polynomial's factors
_PER_OCTAVE, _OCTAVE = 1.44269504, (0.693359375, -2.12194440e-4)
_FACTORS = 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0


@intrinsic
def _exponential(typingctx, x):
    """exp of a number that is not above 0; of float32 in a way that LLVM makes vectors of.

    exp(x) = 2**n exp(r) with |r| at most half of log 2, where a polynomial of degree 7 is exact to
    the last bit but one.
    """

    def codegen(context, builder, signature, args):
        if x != types.float32:
            return context.get_function(np.exp, signature)(builder, args)
        real, whole = ir.FloatType(), ir.IntType(32)
        (given,) = args
        near = builder.fcmp_ordered(">", given, real(-87.0))
        kept = builder.select(near, given, real(0.0))  # neither NaN nor infinite
        floor = builder.module.declare_intrinsic("llvm.floor", [real])
        octaves = builder.fadd(builder.fmul(kept, real(_PER_OCTAVE)), real(0.5))
        n = builder.call(floor, [octaves])
        r = builder.fsub(kept, builder.fmul(n, real(_OCTAVE[0])))
        r = builder.fsub(r, builder.fmul(n, real(_OCTAVE[1])))
        value = real(_FACTORS[0])
        for factor in _FACTORS[1:]:
            value = builder.fadd(builder.fmul(value, r), real(factor))
        biased = builder.add(builder.fptosi(n, whole), whole(127))
        power = builder.bitcast(builder.shl(biased, whole(23)), real)
        value = builder.fmul(value, power)
        number = builder.fcmp_ordered("ord", given, given)
        return builder.select(near, value, builder.select(number, real(0.0), given))

    return x(x), codegen
