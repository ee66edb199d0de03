"""Tables for the README and the documentation, from the registry and the committed measurements.

``python docs/tables.py`` writes them into README.md; a test says when that is due.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cudeform.registry import OPERATORS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "work.json"
OURS, GRAPH = "cudeform", ", graph"
VERSIONS = (
    "python",
    "numpy",
    "numba",
    "torch",
    "torchvision",
    "transformers",
    "torch-ms-deform-attn",
    "jax",
    "onnxruntime",
    "openvino",
    "deformops",
    "cupy",
    "CUDA runtime",
)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """The table as Markdown has it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def operators() -> str:
    """What there is, a row of the registry each."""
    rows = []
    for operator in OPERATORS:
        arguments = ", ".join(
            f"{argument.name} (optional)" if argument.optional else argument.name
            for argument in operator.arguments
            if argument.differentiable
        )
        rows.append([f"`{operator.name}`", operator.summary, arguments, operator.paper])
    return markdown(["function", "what it computes", "differentiable arrays", "paper"], rows)


def benchmarks() -> str:
    """Every committed run: the machine, our times, and the ratios to the peers' of the same run."""
    return _measured(partial(_timed, family="conv"), partial(_times, "N×C×H×W → O"))


def benchmarks_few() -> str:
    """The same in a row for each machine, pass and number of threads."""
    rows: list[tuple[str, int, str, list[dict[str, Any]]]] = []
    peers: dict[str, None] = {}
    for facts, results in _runs(partial(_timed, family="conv")):
        groups: dict[tuple[Any, str], list[dict[str, Any]]] = {}
        for result in results:
            key = result.get("threads", facts["threads"]), result["pass"]
            groups.setdefault(key, []).append(result)
            peers |= {name: None for name in result["ratio"] if name != OURS}
        rows += [(facts["processor"], *key, group) for key, group in groups.items()]
    first = rows[0][-1][0]["workload"]
    table = []
    for processor, threads, name, group in rows:
        ours = next(r for r in group if r["workload"] == first)["median_ms"][OURS]
        ranges = [_range(group, peer) for peer in peers]
        table.append([processor, str(threads), name, f"{ours:.1f} ms", *ranges])
    header = ["processor", "threads", "pass", _pretty(first), *peers]
    return markdown(header, table)


def poolings() -> str:
    """The same of the poolings of regions."""
    return _measured(partial(_timed, family="regions"), partial(_times, "N×C×H×W, boxes"))


def attention() -> str:
    """The same of attention."""
    return _measured(partial(_timed, family="attention"), partial(_times, "N×queries, levels"))


def aggregation() -> str:
    """The same of DCNv3 and DCNv4."""
    return _measured(partial(_timed, family="aggregation"), partial(_times, "N×H×W×C"))


def gpu() -> str:
    """Calls on GPUs, and replays of their graphs: ours, and how many times as long others took."""
    return _measured(lambda result: "median_ms" in result, _on_gpu, gpu=True)


def gpu_few() -> str:
    """A layer of each family of the same."""
    few = ("8x256x64x64 -> 256", "points near", "64x56x56x64")

    def belongs(result: dict[str, Any]) -> bool:
        return "median_ms" in result and any(part in result["workload"] for part in few)

    return _measured(belongs, _on_gpu, gpu=True)


def memory() -> str:
    """The memory that a call takes beyond its inputs and outputs, in every committed run."""
    return _measured(lambda result: "extra_mb" in result, _megabytes)


def overhead() -> str:
    """What a call costs on a tiny problem, by every route."""
    return _measured(lambda result: "best_us" in result, _microseconds)


