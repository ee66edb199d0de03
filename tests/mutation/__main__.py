"""Change one line at a time and see whether a test notices: python -m tests.mutation --count 200

Each mutant is made in a copy of the tree, and the tests that should notice it run there, the
quickest first, until one fails. What became of it is appended to a file, so that a run can be
stopped and goes on where it was.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from .mutants import FOLDERS, draw
from .stages import stages

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("cudeform", "kernels", "tests", "benchmarks", "docs", "examples", "cudeform_autoload.py")
KEPT += ("pyproject.toml", "setup.cfg", "README.md", "CONTRIBUTING.md", "constraints.txt")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="files with this in their name")
    parser.add_argument("--jobs", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--stages", type=int, help="of the tests of a file; default: all")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--again", action="store_true", help="try again what has survived")
    folder = Path(tempfile.gettempdir()) / "cudeform-mutants"
    parser.add_argument("--folder", type=Path, default=folder, help="default: %(default)s")
    given = parser.parse_args()

    done = {}
    if given.results.exists():
        done = {row["mutant"]: row for row in map(json.loads, given.results.open())}
    mutants = draw(ROOT, given.count, given.seed, given.only)
    known = {m for m, row in done.items() if not (given.again and row["outcome"] == "survived")}
    trees = Queue()
    for job in range(given.jobs):
        trees.put(Tree(given.folder / str(job)))
    with ThreadPoolExecutor(given.jobs) as pool:
        left = [mutant for mutant in mutants if str(mutant) not in known]
        for row in pool.map(lambda mutant: attempt(trees, mutant, given.stages), left):
            done[row["mutant"]] = row
            print(f"{row['outcome']:9} {row['seconds']:5.0f} s  {row['mutant']}", flush=True)
            with given.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    report([done[str(m)] for m in mutants])


def attempt(trees, mutant, most):
    tree = trees.get()
    try:
        return tree.attempt(mutant, most)
    finally:
        trees.put(tree)


class Tree:
    """A copy of the tree at a place that stays, so that compiled kernels in it stay, too."""

    def __init__(self, folder):
        self.root = folder / "tree"
        self.numba = folder / "numba"
        self.took = {}  # the time of a stage without any mutant
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        for name in KEPT:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, self.root / name, ignore=ignored)
            else:
                shutil.copy(source, self.root / name)
        paths = {"PYTHONPATH": str(self.root), "NUMBA_CACHE_DIR": str(self.numba)}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.server"],
            cwd=self.root,
            env={**os.environ, **paths, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def attempt(self, mutant, most):
        """What became of a mutant in so many stages at most: survived, late or killed, and by what.

        Late is what takes far longer than the tests do without it; it counts as killed.
        """
        row = {"mutant": str(mutant), "outcome": "survived", "by": "", "stages": 0}
        start = time.monotonic()
        for stage in stages(mutant.file)[:most]:
            limit = 60 + 6 * self.time_of(stage)
            with self.changed(mutant):
                row["outcome"], row["by"] = self.run(stage, limit)
            row["stages"] += 1
            if row["outcome"] != "survived":
                break
        return {**row, "seconds": round(time.monotonic() - start, 1)}

    def changed(self, mutant):
        return Changed(self.root / mutant.file, mutant)

    def time_of(self, stage):
        """How long the tests of a stage take when there is nothing to notice."""
        if stage not in self.took:
            start = time.monotonic()
            outcome, by = self.run(stage, 3600)
            if outcome != "survived":
                sys.exit(f"fails without any mutant: {by}: python -m pytest {shlex.join(stage)}")
            self.took[stage] = time.monotonic() - start
        return self.took[stage]

    def run(self, stage, limit):
        """(outcome, what the first test that failed said) of a stage, as the tree is now."""
        said = self.root.parent / "said"
        arguments = ["-n", "0", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        if not any("test_cpu_cache" in word for word in stage):
            arguments += ["-p", "tests.mutation.kept"]
        print(json.dumps([[*arguments, *stage], str(said), limit]), file=self.server.stdin)
        self.server.stdin.flush()
        status = json.loads(self.server.stdout.readline())
        if status is None:
            return "late", ""
        if status == 5:
            sys.exit(f"no such tests: python -m pytest {shlex.join(stage)}")
        text = said.read_text(errors="replace")
        by = re.findall(r"^(?:FAILED|ERROR) (.*)", text, re.MULTILINE) + text.splitlines()[-1:]
        return ("killed", "".join(by[:1])[:300]) if status else ("survived", "")


class Changed:
    """A file with a mutant in it, for a while."""

    def __init__(self, file, mutant):
        self.file, self.mutant = file, mutant

    def __enter__(self):
        self.source = self.file.read_text()
        self.file.write_text(self.mutant.text(self.source))

    def __exit__(self, *_):
        self.file.write_text(self.source)


def report(rows):
    """By folder: how many, and what became of them; and the survivors."""
    for folder, names in FOLDERS.items():
        start = tuple(name.partition("*")[0] for name in names)
        outcomes = Counter(row["outcome"] for row in rows if row["mutant"].startswith(start))
        if outcomes:
            print(f"{folder:12} {outcomes.total():4}", dict(outcomes))
    survived = [row["mutant"] for row in rows if row["outcome"] == "survived"]
    print(f"{len(rows)} mutants, {len(survived)} survived:", *survived, sep="\n")


if __name__ == "__main__":
    main()
