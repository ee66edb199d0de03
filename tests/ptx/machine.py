"""Runs a kernel: which threads go on where, and how many instructions they execute."""

from typing import Any, NamedTuple

import numpy as np

from .memory import PARAMETERS, Memory
from .operands import Operands, Read
from .program import Fault, Instruction, Kernel
from .steps import Step, narrowed, step_of
from .warps import MEETINGS, WARP, Meeting, meeting

__all__ = ["Machine", "Ran"]

AT_ONCE = 1 << 14  # threads: what is in their registers fits a processor's cache
POISON = 1  # bytes of a register that a thread has not written
BRANCHES = ("bra", "ret", "exit")


class Ran(NamedTuple):
    """What a launch executed."""

    instructions: int  # of threads, those that a predicate switched off too
    issued: int  # of warps: threads of one that go different ways are counted one after the other


class Stretch(NamedTuple):
    """Instructions that follow each other; only the last may be a branch or a meeting."""

    first: int
    end: int
    steps: tuple[Step, ...]
    meeting: Meeting | None
    target: int | None  # of the branch
    taken: Read | None  # who takes it; None for all


class Frame:
    """The threads of some blocks: what they know, and what their registers hold."""

    def __init__(self, first: int, blocks: int, grid: int, threads: int, memory: Memory):
        self.blocks = blocks
        self.count = blocks * threads
        self.memory = memory
        self.numbers = np.arange(self.count)
        self.block = self.numbers // threads
        self.warp = self.numbers // WARP
        self.alive = np.ones(self.count, bool)
        self.registers: dict[int, np.ndarray] = {}
        self.special = {
            "%tid.x": self.numbers % threads,
            "%laneid": self.numbers % WARP,
            "%ctaid.x": self.block + first,
            "%ntid.x": np.full(self.count, threads),
            "%nctaid.x": np.full(self.count, grid),
        }

    def put(self, number: int, dtype: np.dtype, at: Any, values: Any) -> None:
        """Write a register of some threads."""
        if isinstance(at, slice) and at.stop - at.start == self.count:
            own = np.ndim(values) == 1 and values.base is None  # else another register may have it
            values = values.view(dtype)
            self.registers[number] = (
                values if own else np.array(np.broadcast_to(values, self.count))
            )
            return
        held = self.registers.get(number)
        if held is None:
            held = self.registers[number] = self.poison(dtype)
        held[at] = values.view(dtype)

    def poison(self, dtype: np.dtype) -> np.ndarray:
        """A register that nothing has written."""
        return np.full(self.count * dtype.itemsize, POISON, np.uint8).view(dtype)


