"""A minute of the fuzzer, the same trials everywhere; by hand: python -m tests.fuzz"""

import mmap
import subprocess
import sys

import backends
import numpy as np
import pytest
from cases import operator
from checkout import ROOT
from fuzz import arguments, memory

from cudeform.registry import OPERATORS


def fuzz(*options):
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "8", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("backend, trials", [("cpu", 600), ("emulator", 250)])
def test_random_arguments_in_random_memory(backend, trials):
    backends.require(backends.BACKENDS[backend])
    shown = fuzz("--backend", backend, "--trials", str(trials), "--operator", "all")
    assert f"{trials} trials: " in shown


def test_faults_around_a_call():
    shown = fuzz("--operator", "faults")
    assert f"a_process_forks {len(OPERATORS)}" in shown


def test_every_operator_and_option_has_random_arguments():
    """`precision` aside, which the CPU has no use for."""
    assert set(arguments.OPERATORS) == {row.name for row in OPERATORS}
    for name in arguments.OPERATORS:
        cases = [
            arguments.random_case(np.random.default_rng(i), name, "float64") for i in range(40)
        ]
        seen = {option for case in cases for option in case.options}
        row = operator(name)
        assert seen == {option.name for option in row.options} - {"precision"} | {*row.static}
        given = {argument for case in cases for argument in case.arrays}
        assert given == {argument.name for argument in operator(name).arguments}


@pytest.fixture
def guarded():
    if memory.missing():
        pytest.skip(memory.missing())
    return memory.Memory()


def test_memory_is_poisoned_guarded_and_runs_out(guarded):
    with guarded.active():
        array = np.empty(5, np.float32)
        assert np.isnan(array).all() and guarded.damaged() == 0
        with guarded.failing(1), pytest.raises(MemoryError):
            [np.empty(3) for _ in range(2)]
        arrays = [np.empty(3, np.uint8) for _ in range(3)]
        (at_start,) = (each for each in arrays if each.ctypes.data % mmap.PAGESIZE == 0)
        np.lib.stride_tricks.as_strided(at_start, (4,), (1,))[3] = 0  # a place that nobody owns
        del arrays, at_start
    assert guarded.damaged() == 1


BEYOND = """
import sys; sys.path[:0] = ["tests"]
import numpy as np
from fuzz import memory
guarded = memory.Memory()
with guarded.active():
    for array in [np.empty(3, np.uint8) for _ in range(3)]:
        np.lib.stride_tricks.as_strided(array, (4,), (1,))[3]
"""


def test_a_read_beyond_an_array_ends_the_process(guarded):
    done = subprocess.run([sys.executable, "-c", BEYOND], cwd=ROOT, capture_output=True)
    assert done.returncode < 0
