"""What threads do together: barriers, votes, matches and shuffles.

A thread waits until the others are there too: those of its block, or those of its warp that the
instruction names. Who has ended is not waited for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .operands import Operands
from .program import Fault, Instruction

__all__ = ["MEETINGS", "WARP", "Meeting", "meeting"]

MEETINGS = ("bar", "barrier", "shfl", "vote", "match")
WARP = 32


def words_of(flags: np.ndarray) -> np.ndarray:
    """A bit for each thread, in a number for each warp."""
    return np.packbits(flags.reshape(-1, WARP), axis=1, bitorder="little").view("<u4")[:, 0]


class Meeting:
    """An instruction that threads execute together."""

    def __init__(self, mask: Any, step: Callable[[Any, Any], None]):
        self._mask = mask  # reads which lanes of the warp meet; None for all threads of the block
        self.step = step

    def complete(self, frame: Any, numbers: np.ndarray) -> np.ndarray:
        """For each of the threads that are there, whether all that it waits for are."""
        if len(numbers) == np.count_nonzero(frame.alive):
            return np.ones(len(numbers), bool)
        here = np.zeros(frame.count, bool)
        here[numbers] = True
        absent = frame.alive & ~here
        if self._mask is None:
            return ~absent.reshape(frame.blocks, -1).any(axis=1)[frame.block[numbers]]
        missing = words_of(absent)[frame.warp[numbers]]
        return (missing & self._mask(frame, numbers)) == 0


def meeting(instruction: Instruction, operands: Operands) -> Meeting | None:
    """The instruction as a meeting, if it is one."""
    name, *rest = instruction.parts
    given = instruction.operands
    if name not in MEETINGS:
        return None
    if instruction.guard:
        raise Fault("threads that meet under a condition")
    if instruction.parts == ("bar", "sync") and given == ("0",):
        return Meeting(None, _nothing)
    mask = operands.reader(given[-1], "u32")
    if instruction.parts == ("bar", "warp", "sync"):
        return Meeting(_for_each(mask), _nothing)
    builders = {"shfl": _shuffle, "vote": _vote, "match": _match}
    what = rest[0] if name == "match" else rest[1]
    if name not in builders or "sync" not in rest[:2]:
        raise Fault("no such meeting is known here")
    return Meeting(_for_each(mask), builders[name](what, given, mask, operands))


def _nothing(frame: Any, at: Any) -> None:
    """What threads do at a barrier besides waiting."""


def _for_each(read: Any) -> Any:
    """The same, with a number for each thread."""
    return lambda frame, at: np.broadcast_to(read(frame, at), len(frame.numbers[at]))


def _spread(frame: Any, at: Any, values: Any) -> np.ndarray:
    """(warps, lanes) of the values that some threads have, zeros for the others."""
    every = np.zeros(frame.count, values.dtype)
    every[at] = values
    return every.reshape(-1, WARP)


def _vote(what: str, given: Any, mask: Any, operands: Operands) -> Any:
    read = operands.reader(given[1], "pred")
    write = operands.writer(given[0], "b32" if what == "ballot" else "pred")

    def step(frame, at):
        wanted = mask(frame, at)
        said = words_of(_spread(frame, at, read(frame, at)))[frame.warp[at]] & wanted
        if what == "all":
            there = words_of(_spread(frame, at, np.True_))[frame.warp[at]] & wanted
            said = said == there
        elif what == "any":
            said = said != 0
        write(frame, at, said)

    if what not in ("ballot", "any", "all"):
        raise Fault("no such vote is known here")
    return step


def _match(what: str, given: Any, mask: Any, operands: Operands) -> Any:
    read, write = operands.reader(given[1], "u32"), operands.writer(given[0], "b32")
    if what != "any":
        raise Fault("no such match is known here")

    def step(frame, at):
        values = _spread(frame, at, read(frame, at))
        there = _spread(frame, at, np.True_)
        same = (values[:, :, None] == values[:, None, :]) & there[:, None, :]
        write(frame, at, words_of(same.reshape(-1))[frame.numbers[at]] & mask(frame, at))

    return step


def _shuffle(what: str, given: Any, mask: Any, operands: Operands) -> Any:
    to, _, found = given[0].partition("|")
    write, tell = operands.writer(to, "b32"), operands.writer(found or "_", "pred")
    value, by, form = (operands.reader(operand, "u32") for operand in given[1:4])

    def step(frame, at):
        lane = frame.numbers[at] % WARP
        clamp = form(frame, at).astype(np.int64)
        segment, clamp = clamp >> 8 & 31, clamp & 31
        low = lane & segment
        high = low | (clamp & ~segment)
        from_lane, inside = _source(
            what, lane, by(frame, at).astype(np.int64) & 31, segment, low, high
        )
        from_lane = np.where(inside, from_lane, lane)
        values = _spread(frame, at, value(frame, at)).reshape(-1)
        write(frame, at, values[frame.warp[at] * WARP + from_lane])
        tell(frame, at, np.broadcast_to(inside, lane.shape))

    return step


def _source(what: str, lane: Any, by: Any, segment: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """The lane that a lane reads of, and whether it is in its segment."""
    if what == "up":
        return lane - by, lane - by >= high
    if what == "idx":
        source = low | (by & ~segment)
    elif what == "down":
        source = lane + by
    elif what == "bfly":
        source = lane ^ by
    else:
        raise Fault("no such shuffle is known here")
    return source, source <= high
