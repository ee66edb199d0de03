"""Change one line at a time and see whether a test notices: python -m tests.mutation --count 200

Each mutant is made in a copy of the tree, and the tests that should notice it run there. What
became of it is appended to a file, so that a run can be stopped and goes on where it was.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from .mutants import draw

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("cudeform", "kernels", "tests", "benchmarks", "docs", "pyproject.toml", "setup.cfg")
KEPT += ("README.md", "CONTRIBUTING.md", "constraints.txt")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="files with this in their name")
    parser.add_argument("--jobs", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one mutant")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    given = parser.parse_args()

    done = {}
    if given.results.exists():
        done = {row["mutant"]: row for row in map(json.loads, given.results.open())}
    mutants = draw(ROOT, given.count, given.seed, given.only)
    with tempfile.TemporaryDirectory() as folder:
        trees = Queue()
        for job in range(given.jobs):
            trees.put(copy(Path(folder) / str(job)))
        with ThreadPoolExecutor(given.jobs) as pool:
            left = [(m, tests) for m, tests in mutants if str(m) not in done]
            tree = trees.get()
            for tests in {tuple(tests) for _, tests in left}:
                if run(tree, tests, given.timeout) != "survived":
                    sys.exit(f"fails without any mutant: python -m pytest {shlex.join(tests)}")
            trees.put(tree)
            for row in pool.map(lambda each: attempt(trees, *each, given.timeout), left):
                done[row["mutant"]] = row
                print(f"{row['outcome']:9} {row['mutant']}", flush=True)
                with given.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    report([done[str(m)] for m, _ in mutants])


def copy(tree):
    tree.mkdir()
    for name in KEPT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


def attempt(trees, mutant, tests, timeout):
    """What became of a mutant: killed, survived, or late, which counts as killed."""
    tree = trees.get()
    file = tree / mutant.file
    source = file.read_text()
    try:
        file.write_text(mutant.text(source))
        outcome = run(tree, tests, timeout)
    finally:
        file.write_text(source)
        trees.put(tree)
    return {"mutant": str(mutant), "outcome": outcome, "tests": tests}


def run(tree, tests, timeout):
    environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree / "numba")}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return "killed" if process.wait(timeout) else "survived"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return "late"


def report(rows):
    survived = [row["mutant"] for row in rows if row["outcome"] == "survived"]
    print(
        f"{len(rows)} mutants, {len(rows) - len(survived)} killed; survived:", *survived, sep="\n"
    )


if __name__ == "__main__":
    main()