def work() -> str:
    """What the kernels of a GPU do for whole workloads, and the bound of a model."""
    record = json.loads(WORK.read_text())
    rows = []
    for counted in record["workloads"].values():
        function, workload = counted["of"].split(", ", 1)
        for direction, whole in counted["whole"].items():
            sectors = whole["read_sectors"] + whole["written_sectors"]
            numbers = (
                f"{whole['launches']}",
                f"{whole['products'] or ''}",
                f"{whole['instructions'] / 1e9:.2f}",
                f"{32 * sectors / 1e6:,.0f}",
                f"{whole['array_bytes'] / 1e6:,.0f}",
                f"{whole['model_cycles']['bound'] / 1e3:,.0f}",
            )
            rows.append([f"`{function}`", _pretty(workload), direction, *numbers])
    header = ["function", "shapes", "pass", "kernels", "products", "10⁹ instructions"]
    header += ["MB through L2", "MB of arrays", "10³ cycles at least"]
    return f"{markdown(header, rows)}\n\nThe cycles are of a model of an {record['model']['name']}."


def _timed(result: dict[str, Any], family: str) -> bool:
    families = {operator.name: operator.family for operator in OPERATORS}
    return "median_ms" in result and families[result["operator"]] == family


def _measured(
    belongs: Callable[[dict[str, Any]], bool],
    table: Callable[[list[dict[str, Any]]], str],
    gpu: bool = False,
) -> str:
    parts = [f"{_machine(facts, some)}\n\n{table(some)}" for facts, some in _runs(belongs, gpu)]
    return "\n\n".join(parts) or "No measurements are committed yet."


