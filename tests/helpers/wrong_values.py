"""What callers pass by mistake, and what of it may stand for a right value after all."""

import decimal
import enum
import fractions
import itertools
import numbers

import ml_dtypes
import numpy as np

__all__ = ["ARRAYS", "SHAPES", "VALUES", "WRONG", "meant"]

WRONG = object()
_MOST = 2**31  # beyond what kernels count with
_LARGEST = float(np.finfo(np.float32).max)


class One(enum.IntEnum):
    ONE = 1


class Hostile:
    """Raises whatever is asked of it."""

    def __repr__(self):
        raise RuntimeError("no")

    def __bool__(self):
        raise RuntimeError("no")

    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None


class LooksLikeAnArray:
    shape, ndim, dtype = (2, 2), 2, np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        return np.ones((2, 2), np.float32)


def _nested(depth):
    value = ()
    for _ in range(depth):
        value = (value, value)
    return value


# By name; functions make those that last for one reading, or are large.
VALUES = {
    "None": None,
    "True": True,
    "False": False,
    "0": 0,
    "1": 1,
    "-1": -1,
    "2": 2,
    "2**31": 2**31,
    "2**63": 2**63,
    "2**64": 2**64,
    "-2**63 - 1": -(2**63) - 1,
    "10**5000": 10**5000,
    "0.0": 0.0,
    "0.5": 0.5,
    "1.0": 1.0,
    "1e300": 1e300,
    "1e-300": 1e-300,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "1j": 1j,
    "np.int64": np.int64(1),
    "np.uint8": np.uint8(2),
    "np.float32": np.float32(0.5),
    "np.bool": np.bool_(True),
    "np.complex64": np.complex64(1),
    "np.timedelta64": np.timedelta64(1),
    "np.datetime64": np.datetime64("2017-03-17"),
    "np.str": np.str_("1"),
    "bfloat16": ml_dtypes.bfloat16(0.5),
    "IntEnum": One.ONE,
    "Fraction": fractions.Fraction(1, 2),
    "Decimal": decimal.Decimal("0.5"),
    "empty string": "",
    "'1'": "1",
    "'0.5'": "0.5",
    "'False'": "False",
    "'input'": "input",
    "long string": lambda: "NCHW" * 10**5,
    "b'1'": b"1",
    "bytearray": bytearray(b"1"),
    "()": (),
    "(1,)": (1,),
    "(1, 2)": (1, 2),
    "[1, 1]": [1, 1],
    "(1, 1, 1)": (1, 1, 1),
    "((1, 1), (1, 1))": ((1, 1), (1, 1)),
    "[[1, 2], [3, 4]]": [[1, 2], [3, 4]],
    "(1.0, 1.0)": (1.0, 1.0),
    "(True, True)": (True, True),
    "(None, None)": (None, None),
    "('1', '1')": ("1", "1"),
    "(1, 2**63)": (1, 2**63),
    "((1, 1), 1)": ((1, 1), 1),
    "long tuple": lambda: (1,) * 10**5,
    "deep tuple": lambda: _nested(12),
    "list in itself": lambda: (lambda items: items.append(items) or items)([1]),
    "{}": {},
    "{'input': 1}": {"input": 1},
    "{'input'}": {"input"},
    "['input', 'input']": ["input", "input"],
    "range": range(2),
    "generator": lambda: (name for name in ("input",)),
    "endless": lambda: itertools.repeat("input"),
    "function": len,
    "type": int,
    "...": ...,
    "slice": slice(1),
    "object": object(),
    "hostile": Hostile(),
    "looks like an array": LooksLikeAnArray(),
    "np 0-d integer": np.array(1),
    "np 0-d": np.array(0.5, np.float32),
    "np 0-d bool": np.array(True),
    "np 0-d object": np.array(None),
    "np pair": np.array([1, 1]),
    "np names": np.array(["input"]),
    "np table": np.array([["input"]]),
    "np.matrix": np.asmatrix(np.ones((2, 2), np.float32)),
    "np.ma": np.ma.masked,
}


def _is_integer(value):
    plain = isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.timedelta64))
    return plain and abs(value) < _MOST


def _number(value):
    if isinstance(value, bool):
        return WRONG
    known = (numbers.Real, decimal.Decimal, ml_dtypes.bfloat16)
    if not isinstance(value, known) or isinstance(value, np.timedelta64):
        return WRONG
    try:
        number = float(value)
    except OverflowError:
        return WRONG
    return number if abs(number) <= _LARGEST else WRONG


def _pair(value):
    if _is_integer(value):
        return int(value), int(value)
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_integer, value)):
        return int(value[0]), int(value[1])
    return WRONG


def _padding(value):
    if isinstance(value, (tuple, list)) and len(value) == 2:
        if all(isinstance(v, (tuple, list)) for v in value):
            pairs = tuple(map(_pair, value))
            return WRONG if WRONG in pairs else pairs
    return _pair(value)


def _names(value):
    if isinstance(value, (list, tuple, set, frozenset)):
        value = list(value)
        return value if all(type(v) is str for v in value) else WRONG
    return WRONG


def _pairs(value):
    if isinstance(value, (list, tuple)):
        pairs = [_pair(v) if isinstance(v, (tuple, list)) else WRONG for v in value]
        return WRONG if WRONG in pairs else pairs
    return WRONG


def _integers(value):
    if isinstance(value, (list, tuple)) and all(map(_is_integer, value)):
        return tuple(map(int, value))
    return WRONG


_MEANT = {
    "flag": lambda v: bool(v) if isinstance(v, (bool, np.bool_)) else WRONG,
    "integer": lambda v: int(v) if _is_integer(v) else WRONG,
    "number": _number,
    "choice": lambda v: WRONG,  # of all strings here none is one of the few
    "array": lambda v: WRONG,
    "pair": _pair,
    "integers": _integers,
    "padding": _padding,
    "needs": _names,
    "pixels": _pairs,
    "sizes": _pairs,
}


def meant(kind, name, value):
    """The plain value that a value stands for as an argument of this kind, or WRONG."""
    optional, kind = kind.endswith("?"), kind.removesuffix("?")
    if optional and value is None:
        return None
    if kind == "needs" and name == "generator":
        return ["input"]
    return _MEANT[kind](value)


def _structured(array):
    return np.zeros(array.shape, [("a", np.float32)])


def _sparse(array):
    import scipy.sparse

    return scipy.sparse.csr_array(array.reshape(array.shape[0], -1))


# What is not the array that was meant, made of it.
ARRAYS = {
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(a),
    "memoryview": memoryview,
    "masked": np.ma.array,
    "matrix": lambda a: np.asmatrix(a.reshape(len(a), -1)),
    "structured": _structured,
    "recarray": lambda a: _structured(a).view(np.recarray),
    "sparse": _sparse,
    "object": lambda a: a.astype(object),
    "complex": lambda a: a.astype(np.complex64),
    "string": lambda a: a.astype("U8"),
    "datetime": lambda a: a.astype("m8[s]"),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "float8": lambda a: a.astype(ml_dtypes.float8_e4m3fn),
    "int4": lambda a: a.astype(ml_dtypes.int4),
    "long double": lambda a: a.astype(np.longdouble),
    "int8": lambda a: a.astype(np.int8),
    "0-d": lambda a: a.reshape(-1)[0].reshape(()),
    "scalar": lambda a: a.reshape(-1)[0],
    "1-d": lambda a: np.ones(7, a.dtype),
}

# What no operator takes; of a converter it may be right.
SHAPES = {
    "axis more": lambda a: a[None],
    "axis less": lambda a: a[0],
    "empty": lambda a: a[..., :0],
}
