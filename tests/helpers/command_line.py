"""Programs of ours in an empty folder, as a user starts them."""

import os
import subprocess
import sys

from checkout import ROOT

__all__ = ["broken_module", "run"]


def run(folder, *arguments, program=("-m", "cudeform"), path=()):
    """A Python program in an empty folder, with no GPU in sight; `path` comes first in imports."""
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", COLUMNS="120")
    search = [*map(str, path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(search)
    return subprocess.run(
        [sys.executable, *map(str, program), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def broken_module(folder, name):
    """A module that cannot be imported, as if it were not installed."""
    (folder / f"{name}.py").write_text("raise ImportError('No module named ' + repr(__name__))\n")