def _runs(
    belongs: Callable[[dict[str, Any]], bool], gpu: bool = False
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of every committed run on a CPU, or on a GPU, the machine and the results that belong."""
    for path in sorted(RESULTS.glob("*.json")):
        run = json.loads(path.read_text())
        here = ("gpu" in run.get("machine", ())) == gpu
        results = list(filter(belongs, run.get("results", ()))) if here else []
        if results:
            yield run["machine"], results


def _machine(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    where = [facts.get("gpu", facts["processor"]), facts["date"]]
    used = {result.get("threads", facts["threads"]) for result in results}
    if len(used) == 1:  # else the table has a column of them
        where.insert(1, f"{used.pop()} threads")
    versions = [f"{name} {facts[name]}" for name in VERSIONS if name in facts]
    return f"{', '.join(where)}; {', '.join(versions)}:"


def _times(shapes: str, results: list[dict[str, Any]]) -> str:
    """Milliseconds of ours, and how many times as long the others took; then worst and best row."""
    peers = [name for result in results for name in result["median_ms"] if name != OURS]
    peers = list(dict.fromkeys(peers))
    columns: dict[str, list[str]] = {
        "function": [f"`{result['operator']}`" for result in results],
        shapes: [_pretty(result["workload"]) for result in results],
        "pass": [result["pass"] for result in results],
        "threads": [str(result.get("threads", "")) for result in results],
        OURS: [_with_spread(result) for result in results],
    }
    for peer in peers:
        ratios = [result["ratio"].get(peer) for result in results]
        columns[peer] = ["" if ratio is None else f"{ratio:.2f}×" for ratio in ratios]
    for name in ("function", "threads"):  # where it is the same all the way down it says nothing
        if len(set(columns[name])) < 2:
            del columns[name]
    table = markdown(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])
    return f"{table}\n\n{_extremes(peers, results)}"


def _with_spread(result: dict[str, Any]) -> str:
    """Our median; where it is one over processes, with the fastest and the slowest of them."""
    median = f"{result['median_ms'][OURS]:.1f}"
    if "fastest_ms" not in result:
        return f"{median} ms"
    ends = result["fastest_ms"][OURS], result["slowest_ms"][OURS]
    return f"{median} ms ({ends[0]:.1f} to {ends[1]:.1f})"


def _range(results: list[dict[str, Any]], peer: str) -> str:
    """The smallest and the largest ratio of a peer, or nothing where it has none."""
    ratios = [result["ratio"][peer] for result in results if peer in result["ratio"]]
    return f"{min(ratios):.2f}× to {max(ratios):.2f}×" if ratios else ""


def _extremes(peers: list[str], results: list[dict[str, Any]]) -> str:
    """In one line, the smallest and the largest ratio of every peer, by pass."""
    parts = []
    for name in dict.fromkeys(result["pass"] for result in results):
        group = [result for result in results if result["pass"] == name]
        ranges = [f"{peer} {span}" for peer in peers if (span := _range(group, peer))]
        parts.append(f"{name}: {', '.join(ranges)}")
    return f"From the worst row to the best, {'; '.join(parts)}."


def _pretty(workload: str) -> str:
    return re.sub(r"(?<=\d)x(?=\d)", "×", workload).replace("->", "→")


def _on_gpu(results: list[dict[str, Any]]) -> str:
    """A row for each workload, pass and dtype; bfloat16 takes what float16 does."""
    rows = []
    for r in (r for r in results if r["dtype"] != "bfloat16"):
        medians = r["median_ms"]
        ours = (OURS, f"{OURS}{GRAPH}", f"{OURS} NHWC", f"{OURS} NHWC{GRAPH}")
        times = [f"{medians[name]:.3f}" if name in medians else "" for name in ours]
        peers = [n for n in medians if not n.startswith(OURS) and not n.endswith(GRAPH)]
        others = ", ".join(f"{peer} {_both_ratios(medians, peer)}" for peer in peers)
        rows.append([_title(r), r["pass"], r["dtype"], *times, others])
    header = ["workload", "pass", "dtype", "call, ms", "replay", "NHWC call", "replay", "others"]
    return markdown(header, rows)


def _both_ratios(medians: dict[str, float], peer: str) -> str:
    """How many times as long as ours the peer's call took, and in parentheses its replay."""
    ratios = [
        f"{medians[peer + how] / medians[OURS + how]:.2f}×"
        for how in ("", GRAPH)
        if peer + how in medians and OURS + how in medians
    ]
    return ratios[0] + "".join(f" ({ratio})" for ratio in ratios[1:])


def _title(result: dict[str, Any]) -> str:
    return f"`{result['operator']}` {_pretty(result['workload'])}"


def _megabytes(results: list[dict[str, Any]]) -> str:
    peers = list(dict.fromkeys(result["peer"] for result in results))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        row = cells.setdefault((_pretty(result["workload"]), result["pass"]), {})
        row[result["peer"]] = f"{result['extra_mb']:.0f} MB"
    rows = [[*key, *(row.get(peer, "") for peer in peers)] for key, row in cells.items()]
    return markdown(["N×C×H×W → O", "pass", *peers], rows)


def _microseconds(results: list[dict[str, Any]]) -> str:
    passes = list(dict.fromkeys(result["pass"] for result in results))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        row = cells.setdefault((f"`{result['operator']}`", result["route"]), {})
        row[result["pass"]] = f"{result['best_us']:.0f} µs"
    rows = [[*key, *(row.get(name, "") for name in passes)] for key, row in sorted(cells.items())]
    header = [name.replace("_", " ") for name in passes]
    return markdown(["function", "route", *header], rows)


def write(folder: Path) -> None:
    """Write the tables into a folder, for pages to include."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in TABLES.items():
        (folder / f"{name}.md").write_text(table() + "\n")


def write_reference(folder: Path) -> None:
    """Write the reference's page of operators, and with it the list of their own pages."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["Operators", "=========", "", ".. currentmodule:: cudeform", ""]
    lines += [".. autosummary::", "   :toctree: .", ""]
    for operator in OPERATORS:
        lines += [f"   {operator.name}", f"   {operator.name}_backward"]
    (folder / "operators.rst").write_text("\n".join(lines) + "\n")


def filled(text: str) -> str:
    """README's text with every table between its marks as it is now."""
    for name, table in README_TABLES.items():
        begin, end = f"<!-- {name}: written by docs/tables.py -->\n", "<!-- end -->"
        before, rest = text.split(begin)
        _, after = rest.split(end, 1)
        text = before + begin + table() + "\n" + end + after
    return text


README_TABLES = {"operators": operators, "benchmarks": benchmarks_few, "gpu": gpu_few}
TABLES = {
    **README_TABLES,
    "convolutions": benchmarks,
    "gpu_all": gpu,
    "attention": attention,
    "aggregation": aggregation,
    "memory": memory,
    "overhead": overhead,
    "poolings": poolings,
    "work": work,
}

if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
