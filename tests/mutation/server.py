"""Runs pytest in forks of itself: what tests import besides the package is imported once.

Of each line of standard input, [arguments of pytest, file for what it says, seconds it may take],
the answer is a line with its exit status, or null where it took longer.
"""

import importlib
import json
import os
import sys
from contextlib import suppress

import pytest

from tests.helpers.children import ended

BESIDES = ("numpy", "numba", "hypothesis", "hypothesis.strategies", "ml_dtypes", "scipy.special")
BESIDES += ("torch", "torch._dynamo", "jax", "jax.numpy", "jax.test_util")


def main():
    for name in BESIDES:
        with suppress(ImportError):
            importlib.import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] == "cudeform"]
    for line in sys.stdin:
        arguments, file, limit = json.loads(line)
        child = os.fork()
        if child == 0:
            run(arguments, file)
        print(json.dumps(ended(child, limit, os.killpg)), flush=True)


def run(arguments, file):
    """In the child, which does not return."""
    status = 3
    try:
        os.setsid()
        said = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = int(pytest.main(arguments))
        sys.stdout.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
