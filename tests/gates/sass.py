"""Machine code as nvdisasm lists it: instructions, loops, and what must not be in them."""

import re
import subprocess
import tempfile
from typing import NamedTuple

from .nvrtc import wheel_file

__all__ = [
    "WHEEL",
    "Cost",
    "Hot",
    "Loop",
    "chained_loads",
    "cost",
    "disassemble",
    "faults",
    "hot_loop",
    "loops",
]

WHEEL = "nvidia-cuda-nvdisasm"

# Opcodes that no kernel may have, and why
NOWHERE = {
    r"LDL|STL": "local memory",
    r"ATOMS\.CAST\.SPIN": "a float atomic in shared memory, which is a loop",
}
# Opcodes that may not be in a hot loop; a loop around it may be left by a call that never returns
IN_NO_HOT_LOOP = {r"CALL": "a call"}
# Opcodes that may not be in a hot loop, nor in the loops around it
NOR_AROUND = {
    r"MUFU\.RCP": "a division",
    r"MATCH|WARPSYNC\.COLLECTIVE": "a shuffle among lanes that the compiler cannot know",
}


class Hot(NamedTuple):
    """What the loop that a kernel spends its time in does for a pack of channels."""

    loads: int  # of 128 bits
    stores: int
    chained: bool = True  # whether a load may wait for another one of the same step


class Loop(NamedTuple):
    """The instructions from a label to the branch back to it."""

    first: int
    last: int
    instructions: list[str]

    def contains(self, other: "Loop") -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


def disassemble(cubin: bytes) -> dict[str, list[str]]:
    """The listing of each kernel: instructions without addresses, and labels ending in a colon."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(wheel_file(WHEEL, "nvdisasm")), "-c", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if kernel := re.match(r"\.text\.(\w+):", line):
            lines = kernels.setdefault(kernel[1], [])
        elif label := re.match(r"(\.L_\w+):", line):
            lines.append(f"{label[1]}:")
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            lines.append(re.sub(r"\s+", " ", instruction[1]))
    return kernels


def opcode(instruction: str) -> str:
    """FFMA.FTZ of `@!P0 FFMA.FTZ R1, R2, R3, R4`."""
    return re.sub(r"^\{?\s*(@!?U?P\w+\s+)?", "", instruction).split(" ")[0]


def loops(listing: list[str]) -> list[Loop]:
    """Every loop of a kernel, inner ones also as a part of the outer ones."""
    labels = {line[:-1]: number for number, line in enumerate(listing) if line.endswith(":")}
    found = {}
    for number, line in enumerate(listing):
        target = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        # A branch to itself is how the compiler fills up behind the end.
        if target and labels.get(target[1], number) < number - 1:
            first = labels[target[1]]
            found[first] = max(number, found.get(first, 0))  # `continue` branches to it too
    return [
        Loop(first, last, [x for x in listing[first : last + 1] if not x.endswith(":")])
        for first, last in found.items()
    ]


def wide_loads(instructions: list[str]) -> int:
    """Loads of 128 bits from global memory."""
    return sum(bool(re.match(r"LDG\.E\.(\w+\.)*128\b", opcode(x))) for x in instructions)


def wide_stores(instructions: list[str]) -> int:
    """Stores of 128 bits to global memory."""
    return sum(bool(re.match(r"STG\.E\.(\w+\.)*128\b", opcode(x))) for x in instructions)


def hot_loop(listing: list[str], loads: int) -> Loop | None:
    """The innermost loop with that many 128-bit loads; of several the one that has most of them."""
    candidates = [loop for loop in loops(listing) if wide_loads(loop.instructions) >= loads]
    innermost = [
        loop for loop in candidates if not any(loop.contains(other) for other in candidates)
    ]
    return max(innermost, key=lambda loop: wide_loads(loop.instructions), default=None)


class Cost(NamedTuple):
    """Instructions of a hot loop, and of what is around it."""

    pack: int  # in the loop, for one pack of channels
    around: int  # in the loop around it, otherwise
    before: int  # of a thread until it comes there, without those that its warp does once


def cost(listing: list[str], loads: int) -> Cost:
    """Count the instructions of the hot loop, which takes so many 128-bit loads for a pack."""
    loop = hot_loop(listing, loads)
    if loop is None:
        return Cost(0, 0, 0)
    size = len(loop.instructions)
    around = [other for other in loops(listing) if other.contains(loop)]
    outer = min((len(other.instructions) for other in around), default=size)
    pack = -(-size * loads // wide_loads(loop.instructions))
    return Cost(pack, outer - size, len(_before(listing, loop)))


def _before(listing: list[str], loop: Loop) -> list[str]:
    """What stands before a loop and in no other, except for the uniform datapath's instructions."""
    others = [other for other in loops(listing) if not other.contains(loop)]
    return [
        line
        for number, line in enumerate(listing[: loop.first])
        if not line.endswith(":")
        and not any(other.first <= number <= other.last for other in others)
        and not re.match(r"U|S2UR|R2UR|LDCU|NOP", opcode(line))
    ]


