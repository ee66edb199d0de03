"""Time the operators, forward and backward, side by side with what is installed here.

All in one run: the results are compared first, then the peers take turns, so that what else the
machine does falls on all of them, and the medians are set in relation. With a GPU the peers run on
it, timed by CUDA events; `--device cpu` stays on the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cudeform.commands import CommandError, bench_cuda, machine, outputs, peers
from cudeform.commands.table import table
from cudeform.commands.workload import CPU, CUDA, Workload, error
from cudeform.cpu.threads import get_num_threads

__all__ = ["add_arguments", "measure", "report", "run"]

TOLERANCE = 1e-4  # in float32, of the largest magnitude
REST = 0.25  # seconds: the threads of the peer before spin for a while
BURST, LONG = 7, 0.2  # calls in a row that make one measurement, or seconds of them
ENOUGH = 8.0  # seconds of measurements of one peer, of which there are at least FEWEST
FEWEST = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    names = {work.operator: None for work in CPU} | {work.row.family: None for work in CPU}
    parser.add_argument(
        "--operator",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"operators or families of them, among {', '.join(names)}; default: all",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one small workload of each family, few turns"
    )
    parser.add_argument(
        "--turns", type=int, default=15, help="measurements of each peer; default: %(default)s"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU where CuPy finds one"
    )


def run(given: argparse.Namespace) -> int:
    if given.turns < 1:
        raise CommandError(f"expected --turns of at least 1, got {given.turns}")
    if given.json:
        outputs.check("--json", given.json)
    cupy, reason = (None, None) if given.device == "cpu" else machine.cupy_or_reason()
    if cupy is None and given.device == "cuda":
        raise CommandError(f"no GPU to measure: {reason}")
    facts = machine.describe(*peers.DISTRIBUTIONS)
    turns = 3 if given.quick else given.turns
    if cupy is not None:
        results = bench_cuda.measure(cupy, _chosen(CUDA, given), turns)
    else:
        results = measure(_chosen(CPU, given), turns)
    results = list(_shown(results))
    print(report(results, facts))
    if given.json:
        content = json.dumps({"machine": facts, "results": results}, indent=1)
        try:
            Path(given.json).write_text(content + "\n")
        except OSError as problem:
            raise CommandError(f"cannot write the results: {problem}") from problem
    wrong = [f"{_title(result)}: {result['wrong']}" for result in results if result["wrong"]]
    for line in wrong:
        print(f"FAILED {line}")
    return 1 if wrong else 0


def _chosen(workloads: Sequence[Workload], given: argparse.Namespace) -> list[Workload]:
    """Those that were asked for; in the quick form the last of each family."""
    chosen = [
        work
        for work in workloads
        if given.operator is None or {work.operator, work.row.family} & set(given.operator)
    ]
    return list({work.row.family: work for work in chosen}.values()) if given.quick else chosen


def _title(result: dict[str, Any]) -> str:
    return f"{result['operator']}, {result['workload']}, {result['pass']}"


def _shown(results: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The results as they come, with a word on each as it is done."""
    for result in results:
        print(f"measured {_title(result)}", flush=True)
        yield result


def measure(workloads: Iterable[Workload], turns: int) -> Iterable[dict[str, Any]]:
    """Forward and backward of each workload on the CPU, in float32."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = get_num_threads()
    if threads != usable:
        raise CommandError(
            f"cudeform is told to use {threads} threads and NumPy's BLAS uses {usable}: "
            "choose the processors with `taskset` instead, which both follow"
        )
    for work in workloads:
        arrays = work.arrays()
        for name, group in (("forward", peers.FORWARD), ("backward", peers.BACKWARD)):
            calls, unavailable = _set_up(group, work, arrays, threads)
            errors = _compare(calls)
            wrong = {peer: e for peer, e in errors.items() if not e <= TOLERANCE}
            times = _take_turns(calls, turns)
            yield {
                "operator": work.operator,
                "workload": str(work),
                "pass": name,
                "dtype": "float32",
                **_summary(times),
                "errors": errors,
                "wrong": wrong,
                "unavailable": unavailable,
            }


def _set_up(
    group: dict[str, peers.Peer], work: Workload, arrays: dict[str, Any], threads: int
) -> tuple[dict[str, peers.Call], dict[str, str]]:
    calls, unavailable = {}, {}
    for name, peer in group.items():
        try:
            calls[name] = peer(work, arrays, threads)
        except peers.Lacking:
            continue
        except peers.Unavailable as problem:
            unavailable[name] = str(problem)
    return calls, unavailable


def _compare(calls: dict[str, peers.Call]) -> dict[str, float]:
    """How far each peer's results are from ours: the worst array of each."""
    ours = calls[peers.OURS]()
    return {
        name: max(map(error, ours, call()))
        for name, call in calls.items()
        if name not in (peers.OURS, peers.GEMM)
    }


def _take_turns(calls: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each call: one that warms the caches, a burst that counts, then the next peer's.

    A peer that takes long has fewer turns, at even distances among those of the others.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    every = dict.fromkeys(calls, 1)
    for turn in range(turns):
        for name, call in calls.items():
            if turn % every[name]:
                continue
            time.sleep(REST)
            call()
            times[name].append(_burst(call))
            affordable = max(FEWEST, int(ENOUGH / times[name][0]))
            every[name] = max(1, -(-turns // affordable))
    return times


def _burst(call: Callable[[], Any]) -> float:
    """The median of a few calls in a row, as a program that computes would make them."""
    times: list[float] = []
    while len(times) < BURST and sum(times) < LONG:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def _summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and minima in milliseconds, and the ratios of the medians to ours."""
    medians = {name: median(values) for name, values in times.items()}
    return {
        "median_ms": {name: round(1e3 * value, 4) for name, value in medians.items()},
        "minimum_ms": {name: round(1e3 * min(values), 4) for name, values in times.items()},
        "turns": {name: len(values) for name, values in times.items()},
        "ratio": {name: round(value / medians[peers.OURS], 3) for name, value in medians.items()},
    }


def report(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The results as a table of medians, and of ratios to ours in parentheses."""
    names = list(dict.fromkeys(name for result in results for name in result["median_ms"]))
    rows = []
    for result in results:
        cells = []
        for name in names:
            if name not in result["median_ms"]:
                cells.append("-")
                continue
            milliseconds = f"{result['median_ms'][name]:.3g} ms"
            ratio = "" if name == peers.OURS else f" ({result['ratio'][name]:.2f}x)"
            cells.append(milliseconds + ratio)
        named = (result[name] for name in ("operator", "workload", "dtype", "pass"))
        rows.append((*named, *cells))
    missing = {n: why for result in results for n, why in result["unavailable"].items()}
    lines = [
        f"{facts.get('gpu', facts['processor'])}, {facts['threads']} threads, {facts['date']}",
        table(("operator", "workload", "dtype", "pass", *names), rows),
        "medians; in parentheses, how many times as long as cudeform",
        *(f"not measured: {name} ({why})" for name, why in missing.items()),
    ]
    return "\n".join(lines)
