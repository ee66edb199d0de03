"""What an instruction makes of its operands: functions of arrays, by the opcode."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import rounding
from .operands import DTYPES
from .program import Fault

__all__ = ["Operation", "operation"]


class Operation(NamedTuple):
    """``result = function(*operands)``, each of its kind."""

    function: Callable[..., Any]
    result: str
    operands: tuple[str, ...]


def operation(parts: tuple[str, ...]) -> Operation:
    """What an opcode does."""
    name, kind = parts[0], parts[-1]
    if name == "cvt":
        to, came = parts[-2:]
        return Operation(lambda x: rounding.convert(x, to, came, parts[1:-2]), to, (came,))
    if name in ("mul", "mad") and kind[0] != "f":
        return _product(name, parts[1], kind)
    if name in COUNTED:
        return Operation(
            COUNTED[name], "u32", ("u32",) * (4 if name == "bfi" else 3 if name == "prmt" else 1)
        )
    if name == "setp":
        return _comparison(parts)
    if name == "selp":
        return Operation(lambda a, b, p: np.where(p, a, b), kind, (kind, kind, "pred"))
    if name in ("shl", "shr"):
        return Operation(partial(SHIFTS[name], kind), kind, (kind, "u32"))
    if kind[0] == "f":
        return _of_floats(name, kind, parts)
    if name in INTEGERS:
        count = 1 if name in ("mov", "cvta", "not", "neg", "abs") else 2
        return Operation(INTEGERS[name], kind, (kind,) * count)
    raise Fault("no such instruction is known here")


def _product(name: str, which: str, kind: str) -> Operation:
    """Whole numbers: the lower half of the product, the upper, or all of it."""
    bits = int(kind[1:])
    result = f"{kind[0]}{2 * bits}" if which == "wide" else kind
    if which == "lo":
        function = np.multiply
    elif bits > 32:
        raise Fault("a product of 128 bits")
    else:
        wide = DTYPES[f"{kind[0]}{2 * bits}"]

        def function(a, b):
            product = a.astype(wide) * b.astype(wide)
            return product if which == "wide" else (product >> wide.type(bits)).astype(DTYPES[kind])

    if name == "mul":
        return Operation(function, result, (kind, kind))
    return Operation(lambda a, b, c: function(a, b) + c, result, (kind, kind, result))


RELATIONS = {
    **{name: np.equal for name in ("eq", "equ")},
    **{name: np.less for name in ("lt", "lo", "ltu")},
    **{name: np.less_equal for name in ("le", "ls", "leu")},
    **{name: np.greater for name in ("gt", "hi", "gtu")},
    **{name: np.greater_equal for name in ("ge", "hs", "geu")},
    **{name: np.not_equal for name in ("ne", "neu")},
}
UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu")
JOINED = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(parts: tuple[str, ...]) -> Operation:
    """``setp``, and what it is joined with."""
    relation, kind = parts[1], parts[-1]

    def compare(a, b):
        if kind[0] != "f":
            return RELATIONS[relation](a, b)
        if "ftz" in parts:
            a, b = rounding.flush(a), rounding.flush(b)
        unordered = np.isnan(a) | np.isnan(b)
        if relation in ("nan", "num"):
            return unordered if relation == "nan" else ~unordered
        found = RELATIONS[relation](a, b)
        return found | unordered if relation in UNORDERED else found & ~unordered

    if parts[2] not in JOINED:
        return Operation(compare, "pred", (kind, kind))
    joined = JOINED[parts[2]]
    return Operation(lambda a, b, p: joined(compare(a, b), p), "pred", (kind, kind, "pred"))


def _of_floats(name: str, kind: str, parts: tuple[str, ...]) -> Operation:
    """Arithmetic of float32 and float64."""
    mode = next((part for part in parts if part in ("rn", "rz", "rm", "rp")), "rn")
    if name in ROUNDED:
        function, count = ROUNDED[name]
        function = partial(function, kind=kind, mode=mode)
    elif name in FLOATS and mode == "rn":
        function, count = FLOATS[name]
    else:
        raise Fault("no such instruction is known here")
    if "sat" in parts:
        raise Fault("a saturated result")
    if "ftz" not in parts:
        return Operation(function, kind, (kind,) * count)
    flushed = rounding.flush
    return Operation(lambda *x: flushed(function(*map(flushed, x))), kind, (kind,) * count)


ROUNDED = {
    "add": (rounding.add, 2),
    "sub": (lambda a, b, kind, mode: rounding.add(a, -b, kind, mode), 2),
    "fma": (rounding.fma, 3),
}
FLOATS = {
    "mov": (lambda x: x, 1),
    "abs": (np.abs, 1),
    "neg": (np.negative, 1),
    "mul": (np.multiply, 2),
    "div": (np.divide, 2),
    "rcp": (lambda x: x.dtype.type(1) / x, 1),
    "sqrt": (np.sqrt, 1),
    "rsqrt": (lambda x: x.dtype.type(1) / np.sqrt(x), 1),
    "ex2": (np.exp2, 1),
    "lg2": (np.log2, 1),
    "min": (np.fmin, 2),
    "max": (np.fmax, 2),
    "copysign": (lambda a, b: np.copysign(b, a), 2),
}


def _quotient(a, b):
    """Toward zero."""
    if not np.all(b):
        raise Fault("a division by zero")
    found = a // b
    return found + ((a - found * b != 0) & ((a < 0) != (b < 0))).astype(found.dtype)


def _remainder(a, b):
    return a - _quotient(a, b) * b


INTEGERS = {
    "mov": lambda x: x,
    "cvta": lambda x: x,
    "add": np.add,
    "sub": np.subtract,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "div": _quotient,
    "rem": _remainder,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}


def _shifted_left(kind, x, amount):
    bits = 8 * DTYPES[kind].itemsize
    moved = x << np.minimum(amount, bits - 1).astype(x.dtype)
    return np.where(amount < bits, moved, x.dtype.type(0))


def _shifted_right(kind, x, amount):
    bits = 8 * DTYPES[kind].itemsize
    moved = x >> np.minimum(amount, bits - 1).astype(x.dtype)
    return moved if kind[0] == "s" else np.where(amount < bits, moved, x.dtype.type(0))


SHIFTS = {"shl": _shifted_left, "shr": _shifted_right}


def _highest(x):
    """The highest bit that is set, -1 for 0: float64 holds every number of 32 bits."""
    return np.frexp(x.astype(np.float64))[1].astype(np.int32) - 1


def _reversed(x):
    """The bits from the other end."""
    for step, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F)):
        step, mask = np.uint32(step), np.uint32(mask)
        x = (x >> step & mask) | (x & mask) << step
    return x.byteswap()


def _inserted(a, b, position, length):
    """`b` with the lowest bits of `a` at a position."""
    mask = ((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)) << position.astype(np.uint64)
    moved = a.astype(np.uint64) << position.astype(np.uint64)
    return (moved & mask | b & ~mask).astype(np.uint32)


def _permuted(a, b, selection):
    """Four of the eight bytes of two numbers, or, with a selector's highest bit, of their signs."""
    both = b.astype(np.uint64) << np.uint64(32) | a
    result = np.uint32(0)
    for i in range(4):
        selector = (selection >> np.uint32(4 * i)).astype(np.uint64)
        byte = (both >> (selector & np.uint64(7)) * np.uint64(8)).astype(np.uint32) & np.uint32(255)
        sign = (byte >> np.uint32(7)) * np.uint32(255)
        byte = np.where(selector & np.uint64(8), sign, byte)
        result = result | byte << np.uint32(8 * i)
    return result


COUNTED = {  # of 32 bits, to 32 bits
    "popc": lambda x: np.bitwise_count(x).astype(np.uint32),
    "clz": lambda x: (31 - _highest(x)).astype(np.uint32),
    "bfind": lambda x: np.where(x == 0, -1, 31 - _highest(x)).astype(np.uint32),
    "brev": _reversed,
    "bfi": _inserted,
    "prmt": _permuted,
}
