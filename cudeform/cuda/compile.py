"""Units of the kernels' source, flattened to one text for the compiler."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SCALARS", "Unit", "flatten", "pack"]

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
    capability: int = (
        70  # ten times the least compute capability of a GPU that has its instructions
    )
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
    for name, (_, offset, *_) in unit.params.fields.items():
        asserts.append(f"static_assert(OFFSET_OF(Params, {name}) == {offset}, {message});")
    return "\n".join([*defines, *_inline(unit.file, set()), *asserts, ""])


@lru_cache(maxsize=512)
def _format(params: np.dtype) -> struct.Struct:
    codes = {"i4": "i", "i8": "q", "f4": "f", "f8": "d"}
    fields = [params[name] for name in params.names]
    parts = [f"{f.itemsize}s" if f.shape else codes[f.str[1:]] for f in fields]
    return struct.Struct("".join(parts) + "0q")


def pack(params: np.dtype, values: dict[str, Any]) -> np.ndarray:
    """A Params with these values: an array of one, which a launch passes by value.

    The value of a field with several elements is their bytes.
    """
    packed = _format(params).pack(*[values[name] for name in params.names])
    return np.frombuffer(packed, params)
