"""The steps of a kernel, each a loop over tasks that need what the steps before it have made.

Its last arguments are a range of tasks for each of them, (the first, the last + 1). So one thread
does in one call what several do step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from cudeform import threads

__all__ = ["NO_STEP", "Steps", "do", "steps_of"]

Range = tuple[int, int]

NO_STEP = 0, 0  # without tasks


class Steps(NamedTuple):
    """How many tasks there are, for whom."""

    ranges: tuple[Range, ...]  # of one thread that does all of them
    together: tuple[int, ...]  # steps that need nothing of each other; () if one thread does all
    work: tuple[float, ...]  # multiplications


def steps_of(count: int, *together: tuple[tuple[int, float], ...]) -> Steps:
    """Of steps of so many tasks and so much work, some of them at the same time, for `count`
    threads.
    """
    tasks, work = zip(*(step for steps in together for step in steps), strict=True)
    alone = count == 1 or threads.takes_one(sum(work))
    return Steps(tuple((0, n) for n in tasks), () if alone else tuple(map(len, together)), work)


def do(run: Callable[..., None], steps: Steps) -> None:
    """Do all steps of a kernel."""
    ranges, together, work = steps
    if not together:
        run(*ranges)
        return
    at, every = 0, len(ranges)
    for some in together:
        loops = [
            (partial(_do_one, run, i, every), ranges[i][1], work[i]) for i in range(at, at + some)
        ]
        threads.share_all(loops)
        at += some


def _do_one(run: Callable[..., None], at: int, every: int, first: int, last: int) -> None:
    """Some tasks of one step."""
    if first < last:
        run(*(NO_STEP,) * at, (first, last), *(NO_STEP,) * (every - at - 1))
