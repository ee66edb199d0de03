"""Operands of instructions: how they are read for some of the threads, and written.

`at` says for which: a slice of the threads, or their numbers.
"""

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .program import Fault, Kernel

__all__ = ["DTYPES", "Operands"]

DTYPES = {
    "pred": np.dtype(bool),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    **{f"{c}{8 * n}": np.dtype(f"{d}{n}") for c, d in ("uu", "bu", "si") for n in (1, 2, 4, 8)},
}
NUMBERED = re.compile(r"(%[a-z]+)\d+")
ADDRESS = re.compile(r"\[([^\]+]+)(?:\+(-?\d+))?\]")
Read = Callable[[Any, Any], Any]


class Operands:
    """Those of a kernel's instructions."""

    def __init__(self, kernel: Kernel, addresses: dict[str, int]):
        self._declared = kernel.registers
        self._addresses = addresses  # of what is in shared memory, and of parameters
        self._numbers: dict[str, int] = {}

    def _register(self, name: str) -> tuple[int, np.dtype]:
        """Its place among a frame's registers, and its type there."""
        found = NUMBERED.fullmatch(name)
        dtype = self._declared.get(name) if found is None else self._declared.get(found[1])
        if dtype is None:
            raise Fault(f"no register {name}")
        return self._numbers.setdefault(name, len(self._numbers)), dtype

    def reader(self, operand: str, kind: str, moved: bool = False) -> Read:
        """``(frame, at) -> values`` of a kind: an array, or one number for all threads.

        What is only `moved` may be a register that no thread has written: a compiler joins ways
        on which it is with others on which it is not, and does not use it there.
        """
        if operand.startswith("!"):
            read = self.reader(operand[1:], kind)
            return lambda frame, at: ~read(frame, at)
        if operand.startswith("{"):
            return self._packed(operand, kind, moved)
        if operand in SPECIAL:
            return lambda frame, at: frame.special[operand][at].astype(DTYPES[kind])
        if operand.startswith("%") or operand in self._declared:
            return self._register_reader(operand, kind, moved)
        value = self._immediate(operand, kind)
        return lambda frame, at: value

    def _register_reader(self, name: str, kind: str, moved: bool) -> Read:
        number, dtype = self._register(name)
        wanted = DTYPES[kind]
        if wanted.itemsize > dtype.itemsize:
            raise Fault(f"{name} is too short for {kind}")
        narrower = None
        if wanted.itemsize < dtype.itemsize:
            narrower = np.dtype(f"u{wanted.itemsize}")

        def read(frame, at):
            held = frame.registers.get(number)
            if held is None:
                if not moved:
                    raise Fault(f"nothing has written {name}")
                held = frame.poison(dtype)
            held = held[at]
            return (held if narrower is None else held.astype(narrower)).view(wanted)

        return read

    def _packed(self, operand: str, kind: str, moved: bool) -> Read:
        """Some registers as one number, the first lowest."""
        names = self.members(operand)
        bits = 8 * DTYPES[kind].itemsize // len(names)
        reads = [self.reader(name, f"u{bits}", moved) for name in names]
        whole = np.dtype(f"u{DTYPES[kind].itemsize}")

        def read(frame, at):
            values = (
                r(frame, at).astype(whole) << whole.type(bits * i) for i, r in enumerate(reads)
            )
            return sum(values, whole.type(0)).view(DTYPES[kind])

        return read

    def _immediate(self, operand: str, kind: str) -> Any:
        dtype = DTYPES[kind]
        if operand in self._addresses:
            return dtype.type(self._addresses[operand])
        if operand[:2] in ("0f", "0d"):
            bits = np.array([int(operand[2:], 16)], f"u{len(operand[2:]) // 2}")
            return bits.view(dtype)[0]
        try:
            number = int(operand.removesuffix("U"), 0)
        except ValueError:
            raise Fault(f"what is {operand}?") from None
        if kind == "pred":
            return np.bool_(number)
        mask = (1 << 8 * dtype.itemsize) - 1
        return np.array([number & mask], f"u{dtype.itemsize}").view(dtype)[0]

    def writer(self, operand: str, kind: str) -> Callable[[Any, Any, Any], None]:
        """``(frame, at, values)``: longer registers get the sign or zeros besides."""
        if operand == "_":
            return lambda frame, at, values: None
        if operand.startswith("{"):
            return self._unpacked(operand, kind)
        number, dtype = self._register(operand)
        given = DTYPES[kind]
        if given.itemsize > dtype.itemsize:
            raise Fault(f"{operand} is too short for {kind}")
        if given.itemsize == dtype.itemsize:
            return lambda frame, at, values: frame.put(number, dtype, at, values)
        longer = np.dtype(f"{'i' if given.kind == 'i' else 'u'}{dtype.itemsize}")
        return lambda frame, at, values: frame.put(number, dtype, at, values.astype(longer))

    def _unpacked(self, operand: str, kind: str) -> Callable[[Any, Any, Any], None]:
        """One number into some registers, the lowest first."""
        names = self.members(operand)
        bits = 8 * DTYPES[kind].itemsize // len(names)
        part = np.dtype(f"u{bits // 8}")
        writes = [self.writer(name, f"u{bits}") for name in names]
        whole = np.dtype(f"u{DTYPES[kind].itemsize}")

        def write(frame, at, values):
            values = values.view(whole)
            for i, one in enumerate(writes):
                one(frame, at, (values >> whole.type(bits * i)).astype(part))

        return write

    @staticmethod
    def members(operand: str) -> list[str]:
        """The registers of a vector, or the only one."""
        return [name.strip() for name in operand.strip("{}").split(",")]

    def address(self, operand: str) -> Read:
        """``(frame, at) -> addresses`` of ``[%rd1+8]`` or ``[name+8]``."""
        name, offset = ADDRESS.fullmatch(operand).groups()
        read = self.reader(name, "s64" if not self._is_short(name) else "u32")
        offset = np.int64(offset or 0)
        return lambda frame, at: read(frame, at).astype(np.int64) + offset

    def _is_short(self, name: str) -> bool:
        """Whether it is a register of 32 bits, which is enough for shared memory."""
        return name.startswith("%") and self._register(name)[1].itemsize == 4


SPECIAL = ("%tid.x", "%ctaid.x", "%ntid.x", "%nctaid.x", "%laneid")
