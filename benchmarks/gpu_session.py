"""Everything worth knowing of a machine with a GPU, in one run and one file of JSON.

The self-test; compute-sanitizer's memcheck and racecheck on small shapes, where the tool is
installed; deform_conv2d and the poolings of regions against torchvision, forward and backward, in
float32, float16 and bfloat16; the convolution in TF32, in both layouts, and as replayed CUDA graphs
as well. What fails is recorded, the rest still runs, and the exit status says so.

    python benchmarks/gpu_session.py --json benchmarks/results/gpu.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cudeform.bench import command, cuda, peers
from cudeform.bench.workload import CUDA, Convolution, Pooling, Workload
from cudeform.commands import machine

SELFTEST = [sys.executable, "-m", "cudeform", "selftest", "--device", "cuda"]
QUICK = (
    Convolution(1, 16, 12, 14, 16),
    Pooling("roi_align", 2, 16, 12, 14, 5, {"sampling_ratio": 2}),
)
SANITIZERS = ("memcheck", "racecheck")
OUTPUT_KEPT = 20_000  # characters of a command's output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", default="gpu.json", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny workloads, no sanitizer")
    given = parser.parse_args()

    session = Session(Path(given.json))
    facts = session.step("machine", lambda: machine.describe(*peers.DISTRIBUTIONS))
    session.step("selftest", lambda: checked(SELFTEST))
    for tool in () if given.quick else SANITIZERS:
        session.step(tool, lambda tool=tool: sanitize(tool))
    for work in QUICK if given.quick else CUDA:
        for setting in cuda.settings(work):
            for name in cuda.PASSES:
                title = f"{work.operator}, {work}, {' '.join(setting)}, {name}"
                session.measure(
                    title, lambda w=work, s=setting, n=name: timed(w, s, n, given.turns)
                )
    if session.results:
        print(session.step("report", lambda: command.report(session.results, facts)))
    print(f"{len(session.failures)} failed", *session.failures, sep="\n  ")
    return 1 if session.failures else 0


class Session:
    """What the steps found, on disk after each of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps: dict[str, Any] = {}
        self.results: list[dict[str, Any]] = []
        self.failures: list[str] = []

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do it and keep what it returns under its name."""
        self.steps[name] = self._attempt(name, work)
        self._write()
        return self.steps[name]

    def measure(self, title: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do it and keep what it returns among the results; a wrong one is a failure."""
        result = self._attempt(title, work)
        if "error" in result:
            self.steps[title] = result
        else:
            self.results.append(result)
            if result["wrong"]:
                self.failures.append(title)
        self._write()

    def _attempt(self, name: str, work: Callable[[], Any]) -> Any:
        print(f"== {name}", flush=True)
        try:
            return work()
        except Exception:  # recorded, so that the steps after it run
            self.failures.append(name)
            error = traceback.format_exc()
            print(error)
            return {"error": error}

    def _write(self) -> None:
        content = {**self.steps, "results": self.results, "failures": self.failures}
        self.file.write_text(json.dumps(content, indent=1) + "\n")


def checked(command: list[str]) -> dict[str, Any]:
    """A command's output; an error if it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800
    )
    output = done.stdout[-OUTPUT_KEPT:]
    if done.returncode:
        raise RuntimeError(f"{command} ended with status {done.returncode}:\n{output}")
    return {"command": command, "output": output}


def sanitize(tool: str) -> dict[str, Any]:
    """The self-test, whose shapes are small, under one of compute-sanitizer's tools."""
    found = shutil.which("compute-sanitizer")
    if found is None:
        return {"skipped": "compute-sanitizer is not on PATH"}
    return checked([found, "--tool", tool, "--error-exitcode", "99", *SELFTEST])


def timed(work: Workload, setting: tuple[str, str], name: str, turns: int) -> dict[str, Any]:
    cupy, reason = machine.cupy_or_reason()
    if cupy is None:
        raise RuntimeError(f"no GPU to measure: {reason}")
    cupy.get_default_memory_pool().free_all_blocks()
    graphs = isinstance(work, Convolution)  # some poolings wait for the GPU, and have no graph
    return cuda.measure_one(cupy, work, setting, name, turns, graphs)


if __name__ == "__main__":
    sys.exit(main())
