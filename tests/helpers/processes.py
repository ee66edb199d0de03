"""Python in another process, with the package under test."""

import os
import subprocess
import sys
from pathlib import Path

import cudeform

__all__ = ["python"]


def python(code, **environment):
    """Run code in a new process; what it prints, errors included."""
    root = str(Path(cudeform.__file__).parents[1])
    environment = {"PYTHONPATH": root, **environment}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=environment["PYTHONPATH"],  # Python looks for the package there first
        capture_output=True,
        text=True,
        timeout=300,
    )
    return run.stdout + run.stderr
