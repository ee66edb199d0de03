"""Units of the kernels' source, flattened to one text for the compiler."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

# A field of Params that kernels divide by: Divisor of prelude.cuh
DIVISOR = np.dtype([("value", "i4"), ("multiplier", "u4"), ("shift", "i4")], align=True)
SCALARS = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}


@dataclass(frozen=True, eq=False)
class Unit:
    """One translation unit: a file of ``kernels/``, its defines, and the layout of its Params.

    Compared by identity, which is fast: make each once.
    """

    file: str
    defines: tuple[tuple[str, str], ...]  # what tells it from other units of the file
    params: np.dtype
    constants: tuple[tuple[str, int], ...] = ()  # sizes that host and device have in common
    capability: int = 70  # ten times the least that a GPU with its instructions has
    options: tuple[str, ...] = ("-std=c++17",)  # for NVRTC


def _kernels() -> Any:
    """The folder of kernel sources: inside the package when installed, beside it in a checkout."""
    packaged = files("cudeform") / "kernels"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "kernels"


def _inline(name: str, seen: set[str]) -> Iterator[str]:
    """The lines of a file with its includes in their places, each file once."""
    seen.add(name)
    yield f'#line 1 "{name}"'
    for number, line in enumerate((_kernels() / name).read_text().splitlines(), 1):
        include = re.fullmatch(r'\s*#include "(.+)"\s*', line)
        if include:
            if include[1] not in seen:
                yield from _inline(include[1], seen)
            yield f'#line {number + 1} "{name}"'
        elif line.strip() != "#pragma once":
            yield line
        else:
            yield ""


@lru_cache(maxsize=512)
def flatten(unit: Unit) -> str:
    """The whole text of a unit for the compiler.

    The headers are part of it, so that a cache keyed by the text never serves a stale binary,
    and the compiler checks that its Params is the dtype the host fills in.
    """
    defines = [f"#define {name} {value}" for name, value in (*unit.defines, *unit.constants)]
    message = '"differs from the dtype of the host"'
    asserts = [f"static_assert(sizeof(Params) == {unit.params.itemsize}, {message});"]
    for name, offset in _places(unit.params):
        asserts.append(f"static_assert(OFFSET_OF(Params, {name}) == {offset}, {message});")
    return "\n".join([*defines, *_inline(unit.file, set()), *asserts, ""])


def _places(params: np.dtype, prefix: str = "", start: int = 0) -> Iterator[tuple[str, int]]:
    """Every number in a Params as C++ writes it, in arrays of the first element, and its offset."""
    for name, (field, offset, *_) in params.fields.items():
        element, name = (field.subdtype[0], f"{name}[0]") if field.subdtype else (field, name)
        if element.fields:
            yield from _places(element, f"{prefix}{name}.", start + offset)
        else:
            yield prefix + name, start + offset


@lru_cache(maxsize=4096)
def reciprocal(divisor: int) -> tuple[int, int]:
    """(multiplier, shift): ``number * multiplier >> shift == number // divisor`` below 2^31.

    With 2^k the first power of two not below the divisor, the shift is 31 + k and the multiplier
    2^shift / divisor rounded up: 32 bits. The rounding adds less than 2^k / divisor, and a number
    below 2^31 times that, shifted, less than the 1 / divisor between two quotients.
    """
    shift = 31 + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


@lru_cache(maxsize=512)
def _format(params: np.dtype) -> tuple[struct.Struct, tuple[tuple[str, bool], ...]]:
    """How a Params is packed; its fields, and whether each is a divisor."""
    codes = {"i4": "i", "i8": "q", "f4": "f", "f8": "d"}
    fields = tuple((name, params[name] == DIVISOR) for name in params.names)
    text = ""
    for name, is_one in fields:
        field = params[name]
        if field.shape:
            text += f"{field.itemsize}s"
        else:
            text += "iIi" if is_one else codes[field.str[1:]]
    end = "0q" if params.alignment == 8 else "0i"  # a struct is as long as an array of it needs
    return struct.Struct(text + end), fields


def along(name: str, pair: Sequence[int]) -> dict[str, int]:
    """Two fields of a Params: a number along y and one along x."""
    y, x = pair
    return {f"{name}_y": y, f"{name}_x": x}


def pack(params: np.dtype, values: dict[str, Any]) -> np.ndarray:
    """A Params with these values: an array of one, which a launch passes by value.

    The value of a field with several elements is their bytes.
    """
    return np.frombuffer(packed(params, values), params)


def packed(params: np.dtype, values: dict[str, Any]) -> bytes:
    """The bytes of a struct with these values."""
    form, fields = _format(params)
    flat: list[Any] = []
    for name, is_divisor in fields:
        value = values[name]
        flat.append(value)
        if is_divisor:
            flat.extend(reciprocal(value))
    return form.pack(*flat)
