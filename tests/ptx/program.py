"""The text of PTX, taken apart: kernels with their instructions, registers and memory."""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

__all__ = ["Fault", "Instruction", "Kernel", "Parameter", "parse"]


class Fault(Exception):
    """A kernel did what it must not do, or what the machine has not been taught."""


class Instruction(NamedTuple):
    """``@!%p1 add.s32 %r1, %r2, 3`` in parts."""

    text: str
    guard: str | None  # runs where this predicate is true
    negated: bool  # or false
    parts: tuple[str, ...]  # of the opcode
    operands: tuple[str, ...]


class Parameter(NamedTuple):
    """An argument of a kernel, and where it is among the others."""

    name: str
    offset: int
    nbytes: int


class Kernel(NamedTuple):
    """An entry of a module."""

    name: str
    code: tuple[Instruction, ...]
    labels: dict[str, int]  # the instruction that comes next
    registers: dict[str, np.dtype]  # by name, or by the name's beginning
    parameters: tuple[Parameter, ...]
    shared: dict[str, int]  # where arrays are in a block's memory
    shared_bytes: int  # of a block; what a launch adds lies behind


REGISTERS = {"pred": "?", "b16": "u2", "b32": "u4", "f32": "u4", "b64": "u8", "f64": "u8"}
ENTRY = re.compile(r"\.entry (\w+)\(\n(.*?)\n\)[^{]*\n\{\n(.*?)\n\}", re.DOTALL)
PARAMETER = re.compile(
    r"\.param (?:\.align (\d+) )?\.[a-z](\d+) (?:\.ptr .*)?\b(\w+?)(?:\[(\d+)\])?,?"
)
SHARED = re.compile(r"\.shared \.align (\d+) \.b8 ([\w$]+)\[(\d*)\];")
REGISTER = re.compile(r"\.reg \.(\w+)\s+(%?[a-z]+)(?:<\d+>)?\s*;")
CODE = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.]*)\s*(.*?)\s*;")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


@cache
def parse(text: str) -> dict[str, Kernel]:
    """The kernels of a module, by name."""
    entries = list(ENTRY.finditer(text))
    return {
        entry[1]: _kernel(entry[1], entry[2], entry[3], text[: entries[0].start()])
        for entry in entries
    }


def _kernel(name: str, parameters: str, body: str, outside: str) -> Kernel:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    registers: dict[str, np.dtype] = {}
    for line in _lines(body):
        register = REGISTER.fullmatch(line)
        if register:
            registers[register[2]] = np.dtype(REGISTERS[register[1]])
        elif line.endswith(":"):
            labels[line[:-1]] = len(code)
        elif line not in ("", "{", "}") and not line.startswith((".shared", ".pragma")):
            code.append(_instruction(name, line))
    shared, size = _shared(f"{outside}\n{body}")
    return Kernel(name, tuple(code), labels, registers, _parameters(parameters), shared, size)


def _lines(body: str) -> Iterator[str]:
    """Without comments, and what an inline assembly has in braces line by line."""
    for line in body.splitlines():
        line = line.partition("//")[0].strip()
        inner = re.fullmatch(r"\{ (\.reg .*;) \}", line)
        yield from (f"{part.strip()};" for part in inner[1].split(";")[:-1]) if inner else [line]


def _instruction(kernel: str, line: str) -> Instruction:
    found = CODE.fullmatch(line)
    if found is None:
        raise Fault(f"{kernel}: what is {line!r}?")
    operands = tuple(OPERAND.findall(found[4]))
    return Instruction(line, found[2], found[1] == "!", tuple(found[3].split(".")), operands)


def _parameters(text: str) -> tuple[Parameter, ...]:
    found: list[Parameter] = []
    offset = 0
    for line in text.splitlines():
        align, bits, name, count = PARAMETER.fullmatch(line.strip()).groups()
        nbytes = int(bits) // 8 * int(count or 1)
        align = int(align or nbytes)
        offset = -(-offset // align) * align
        found.append(Parameter(name, offset, nbytes))
        offset += nbytes
    return tuple(found)


def _shared(text: str) -> tuple[dict[str, int], int]:
    """Where arrays are, and how many bytes a block has; those without a length are the launch's."""
    places: dict[str, int] = {}
    size = 0
    found = SHARED.findall(text)
    for align, name, nbytes in (one for one in found if one[2]):
        places[name] = -(-size // int(align)) * int(align)
        size = places[name] + int(nbytes)
    size = -(-size // 16) * 16
    return places | {name: size for _, name, nbytes in found if not nbytes}, size
