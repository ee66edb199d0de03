"""The fuzzer: python -m tests.fuzz --seconds 60 --seed 1

Random arguments of every operator against the float64 reference, in memory between guard pages.
It stops at the first fault and prints the command that shows it again.
"""

import argparse
import faulthandler
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "helpers")]

import backends  # noqa: E402

from cudeform import threads  # noqa: E402

from . import faults, memory  # noqa: E402
from .arguments import OPERATORS  # noqa: E402
from .trial import Trial  # noqa: E402


def parse():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--trials", type=int, help="so many, however long it takes")
    parser.add_argument("--seed", type=int, help="default: another one every time")
    parser.add_argument("--backend", choices=("cpu", "emulator"), default="cpu")
    parser.add_argument(
        "--operator",
        choices=(*OPERATORS, "all", "faults"),
        help="only this one, all without faults, or faults",
    )
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    given = parse()
    if given.worker:
        return work(given)
    seed = given.seed if given.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}, {given.backend}", flush=True)
    with tempfile.NamedTemporaryFile() as progress:
        progress.write(bytes(8))
        progress.seek(0)
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]
        command += ["--seed", str(seed), "--worker", progress.name]
        status = subprocess.run(command).returncode
        (number,) = struct.unpack("q", progress.read(8))
    if status < 0:
        print(f"ended by signal {-status}")
        show_again(given.backend, seed, number)
    return 1 if status else 0


def show_again(backend, seed, number):
    command = f"python -m tests.fuzz --backend {backend} --seed {seed} --case {number}"
    print(f"again with: {command}", flush=True)


def numbers(given):
    if given.case is not None:
        return [given.case]
    names = list(OPERATORS)
    if given.operator in names:
        return range(names.index(given.operator), sys.maxsize, len(names))
    return range(sys.maxsize)


def work(given):
    """All trials, in a process of their own: a fault may end it."""
    faulthandler.enable()
    threads._SMALL, threads._LEAST = 1, 1  # also the smallest call is shared out
    guarded = memory.Memory() if memory.missing() is None else None
    print(f"guard pages: {memory.missing() or 'yes'}", flush=True)
    counts = Counter()
    end = time.monotonic() + given.seconds
    with open(given.worker, "r+b") as file, mmap.mmap(file.fileno(), 8) as progress:
        if given.operator != "faults":
            for number in numbers(given):
                progress[:] = struct.pack("q", number)
                trial = Trial(given.seed, number, backends.BACKENDS[given.backend])
                if not attempt(trial, guarded):
                    show_again(given.backend, given.seed, number)
                    return 1
                counts[trial.name] += 1
                done = sum(counts.values()) == given.trials
                if done if given.trials else time.monotonic() > end:
                    break
    if given.operator in (None, "faults") and given.case is None and given.backend == "cpu":
        counts += faults.run_all(given.seed, guarded)
    print(f"{sum(counts.values())} trials:", ", ".join(f"{k} {v}" for k, v in counts.items()))
    return 0


def attempt(trial, guarded):
    """Whether the trial passed."""
    try:
        with guarded.active() if guarded else nullcontext(), trial.backend.active():
            trial.run()
        if guarded and guarded.damaged():
            raise AssertionError("something was written beside an array")
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(trial if hasattr(trial, "problem") else trial.name)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