def _registers(operand: str) -> set[str]:
    """The registers that an operand names; an address of 64 bits has two."""
    found = set(re.findall(r"\bU?R\d+\b", operand))
    for bank, number in re.findall(r"\b(U?R)(\d+)\.64", operand):
        found.add(f"{bank}{int(number) + 1}")
    return found


def _written(name: str, operands: list[str]) -> tuple[set[str], list[str]]:
    """The registers that an instruction writes, and the operands that it reads."""
    if re.match(r"ST|RED|BRA|BAR|[IFD]SETP|PLOP3|EXIT|BSSY|BSYNC|WARPSYNC|NOP", name):
        return set(), operands
    first = next((n for n, x in enumerate(operands) if re.fullmatch(r"U?R\d+", x)), None)
    if first is None:
        return set(), operands
    bank, number = re.fullmatch(r"(U?R)(\d+)", operands[first]).groups()
    two = r"\.64\b|WIDE|D(ADD|MUL|FMA)\b|F64\.F32"
    width = 4 if re.search(r"\.128\b", name) else 2 if re.search(two, name) else 1
    written = {f"{bank}{int(number) + i}" for i in range(width)}
    return written, operands[:first] + operands[first + 1 :]


class _Trace:
    """Which registers have what loads of this pass through a loop brought, or was made of it."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.clean: dict[str, str] = {}  # those that have something else under a predicate
        self.shared = False  # whether shared memory has some of it

    def step(self, instruction: str) -> bool:
        """Follow an instruction; whether it is a load whose address such a load brought."""
        name = opcode(instruction)
        guard, text = instruction.split(name, 1)
        operands = [operand.strip() for operand in text.split(",")]
        written, read = _written(name, operands)
        used = {register for operand in read for register in _registers(operand)}
        tainted = any(self.clean.get(register) != guard for register in used & self.loaded)
        chained = tainted and name.startswith("LDG")
        self.shared |= tainted and name.startswith("STS")
        if name.startswith("LDG") or tainted or (name.startswith("LDS") and self.shared):
            self.loaded |= written
            self.clean = {r: p for r, p in self.clean.items() if r not in written}
        elif guard.startswith("@"):
            self.clean |= dict.fromkeys(written, guard)
        else:
            self.loaded -= written
        predicates = re.findall(r"\bU?P\d\b", ",".join(operands[:2]))
        self.clean = {r: p for r, p in self.clean.items() if p.strip(" @!{") not in predicates}
        return chained


def chained_loads(instructions: list[str]) -> list[str]:
    """Loads of global memory in a loop whose address comes from one in the same pass through it."""
    trace = _Trace()
    why = "its address comes from a load of the same step"
    return [f"{instruction}  ({why})" for instruction in instructions if trace.step(instruction)]


def faults(listing: list[str], hot: Hot | None) -> list[str]:
    """What is wrong with a kernel's machine code, in words."""
    found = _forbidden(listing, NOWHERE)
    if hot is None:
        return found
    loop = hot_loop(listing, hot.loads)
    if loop is None:
        return [*found, f"no loop with {hot.loads} loads of 128 bits"]
    packs = wide_loads(loop.instructions) // hot.loads
    if wide_stores(loop.instructions) < packs * hot.stores:
        found.append("no 128-bit store in the hot loop")
    around = [other for other in loops(listing) if other.contains(loop)]
    outermost = max(around, key=lambda other: len(other.instructions), default=loop)
    found += _forbidden(loop.instructions, IN_NO_HOT_LOOP)
    if not hot.chained:
        steps = min(around, key=lambda other: len(other.instructions), default=loop)
        found += chained_loads(loop.instructions) + chained_loads(steps.instructions)
    return found + _forbidden(outermost.instructions, NOR_AROUND)


def _forbidden(instructions: list[str], what: dict[str, str]) -> list[str]:
    return [
        f"{instruction}  ({why})"
        for instruction in instructions
        for pattern, why in what.items()
        if re.match(pattern, opcode(instruction))
    ]
