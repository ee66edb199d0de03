"""What a call shares out over the threads: how many tasks, and how much work."""

from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

from cudeform import threads

__all__ = ["Run", "runs_with"]


class Run(NamedTuple):
    """One pass of a call."""

    name: str  # of what is computed
    tasks: int
    work: float  # multiplications, as the caller of `threads.share` says


@contextmanager
def runs_with(count):
    """A list of the passes of what is called meanwhile, as `count` threads would share them.

    Tasks are done one after another by the caller.
    """
    found, before, share = [], threads.get_num_threads(), threads.share

    def counting(task, tasks, work=float("inf")):
        ends = []

        def run(_, pieces):
            ends.append(pieces)
            task(0, tasks)

        with mock.patch.object(threads, "run", run):
            share(task, tasks, work)
        name = getattr(task, "func", task).__name__
        if name == "_do_one":  # see `cudeform.cpu.conv.steps`
            name = f"step {task.args[1]}"
        found.append(Run(name, ends[0] if ends else 1, work))

    def each(loops):
        for loop in loops:
            counting(*loop)

    def run(task, tasks):
        found.append(Run(task.__qualname__, tasks, float("inf")))
        for index in range(tasks):
            task(index)

    threads.set_num_threads(count)
    try:
        with mock.patch.multiple(threads, share=counting, share_all=each, run=run):
            yield found
    finally:
        threads.set_num_threads(before)
