"""The work of the kernels, counted without a GPU, and a model of what a GPU needs for it at least.

The emulator of the tests runs small parts of the benchmark's workloads in float32 and counts:
kernels, blocks, bytes that threads move, 32-byte sectors that warps ask for, traffic of shared
memory, atomics. Trips of hot loops times the instructions in their machine code are instructions.
What kernels of points do is printed for the whole workload, see `Scaled` in `tests/gates/work.py`;
what those of `layout.cu` do, which also pack the weight, for the part. Matrix products are counted,
their work is not.

The model is a lower bound in clock cycles: every scheduler issues an instruction in each, the L2
cache and the memory deliver what they do at best. It knows nothing of latency, and a GPU takes
longer. No time is measured here.

    python benchmarks/work.py --json benchmarks/work.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from gates import sass, table, work  # noqa: E402

LANES = 32


class Gpu(NamedTuple):
    """What a GPU does in a clock cycle at best, from its maker's description."""

    name: str
    arch: str
    issued: int  # instructions of warps
    l2_bytes: int
    memory_bytes: int


A100 = Gpu("A100-SXM4-40GB", "sm_80", 108 * 4, 5120, 1_555_000 // 1410)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the counts, which a test compares")
    given = parser.parse_args()
    record = work.record()
    print(f"Counts, and a model of an {A100.name}: at least so many cycles. Nothing was timed.")
    for name, counted in record["workloads"].items():
        for direction in work.DIRECTIONS:
            show(f"{name}, {direction}, of {counted['of']}", counted[direction], counted["times"])
            cycles = counted["array_bytes"][direction] / A100.memory_bytes
            print(f"arguments and results alone: {cycles:,.0f} cycles of memory")
    if given.json:
        Path(given.json).write_text(json.dumps(record, indent=1) + "\n")
    return 0


def show(title: str, counted: dict[str, Any], whole: float) -> None:
    """Print what kernels do for the larger workload, and the model's cycles."""
    print(f"\n{title}: {counted['launches']} kernels, {counted['products']} products in the part")
    print(f"{'kernel':30}{'instructions':>15}{'sectors':>14}{'issue cycles':>14}{'L2 cycles':>12}")
    for kernel, numbers in counted["kernels"].items():
        times = 1 if kernel.startswith("layout.cu") else whole
        made = instructions(kernel, numbers)
        sectors = numbers["read_sectors"] + numbers["written_sectors"]
        issue = "" if made is None else f"{made * times / LANES / A100.issued:,.0f}"
        print(
            f"{kernel:30}{'' if made is None else f'{made * times:,.0f}':>15}"
            f"{sectors * times:14,.0f}{issue:>14}{32 * sectors * times / A100.l2_bytes:12,.0f}"
        )


def instructions(kernel: str, numbers: dict[str, int]) -> int | None:
    """Of threads: those in hot loops, a pack of channels each time, and those before them."""
    file, name = kernel.split()
    hot = table.HOT.get((file, name))
    unit = next((u for u in table.read()["loops"] if u.startswith(f"{file}-float-")), None)
    if hot is None or unit is None:
        return None
    cost = sass.Cost(*table.read()["loops"][unit][name][A100.arch])
    return numbers["wide_reads"] // hot.loads * cost.pack + numbers["threads"] * cost.before


if __name__ == "__main__":
    sys.exit(main())
