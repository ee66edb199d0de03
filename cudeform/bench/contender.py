"""One contender in a process of its own: reads what it has to compute, prints how long that took.

Nobody else's threads, memory and settings are in the process. `contest` starts many of them.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from cudeform.bench import peers
from cudeform.bench.workload import Workload

PASSES = {"forward": peers.FORWARD, "backward": peers.BACKWARD}
FEWEST, MOST = 3, 1000  # calls that are timed
WARM = 0.25  # of the seconds that are timed, before them


class Task(NamedTuple):
    """What a contender has to do: rows, each a workload and a pass, one after the other."""

    rows: tuple[tuple[Workload, str], ...]
    peer: str
    threads: int
    seconds: float  # of calls, of each row
    keep: str | None = None  # a folder for the results of row i, `i-peer.npz`


def compute(task: Task) -> Iterator[dict[str, Any]]:
    """Of each row, seconds of a call: the median of some in a row. Or why there is none."""
    for number, (work, name) in enumerate(task.rows):
        keep = None
        if task.keep is not None and task.peer != peers.GEMM:
            keep = Path(task.keep) / f"{number}-{task.peer}.npz"
        try:
            yield {"seconds": _seconds(task, work, name, keep)}
        except peers.Lacking:
            yield {"lacking": True}
        except ImportError as problem:
            yield {"unavailable": str(problem)}


def _seconds(task: Task, work: Workload, name: str, keep: Path | None) -> float:
    group = PASSES[name]
    if task.peer not in group:
        raise peers.Lacking(name)
    call = group[task.peer](work, work.arrays(), task.threads)
    results = call()
    if keep is not None:
        np.savez(keep, *results)
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM * task.seconds:
        call()
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < task.seconds and len(times) < MOST):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    for answer in compute(pickle.load(sys.stdin.buffer)):
        print(json.dumps(answer), flush=True)
