"""Peak memory of deform_conv2d on the CPU beyond its inputs and outputs, by batch size.

The kernel's own record of a process's peak is reset just before the call and read just after it
(VmHWM in /proc/self/status, Linux only), so that allocations outside Python count as well. Each
measurement has a process of its own, in which a small call has loaded the code first.

    python benchmarks/memory.py --json benchmarks/results/memory.json
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cudeform.bench import peers
from cudeform.bench.workload import CPU, Convolution
from cudeform.commands import machine
from cudeform.commands.table import table
from cudeform.threads import get_num_threads

BATCHES = (1, 4, 16)
MEASURED = (peers.OURS, "torchvision")
PASSES = {"forward": peers.FORWARD, "backward": peers.BACKWARD}
SMALL = Convolution(1, 16, 16, 16, 16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--one", nargs=3, metavar=("PEER", "PASS", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        peer, name, batch = given.one
        print(json.dumps(measure(peer, name, replace(CPU[0], batch=int(batch)))))
        return 0

    facts = machine.describe(*peers.DISTRIBUTIONS)
    attempts = [
        in_a_process(peer, name, batch)
        for name in PASSES
        for peer in MEASURED
        for batch in given.batches
    ]
    results = [attempt for attempt in attempts if "extra_mb" in attempt]
    print(report(results, facts))
    if given.json:
        content = json.dumps({"machine": facts, "results": results}, indent=1)
        Path(given.json).write_text(content + "\n")
    return 0


def in_a_process(peer: str, name: str, batch: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", peer, name, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def measure(peer: str, name: str, work: Convolution) -> dict[str, Any]:
    """What the peak rises by during one call, less what the call returns."""
    result: dict[str, Any] = {"peer": peer, "pass": name, "workload": str(work)}
    set_up, threads = PASSES[name][peer], get_num_threads()
    try:
        set_up(SMALL, SMALL.arrays(), threads)()
    except ImportError as problem:
        return {**result, "unavailable": str(problem)}
    call = set_up(work, work.arrays(), threads)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from what is resident now
    before = _status("VmRSS")
    returned = sum(array.nbytes for array in call())
    rise = _status("VmHWM") - before
    return {**result, "extra_mb": round((rise - returned) / 1e6, 1)}


def _status(field: str) -> int:
    """A size of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {field} in /proc/self/status: this needs Linux")


def report(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    rows = [(r["workload"], r["pass"], r["peer"], f"{r['extra_mb']} MB") for r in results]
    header = ("workload", "pass", "", "peak beyond inputs and outputs")
    title = f"{facts['processor']}, {facts['threads']} threads, {facts['date']}"
    return f"{title}\n{table(header, rows)}"


if __name__ == "__main__":
    sys.exit(main())
