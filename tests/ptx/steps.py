"""One instruction as a function: ``step(frame, at)`` executes it for the threads `at`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import operation
from .memory import SHARED
from .operands import DTYPES, Operands
from .program import Fault, Instruction

__all__ = ["Step", "narrowed", "step_of"]

Step = Callable[[Any, Any], None]
SPACES = ("global", "shared", "param")
ATOMICS = {
    "add": np.add,
    "or": np.bitwise_or,
    "and": np.bitwise_and,
    "min": np.minimum,
    "max": np.maximum,
}


def narrowed(numbers: np.ndarray) -> Any:
    """Threads as a slice, if they follow each other: then nothing is copied to read of them."""
    first, last = numbers[0], numbers[-1]
    return slice(first, last + 1) if last - first + 1 == len(numbers) else numbers


def step_of(instruction: Instruction, operands: Operands) -> Step:
    """An instruction that each thread executes for itself."""
    builders = {"ld": _load, "st": _store, "atom": _atomic, "red": _atomic}
    step = builders.get(instruction.parts[0], _computation)(instruction, operands)
    if instruction.guard is None:
        return step
    guard = operands.reader(("!" if instruction.negated else "") + instruction.guard, "pred")

    def guarded(frame, at):
        chosen = guard(frame, at)
        if chosen.all():
            step(frame, at)
        elif chosen.any():
            step(frame, narrowed(frame.numbers[at][chosen]))

    return guarded


def _computation(instruction: Instruction, operands: Operands) -> Step:
    parts = instruction.parts
    to, *given = instruction.operands
    function, result, kinds = operation(parts)
    moved = parts[0] == "mov"
    reads = [operands.reader(*one, moved) for one in zip(given, kinds, strict=True)]
    if parts[0] == "cvta" and "shared" in parts:
        base = np.uint64(SHARED)
        function = (lambda x: x - base) if parts[1] == "to" else (lambda x: x + base)
    write = operands.writer(to, result)
    if len(reads) == 1:
        (read,) = reads
        return lambda frame, at: write(frame, at, function(read(frame, at)))
    if len(reads) == 2:
        left, right = reads
        return lambda frame, at: write(frame, at, function(left(frame, at), right(frame, at)))
    return lambda frame, at: write(frame, at, function(*(read(frame, at) for read in reads)))


class Access:
    """Where an instruction reaches, and for numbers of which kind."""

    def __init__(self, instruction: Instruction, operands: Operands, address: str, count: int = 1):
        if {"local", "const"} & set(instruction.parts):
            raise Fault("memory that no kernel has")
        # "": which memory it is depends on the address
        self._space = next((space for space in SPACES if space in instruction.parts), "")
        self.dtype = DTYPES[instruction.parts[-1]]
        self.addresses = operands.address(address)
        self._count = count

    def places(self, frame: Any, at: Any, addresses: Any, write: bool = False) -> Any:
        """As `Memory.places` has them."""
        given = self._space, addresses, frame.block[at], self.dtype, self._count
        return frame.memory.places(*given, write)


def _load(instruction: Instruction, operands: Operands) -> Step:
    to, address = instruction.operands
    writes = [operands.writer(name, instruction.parts[-1]) for name in operands.members(to)]
    access = Access(instruction, operands, address, len(writes))

    def load(frame, at):
        addresses = access.addresses(frame, at)
        found: list[Any] = []
        for memory, index, chosen in access.places(frame, at, addresses):
            values = [memory[index + i] for i in range(len(writes))]
            if chosen is ...:
                found = values
                continue
            found = found or [np.empty(addresses.shape, access.dtype) for _ in writes]
            for every, some in zip(found, values, strict=True):
                every[chosen] = some
        for write, values in zip(writes, found, strict=True):
            write(frame, at, values)

    return load


def _store(instruction: Instruction, operands: Operands) -> Step:
    address, given = instruction.operands
    reads = [operands.reader(name, instruction.parts[-1]) for name in operands.members(given)]
    access = Access(instruction, operands, address, len(reads))

    def store(frame, at):
        count = frame.block[at].shape
        values = [np.broadcast_to(read(frame, at), count) for read in reads]
        places = access.places(frame, at, access.addresses(frame, at), write=True)
        for memory, index, chosen in places:
            for i, one in enumerate(values):
                memory[index + i] = one[chosen]

    return store


def _atomic(instruction: Instruction, operands: Operands) -> Step:
    """Threads come one after the other, by number."""
    *to, address, given = instruction.operands
    kind = instruction.parts[-1]
    write, read = operands.writer(to[0] if to else "_", kind), operands.reader(given, kind)
    access = Access(instruction, operands, address)
    what = next((part for part in instruction.parts if part in ATOMICS), None)
    if what is None or kind[0] == "f":
        raise Fault("no such atomic is known here")

    def atomic(frame, at):
        values = np.broadcast_to(read(frame, at), frame.block[at].shape)
        old = np.empty(values.shape, access.dtype)
        places = access.places(frame, at, access.addresses(frame, at), write=True)
        for memory, index, chosen in places:
            old[chosen] = _in_turn(ATOMICS[what], memory, index, values[chosen])
        write(frame, at, old)

    return atomic


def _in_turn(join: Any, memory: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Join values with elements of a memory; what each found there."""
    order = np.argsort(index, kind="stable")
    index, sums = index[order], values[order]
    step = 1
    while step < len(index):
        same = index[step:] == index[:-step]
        if not same.any():
            break
        sums[step:] = np.where(same, join(sums[step:], sums[:-step]), sums[step:])
        step *= 2
    before = memory[index]
    found = before.copy()
    again = index[1:] == index[:-1]
    found[1:][again] = join(before[1:], sums[:-1])[again]
    memory[index] = join(before, sums)  # of those at one place the last remains
    old = np.empty_like(found)
    old[order] = found
    return old
