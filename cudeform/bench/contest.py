"""Contenders side by side on the CPU, so that the outcome does not depend on luck.

The time of one process says little: where its stack, its code and its arrays lie can make it half
as fast as the next. Each contender runs in several processes of its own, the contenders by turns,
in an environment that is longer each time, which moves the stack. Medians over the processes are
set in relation, and the fastest and the slowest are shown.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cudeform.bench import peers
from cudeform.bench.contender import PASSES, Task
from cudeform.bench.workload import Workload, error
from cudeform.commands import CommandError

__all__ = ["in_process", "measure", "usable_processors"]

TOLERANCE = 1e-4  # in float32, of the largest magnitude
LONGER = 272  # bytes that the environment grows by: the stack lies on another line of the cache


def usable_processors() -> list[int]:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def measure(
    workloads: Iterable[Workload], processes: int, threads: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Forward and backward of each workload, in float32, on so many processors each."""
    for work in workloads:
        for count in threads:
            for name in PASSES:
                yield _hold(work, name, count, processes, seconds)


def _hold(
    work: Workload, name: str, threads: int, processes: int, seconds: float
) -> dict[str, Any]:
    names = list(PASSES[name])
    times: dict[str, list[float]] = {}
    unavailable: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(processes):
            first = turn % len(names)
            for peer in [*names[first:], *names[:first]]:
                if turn and peer not in times:
                    continue
                kept = turn == 0 and peer != peers.GEMM
                file = str(Path(folder) / f"{peer}.npz") if kept else None
                found = in_process(Task(work, name, peer, threads, seconds, file), turn)
                if "seconds" in found:
                    times.setdefault(peer, []).append(found["seconds"])
                elif "unavailable" in found:
                    unavailable[peer] = found["unavailable"]
        errors = _compare(Path(folder), times)
    return {
        "operator": work.operator,
        "workload": str(work),
        "pass": name,
        "dtype": "float32",
        "threads": threads,
        **_summary({peer: times[peer] for peer in names if peer in times}),
        "errors": errors,
        "wrong": {peer: value for peer, value in errors.items() if not value <= TOLERANCE},
        "unavailable": unavailable,
    }


def in_process(task: Task, turn: int) -> dict[str, Any]:
    """What a contender answers."""
    environment = dict(os.environ)
    environment["CUDEFORM_NUM_THREADS"] = str(task.threads)
    environment["CUDEFORM_BENCH_LENGTH"] = "x" * (turn * LONGER)
    with _confined(task.threads):
        done = subprocess.run(
            [sys.executable, "-m", "cudeform.bench.contender"],
            input=pickle.dumps(task),
            env=environment,
            capture_output=True,
        )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    problem = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    if task.peer == peers.OURS:
        raise CommandError(f"{task.work.operator}, {task.work}, {task.name}: {problem}")
    return {"unavailable": f"ended with status {done.returncode}: {problem}"}


@contextmanager
def _confined(threads: int) -> Iterator[None]:
    """Let processes that are started run on so many processors: every library follows that."""
    usable = usable_processors()
    if threads == len(usable):
        yield
        return
    if threads > len(usable) or not hasattr(os, "sched_setaffinity"):
        raise CommandError(
            f"cannot run on {threads} processors: this process may use {len(usable)}"
            + ("" if threads > len(usable) else ", and the system cannot confine it to fewer")
        )
    os.sched_setaffinity(0, usable[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def _compare(folder: Path, peers_timed: Iterable[str]) -> dict[str, float]:
    """How far each peer's results are from ours: the worst array of each."""
    ours = _results(folder, peers.OURS)
    others = [peer for peer in peers_timed if peer not in (peers.OURS, peers.GEMM)]
    return {peer: max(map(error, ours, _results(folder, peer))) for peer in others}


def _results(folder: Path, peer: str) -> list[np.ndarray]:
    with np.load(folder / f"{peer}.npz") as arrays:
        return list(arrays.values())


def _summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds over the processes, and the ratios of the medians to ours."""
    medians = {peer: median(values) for peer, values in times.items()}

    def milliseconds(of: Any) -> dict[str, float]:
        return {peer: round(1e3 * of(values), 4) for peer, values in times.items()}

    return {
        "median_ms": milliseconds(median),
        "fastest_ms": milliseconds(min),
        "slowest_ms": milliseconds(max),
        "processes": {peer: len(values) for peer, values in times.items()},
        "ratio": {peer: round(value / medians[peers.OURS], 3) for peer, value in medians.items()},
    }
