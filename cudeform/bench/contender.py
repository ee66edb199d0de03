"""One contender in a process of its own: reads what it has to compute, prints how long it took.

Nobody else's threads, memory and settings are in the process. `contest` starts many of them.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from cudeform.bench import peers
from cudeform.bench.workload import Workload

__all__ = ["PASSES", "Task", "compute"]

PASSES = {"forward": peers.FORWARD, "backward": peers.BACKWARD}
FEWEST, MOST = 3, 1000  # calls that are timed
WARM = 0.25  # of the seconds that are timed, before them


class Task(NamedTuple):
    """What a contender has to do."""

    work: Workload
    name: str  # of the pass
    peer: str
    threads: int
    seconds: float  # of calls
    keep: str | None = None  # a file for the results


def compute(task: Task) -> dict[str, Any]:
    """Seconds of a call: the median of some in a row. Or why there is none."""
    try:
        call = PASSES[task.name][task.peer](task.work, task.work.arrays(), task.threads)
    except peers.Lacking:
        return {"lacking": True}
    except peers.Unavailable as problem:
        return {"unavailable": str(problem)}
    results = call()
    if task.keep is not None:
        np.savez(task.keep, *results)
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM * task.seconds:
        call()
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < task.seconds and len(times) < MOST):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"seconds": median(times)}


if __name__ == "__main__":
    print(json.dumps(compute(pickle.load(sys.stdin.buffer))))