class Machine:
    """A kernel, ready to run."""

    def __init__(self, kernel: Kernel):
        self._kernel = kernel
        places = {p.name: PARAMETERS + p.offset for p in kernel.parameters}
        self._operands = Operands(kernel, kernel.shared | places)
        self._stretches = self._cut()

    def run(self, grid: int, threads: int, arrays: Any, params: np.ndarray, shared_bytes=0) -> Ran:
        """Run a grid of blocks; arrays or None first, the kernel's Params last."""
        if threads % WARP:
            raise Fault(f"{self._kernel.name}: {threads} threads are no whole warps")
        given = self._arguments(arrays, params)
        memory = Memory(arrays, given, self._kernel.shared_bytes + shared_bytes)
        counts = np.zeros(2, np.int64)
        blocks = max(1, AT_ONCE // threads)
        with np.errstate(all="ignore"):
            for first in range(0, grid, blocks):
                memory.begin(min(blocks, grid - first))
                frame = Frame(first, min(blocks, grid - first), grid, threads, memory)
                counts += Course(self._kernel, self._stretches, frame).run()
        return Ran(*map(int, counts))

    def _arguments(self, arrays: Any, params: np.ndarray) -> bytes:
        """As the kernel finds them."""
        *pointers, last = self._kernel.parameters
        given = [8] * len(arrays) + [params.nbytes]
        if [p.nbytes for p in self._kernel.parameters] != given:
            raise Fault(f"{self._kernel.name}: arguments of {given} bytes do not fit the kernel")
        content = bytearray(last.offset + last.nbytes)
        for parameter, array in zip(pointers, arrays, strict=True):
            address = 0 if array is None else array.ctypes.data
            content[parameter.offset : parameter.offset + 8] = address.to_bytes(8, "little")
        content[last.offset :] = params.tobytes()
        return bytes(content)

    def _stretch(self, first: int, end: int) -> Stretch:
        *before, last = self._kernel.code[first:end]
        target = taken = None
        if last.parts[0] in BRANCHES:
            ends = last.parts[0] != "bra"
            target = len(self._kernel.code) if ends else self._kernel.labels[last.operands[0]]
            if last.guard:
                taken = self._operands.reader(("!" if last.negated else "") + last.guard, "pred")
        else:
            before.append(last)
        meets = self._understood(meeting, last)
        steps = () if meets else tuple(self._understood(step_of, one) for one in before)
        return Stretch(first, end, steps, meets, target, taken)

    def _understood(self, read: Any, instruction: Instruction) -> Any:
        try:
            return read(instruction, self._operands)
        except Fault as fault:
            raise Fault(f"{self._kernel.name}: {instruction.text}: {fault}") from None

    def _cut(self) -> dict[int, Stretch]:
        """The kernel in stretches, by their first instruction."""
        code = self._kernel.code
        starts = {0, len(code), *self._kernel.labels.values()}
        for number, instruction in enumerate(code):
            if instruction.parts[0] in BRANCHES:
                starts.add(number + 1)
            elif instruction.parts[0] in MEETINGS:
                starts |= {number, number + 1}
        ordered = sorted(starts)
        return {a: self._stretch(a, b) for a, b in zip(ordered, ordered[1:], strict=False)}


class Course:
    """The way of some threads through a kernel."""

    def __init__(self, kernel: Kernel, stretches: dict[int, Stretch], frame: Frame):
        self._kernel, self._stretches, self._frame = kernel, stretches, frame
        self._waiting: dict[int, list[np.ndarray]] = {0: [frame.numbers]}
        self._parked: set[int] = set()  # of these, the meetings that are not complete
        self._counts = np.zeros(2, np.int64)

    def run(self) -> np.ndarray:
        """To the end of all threads; instructions of threads and of warps."""
        while self._waiting:
            ready = self._waiting.keys() - self._parked
            if ready:
                self._advance(min(ready))
            else:
                self._release()
        return self._counts

    def _arrive(self, place: int, numbers: np.ndarray) -> None:
        if place == len(self._kernel.code):
            self._frame.alive[numbers] = False
        elif len(numbers):
            self._waiting.setdefault(place, []).append(numbers)
            self._parked.discard(place)

    def _gather(self, place: int) -> np.ndarray:
        """The threads that wait at a place, in order."""
        groups = self._waiting.pop(place)
        return groups[0] if len(groups) == 1 else np.sort(np.concatenate(groups), kind="stable")

    def _advance(self, place: int) -> None:
        numbers, stretch = self._gather(place), self._stretches[place]
        if stretch.meeting and not stretch.meeting.complete(self._frame, numbers).all():
            self._waiting[place] = [numbers]
            self._parked.add(place)
        else:
            self._execute(stretch, numbers)

    def _release(self) -> None:
        """Let those go on for whom a meeting is complete, where nobody else can."""
        for place in sorted(self._parked):
            numbers = self._gather(place)
            complete = self._stretches[place].meeting.complete(self._frame, numbers)
            if complete.all():
                self._parked.discard(place)
            else:
                self._waiting[place] = [numbers[~complete]]
            if complete.any():
                self._execute(self._stretches[place], numbers[complete])
                return
        texts = [self._kernel.code[place].text for place in sorted(self._parked)]
        raise Fault(f"{self._kernel.name}: not all threads come to {texts}")

    def _execute(self, stretch: Stretch, numbers: np.ndarray) -> None:
        at = narrowed(numbers)
        warps = np.count_nonzero(np.diff(self._frame.warp[at])) + 1
        self._counts += np.array([len(numbers), warps]) * (stretch.end - stretch.first)
        steps = (stretch.meeting.step,) if stretch.meeting else stretch.steps
        for place, step in enumerate(steps, stretch.first):
            try:
                step(self._frame, at)
            except Fault as fault:
                text = self._kernel.code[place].text
                raise Fault(f"{self._kernel.name}: {text}: {fault}") from None
        if stretch.target is None:
            self._arrive(stretch.end, numbers)
        elif stretch.taken is None:
            self._arrive(stretch.target, numbers)
        else:
            taken = np.broadcast_to(stretch.taken(self._frame, at), len(numbers))
            self._arrive(stretch.target, numbers[taken])
            self._arrive(stretch.end, numbers[~taken])
