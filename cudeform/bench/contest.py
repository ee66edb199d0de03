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
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cudeform.bench import peers
from cudeform.bench.contender import PASSES, Task
from cudeform.bench.workload import Workload, error
from cudeform.commands import CommandError

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
    """Forward and backward of each workload, in float32, on so many processors each.

    A process measures all rows of an operator: most of the time would else go into its start.
    """
    for _, works in groupby(workloads, lambda work: work.operator):
        rows = tuple((work, name) for work in works for name in PASSES)
        for count in threads:
            yield from _hold(rows, count, processes, seconds)


def _hold(
    rows: tuple[tuple[Workload, str], ...], threads: int, processes: int, seconds: float
) -> Iterator[dict[str, Any]]:
    names = list(dict.fromkeys(peer for group in PASSES.values() for peer in group))
    times: list[dict[str, list[float]]] = [{} for _ in rows]
    unavailable: list[dict[str, str]] = [{} for _ in rows]
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(processes):
            first = turn % len(names)
            for peer in [*names[first:], *names[:first]]:
                if turn and not any(peer in of_row for of_row in times):
                    continue
                task = Task(rows, peer, threads, seconds, None if turn else folder)
                for row, found in enumerate(in_process(task, turn)):
                    if "seconds" in found and (turn == 0 or peer in times[row]):
                        times[row].setdefault(peer, []).append(found["seconds"])
                    elif "unavailable" in found:
                        unavailable[row][peer] = found["unavailable"]
        errors = [_compare(Path(folder), row, of_row) for row, of_row in enumerate(times)]
    for row, (work, name) in enumerate(rows):
        yield {
            "operator": work.operator,
            "workload": str(work),
            "pass": name,
            "dtype": "float32",
            "threads": threads,
            **_summary({peer: times[row][peer] for peer in names if peer in times[row]}),
            "errors": errors[row],
            "wrong": {p: value for p, value in errors[row].items() if not value <= TOLERANCE},
            "unavailable": unavailable[row],
        }


def in_process(task: Task, turn: int) -> list[dict[str, Any]]:
    """What a contender answers for each row; where its process ends before, for the rest that."""
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
    lines = [line for line in done.stdout.splitlines() if line.startswith(b"{")]
    answers = [json.loads(line) for line in lines]
    missing = len(task.rows) - len(answers)
    if missing == 0:
        return answers
    problem = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    if task.peer == peers.OURS:
        work, name = task.rows[len(answers)]
        raise CommandError(f"{work.operator}, {work}, {name}: {problem}")
    return answers + missing * [{"unavailable": f"ended with status {done.returncode}: {problem}"}]


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


def _compare(folder: Path, row: int, timed: Iterable[str]) -> dict[str, float]:
    """How far each peer's results are from ours: the worst array of each."""
    ours = _results(folder, row, peers.OURS)
    others = [peer for peer in timed if peer not in (peers.OURS, peers.GEMM)]
    return {peer: max(map(error, ours, _results(folder, row, peer))) for peer in others}


def _results(folder: Path, row: int, peer: str) -> list[np.ndarray]:
    with np.load(folder / f"{row}-{peer}.npz") as arrays:
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
