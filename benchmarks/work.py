"""The work of the kernels, counted without a GPU, and a model of what a GPU needs for it at least.

The emulator of the tests runs small parts of the benchmark's workloads in float32 and counts:
kernels, blocks, bytes that threads move, 32-byte sectors that warps ask for, traffic of shared
memory, atomics. Instructions are trips of hot loops times what those take in machine code, and
elsewhere those of PTX, which `tests/ptx` runs. What is printed is for the whole workload, by the
law that `Scaled` in `tests/gates/work.py` states. Matrix products are counted, their work is not.
The record has the instructions of some sorts of points besides.

The model, `tests/gates/model.py`, gives a lower bound in clock cycles. It knows nothing of latency,
and a GPU takes longer. No time is measured here.

    python benchmarks/work.py --json benchmarks/work.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gates import table as records  # noqa: E402
from gates import work  # noqa: E402

from cudeform.commands.table import table  # noqa: E402

HEADER = ("kernel", "instructions", "sectors", "atomics")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the counts, which a test compares")
    given = parser.parse_args()
    record = work.record()
    name = record["model"]["name"]
    print(f"Counts, and a model of an {name}: at least so many cycles. Nothing was timed.")
    for scaled in work.SCALED:
        for direction in work.DIRECTIONS:
            show(scaled, direction, record["workloads"][scaled.name])
    if given.json:
        Path(given.json).write_text(records.text(record))
    return 0


def show(scaled: work.Scaled, direction: str, counted: dict[str, Any]) -> None:
    """Print what kernels do for the larger workload, and the model's cycles."""
    whole = counted["whole"][direction]
    rows = []
    for kernel, numbers in work.larger(scaled, counted[direction]).items():
        sectors = numbers["read_sectors"] + numbers["written_sectors"]
        shown = (numbers["instructions"], sectors, numbers["atomics"])
        rows.append((kernel, *(f"{number:,.0f}" for number in shown)))
    started = f"{whole['launches']} launches, {whole['products']} products"
    print(f"\n{counted['of']}, {direction}: {started}\n{table(HEADER, rows)}")
    print("cycles:", ", ".join(f"{name} {n:,}" for name, n in whole["model_cycles"].items()))


if __name__ == "__main__":
    sys.exit(main())
