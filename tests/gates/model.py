"""A model of what counted work takes at least: instructions of threads, and cycles of one GPU.

A model and no time. Of a kernel with a hot loop the instructions are the trips of that loop, which
the emulator counts as its wide loads, times what one takes in machine code, and what each thread
runs before. Of the other kernels they are counted in PTX, see `instructions.py`, which machine code
is made of: the model takes only their accesses to memory. All are of sm_80.

A kernel takes as many cycles as the slower of two: its instructions where every scheduler
issues one in each cycle, and its sectors where the L2 cache delivers what it can. Launches come one
after the other, and what is between two of them is an assumption. The memory moves arguments and
results once. Nothing is known of latency, of too few blocks, or of matrix products.
"""

from functools import cache
from typing import Any, NamedTuple

from cudeform.cuda.compile import Unit

from . import sass, table

__all__ = ["A100", "Gpu", "cycles", "instructions"]

LANES = 32
SECTOR_BYTES = 32


class Gpu(NamedTuple):
    """What a GPU does in a clock cycle at best, from its maker's description."""

    name: str
    arch: str
    issued: int  # instructions of warps
    l2_bytes: int
    memory_bytes: int
    launch: int  # cycles from the end of a kernel to the start of the next: assumed, a microsecond


A100 = Gpu("A100-SXM4-40GB", "sm_80", 108 * 4, 5120, 1_555_000 // 1410, 1410)


@cache
def _units() -> dict[str, Unit]:
    return {table.name_of(unit): unit for unit in table.units()}


def instructions(name: str, numbers: dict[str, int]) -> int:
    """Of a kernel with a hot loop, all its threads; `name` is that of the unit, and its own."""
    unit_name, kernel = name.split()
    unit = _units()[unit_name]
    hot = table.HOT[unit.file, kernel]
    cost = sass.cost(table.listings_of(unit, A100.arch)[kernel], hot.loads)
    return numbers["wide_reads"] // hot.loads * cost.pack + numbers["threads"] * cost.before


def _kernel_cycles(name: str, numbers: dict[str, Any]) -> float:
    """Of a kernel's launches, without what is between them."""
    unit_name, kernel = name.split()
    is_hot = (_units()[unit_name].file, kernel) in table.HOT
    issued = numbers["instructions" if is_hot else "accesses"] / LANES
    sectors = numbers["read_sectors"] + numbers["written_sectors"]
    return max(issued / A100.issued, sectors * SECTOR_BYTES / A100.l2_bytes)


def cycles(kernels: dict[str, dict[str, Any]], launches: int, array_bytes: int) -> dict[str, int]:
    """Of a call: its kernels one after the other, launches, what its arrays take, and the bound."""
    ran = sum(_kernel_cycles(name, numbers) for name, numbers in kernels.items())
    started, moved = A100.launch * launches, array_bytes / A100.memory_bytes
    parts = {"kernels": ran, "launches": started, "memory": moved}
    return {name: round(n) for name, n in {**parts, "bound": max(ran, moved) + started}.items()}
