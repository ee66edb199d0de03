"""Time the operators, forward and backward, side by side with what is installed here.

The results are compared, then each contender is timed in several processes of its own, by turns;
medians over the processes are set in relation. With a GPU the peers run on it, timed by CUDA
events; `--device cpu` stays on the processor.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cudeform.bench import contest, cuda, peers
from cudeform.bench.workload import CPU, CUDA, Workload
from cudeform.commands import CommandError, machine, outputs
from cudeform.commands.table import table

SECONDS = 0.5  # of calls of a row that a process times


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write the results to this file; in a folder, to one named for the processor",
    )
    names = {work.operator: None for work in CPU} | {work.row.family: None for work in CPU}
    parser.add_argument(
        "--operator",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"operators or families of them, among {', '.join(names)}; default: all",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one small workload of each family, few processes or turns",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=5,
        help="processes of each peer on the CPU; default: %(default)s",
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of processors to run on; default: all that this process may use",
    )
    parser.add_argument(
        "--turns",
        type=int,
        default=15,
        help="measurements of each peer on a GPU; default: %(default)s",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU where CuPy finds one"
    )


def run(given: argparse.Namespace) -> int:
    threads = given.threads or [len(contest.usable_processors())]
    for name, least in (
        ("turns", given.turns),
        ("processes", given.processes),
        ("threads", min(threads)),
    ):
        if least < 1:
            raise CommandError(f"expected --{name} of at least 1, got {least}")
    cupy, reason = (None, None) if given.device == "cpu" else machine.cupy_or_reason()
    if cupy is None and given.device == "cuda":
        raise CommandError(f"no GPU to measure: {reason}")
    facts = machine.describe(*peers.DISTRIBUTIONS)
    target = _target(given.json, facts) if given.json else None
    if cupy is not None:
        results = cuda.measure(cupy, _chosen(CUDA, given), 3 if given.quick else given.turns)
    else:
        processes, seconds = (2, 0.1) if given.quick else (given.processes, SECONDS)
        results = contest.measure(_chosen(CPU, given), processes, threads, seconds)
    results = list(_shown(results))
    print(report(results, facts))
    if target is not None:
        target.write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")
    wrong = [f"{_title(result)}: {result['wrong']}" for result in results if result["wrong"]]
    for line in wrong:
        print(f"FAILED {line}")
    return 1 if wrong else 0


def _target(given: str, facts: dict[str, Any]) -> Path:
    """The file to write, which can be written: better to know before an hour of measurements."""
    target = Path(given)
    if target.is_dir():
        kind, name = ("gpu", facts["gpu"]) if "gpu" in facts else ("cpu", facts["processor"])
        words = re.findall(r"[a-z0-9]+", name.lower().replace("(r)", " "))
        target = target / f"{'-'.join([kind, *words])}.json"
    outputs.check("--json", str(target))
    return target


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
            milliseconds = f"{result['median_ms'][name]:.3g} ms{_spread(result, name)}"
            ratio = "" if name == peers.OURS else f" ({result['ratio'][name]:.2f}x)"
            cells.append(milliseconds + ratio)
        named = (result[name] for name in ("operator", "workload", "dtype", "pass"))
        rows.append((*named, str(result.get("threads", "-")), *cells))
    missing = {n: why for result in results for n, why in result["unavailable"].items()}
    lines = [
        f"{facts.get('gpu', facts['processor'])}, {facts['date']}",
        table(("operator", "workload", "dtype", "pass", "threads", *names), rows),
        "medians; in brackets, the fastest and the slowest process; in parentheses, how many times "
        "as long as cudeform",
        *(f"not measured: {name} ({why})" for name, why in missing.items()),
    ]
    return "\n".join(lines)


def _spread(result: dict[str, Any], name: str) -> str:
    if "fastest_ms" not in result:
        return ""
    return f" [{result['fastest_ms'][name]:.3g}-{result['slowest_ms'][name]:.3g}]"
