"""Everything worth knowing of a machine with a GPU, in one run and one file of JSON.

All kernels are compiled; the self-test; the operators against what is installed of torchvision,
deformops and the kernel hub, forward and backward, in float32, float16 and bfloat16; convolutions
in TF32, in both layouts, and as replayed CUDA graphs as well; compute-sanitizer's memcheck and
racecheck on the self-test in float32, where the tool is installed. What fails is recorded, the
rest still runs, and the exit status says so. What has not begun after `--minutes` is left out, and
named.

    python benchmarks/gpu_session.py --json benchmarks/results/gpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # a checkout that nobody installed will do

from gates.table import units  # noqa: E402

from cudeform.bench import command, cuda, peers  # noqa: E402
from cudeform.bench.workload import (  # noqa: E402
    CUDA,
    Aggregation,
    Attention,
    Convolution,
    Pooling,
    Workload,
)
from cudeform.commands import machine  # noqa: E402
from cudeform.cuda.compile import Unit, flatten  # noqa: E402
from cudeform.registry import OPERATORS  # noqa: E402

SELFTEST = [sys.executable, "-m", "cudeform", "selftest", "--device", "cuda"]
FEW = ["--dtype", "float32"]  # a sanitizer makes the self-test many times slower
QUICK = (
    Convolution(1, 8, 5, 6, 8),
    Attention(1, 3, ((3, 4), (2, 2))),
    Aggregation("dcnv3", 1, 32, 3, 4),
    Aggregation("dcnv4", 1, 32, 3, 4),
    Pooling("roi_align", 1, 8, 5, 6, 2, {"sampling_ratio": 1}),
)
# Errors of CUDA's functions raise in CuPy; libraries make some on purpose, to see what there is.
SANITIZERS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
OUTPUT_KEPT = 20_000  # characters of a command's output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", default="gpu.json", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.0, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny workloads, no sanitizer")
    given = parser.parse_args()

    session = Session(Path(given.json), 60 * given.minutes)
    facts = session.step("machine", lambda: machine.describe(*peers.DISTRIBUTIONS))
    session.step("compile", compile_all)
    session.step("selftest", lambda: selftest(session.left()))
    for work in QUICK if given.quick else CUDA:
        arrays = work.arrays()
        for setting, name in product(cuda.settings(work), cuda.PASSES):
            title = f"{work.operator}, {work}, {' '.join(setting)}, {name}"
            given_to = work, setting, name, given.turns, arrays
            session.measure(title, lambda given=given_to: timed(*given))
    for tool in () if given.quick else SANITIZERS:
        session.step(tool, lambda tool=tool: sanitize(tool, session.left()))
    if session.results:
        print(session.step("report", lambda: command.report(session.results, facts)))
    for what, names in (("left out", session.left_out), ("failed", session.failures)):
        print(f"{len(names)} {what}", *names, sep="\n  ")
    return 1 if session.failures else 0


class Unfinished(Exception):
    """A command that there was no time for; the message is what it said until then."""


class Session:
    """What the steps found, on disk after each of them."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.file = file
        self.until = time.monotonic() + seconds
        self.steps: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}  # that steps took, of this run's own time
        self.results: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.left_out: list[str] = []

    def left(self) -> float:
        """Seconds that there are."""
        return max(0.0, self.until - time.monotonic())

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do it and keep what it returns under its name."""
        self.steps[name] = self._attempt(name, work)
        self._write()
        return self.steps[name]

    def measure(self, title: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do it and keep what it returns among the results; a wrong one is a failure."""
        result = self._attempt(title, work)
        if "median_ms" not in result:
            self.steps[title] = result
        else:
            self.results.append(result)
            if result["wrong"]:
                self.failures.append(title)
        self._write()

    def _attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """What it returns, or what was wrong with it, or that there was no time."""
        if not self.left() and name != "report":
            self.left_out.append(name)
            return {"left out": "no time"}
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        try:
            return work()
        except Unfinished as late:
            self.left_out.append(name)
            return {"left out": "not done in time", "output": str(late)}
        except Exception:  # recorded, so that the steps after it run
            self.failures.append(name)
            error = traceback.format_exc()
            print(error)
            return {"error": error}
        finally:
            self.seconds[name] = round(time.monotonic() - begun, 1)

    def _write(self) -> None:
        """The file is whole at any time, whenever this process is ended."""
        kept = {name: getattr(self, name) for name in ("seconds", "results", "failures")}
        content = {**self.steps, **kept, "left_out": self.left_out}
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, self.file)


def gpu() -> Any:
    """CuPy, which has one."""
    cupy, reason = machine.cupy_or_reason()
    if cupy is None:
        raise RuntimeError(f"no GPU to measure: {reason}")
    return cupy


def compile_all() -> dict[str, Any]:
    """Bring all kernels into CuPy's cache, with all processors: the steps that follow find them."""
    cupy = gpu()
    capability = int(cupy.cuda.Device().compute_capability)
    wanted = [unit for unit in units() if unit.capability <= capability]

    def compile_one(unit: Unit) -> None:
        cupy.RawModule(code=flatten(unit), options=unit.options).compile()

    # A thread has no context of CUDA before it calls for something.
    with ThreadPoolExecutor(os.cpu_count(), initializer=lambda: cupy.empty((1,))) as pool:
        list(pool.map(compile_one, wanted))
    return {"units": len(wanted)}


def checked(command: list[str], seconds: float) -> dict[str, Any]:
    """A command's output; an error if it fails, `Unfinished` if it takes too long."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a group of its own, to be ended together
        )
        late = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:  # whatever ends this one, neither the command nor what it started goes on
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        file.seek(0)
        output = file.read().decode(errors="replace")[-OUTPUT_KEPT:]
    if late:
        raise Unfinished(output)
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}:\n{output}")
    return {"command": command, "output": output}


def selftest(seconds: float) -> dict[str, Any]:
    """Of all operators, each in a process of its own: what they take is compiling for the CPU."""
    names = [operator.name for operator in OPERATORS]
    commands = [[*SELFTEST, "--operator", name] for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda command: checked(command, seconds), commands))
    return {"command": SELFTEST, "output": "\n".join(one["output"] for one in found)}


def sanitize(tool: str, seconds: float) -> dict[str, Any]:
    """The self-test, whose shapes are small, under one of compute-sanitizer's tools."""
    found = shutil.which("compute-sanitizer")
    if found is None:
        return {"skipped": "compute-sanitizer is not on PATH"}
    return checked(
        [found, "--tool", tool, "--error-exitcode", "99", *SANITIZERS[tool], *SELFTEST, *FEW],
        seconds,
    )


def timed(
    work: Workload, setting: tuple[str, str], name: str, turns: int, arrays: dict[str, Any]
) -> dict[str, Any]:
    cupy = gpu()
    cupy.get_default_memory_pool().free_all_blocks()
    # Poolings with a number of samples for each box wait for the GPU, and have no graph.
    graphs = not isinstance(work, Pooling)
    return cuda.measure_one(cupy, work, setting, name, turns, graphs, arrays)


if __name__ == "__main__":
    sys.exit(main())
