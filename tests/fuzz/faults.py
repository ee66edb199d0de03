"""What goes wrong around a call: memory, threads, signals, forks. Wrong answers must not.

Each scenario takes a generator of random numbers and a call (of forward and backward on arrays of
its own), and raises AssertionError. The call must either succeed with the right bytes or raise,
leave its arguments alone, and give the right bytes the next time.
"""

import os
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from unittest import mock

import numpy as np
from cases import DTYPES, Problem, operator
from children import ended

from cudeform import threads
from cudeform.threads import set_num_threads

from .arguments import NEVER_CAST, OPERATORS, random_case

__all__ = ["SCENARIOS", "run_all"]


class Call:
    """Forward and backward of an operator on fixed arguments, and their right bytes."""

    def __init__(self, rng, name, dtype):
        wide = {} if dtype == "float64" else NEVER_CAST
        with np.errstate(over="ignore"):
            self.problem = Problem(operator(name), random_case(rng, name, dtype), dtype, **wide)
        self.before = self._arguments()
        self.right = self()

    def _arguments(self):
        given = {**self.problem.case.arrays, "grad_output": self.problem.grad_output}
        return {name: array.tobytes() for name, array in given.items()}

    def __call__(self):
        output = self.problem.row.call(self.problem.case)
        gradients = self.problem.row.call_backward(self.problem.grad_output, self.problem.case)
        return [None if array is None else array.tobytes() for array in (output, *gradients)]

    def survived(self):
        assert self._arguments() == self.before, "an argument was written to"
        assert self() == self.right, "the next call gives other bytes"


def memory_runs_out(rng, call, guarded):
    """At every allocation in turn, as long as there are any."""
    if guarded is None:
        return
    if call.problem.grad_output.dtype.name == "bfloat16":
        return  # NumPy crashes when it indexes an array of such a dtype by an array
    for after in range(200):
        with guarded.active():
            try:
                with guarded.failing(after):
                    found = call()
            except MemoryError:
                continue
        assert found == call.right, "other bytes after an allocation failed"
        break
    call.survived()


def threads_cannot_start(rng, call, guarded):
    """The first few start, then no more: of a new pool, in the midst of a call."""
    for allowed in range(3):
        set_num_threads(6)
        start, left = threads.start_new_thread, [allowed]

        def limited(*args, start=start, left=left):
            if left[0] == 0:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            return start(*args)

        with mock.patch.object(threads, "start_new_thread", limited):
            try:
                assert call() == call.right, f"other bytes with {allowed} of 5 threads"
            except RuntimeError as error:
                assert "thread" in str(error)
        call.survived()


@contextmanager
def interrupted(after):
    """KeyboardInterrupt in the main thread, after so many seconds if it is still inside."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def a_key_interrupts(rng, call, guarded):
    """At any time during calls."""
    for _ in range(10):
        try:
            with interrupted(float(rng.uniform(1e-5, 5e-3))):
                for _ in range(20):
                    assert call() == call.right, "other bytes before an interruption"
        except KeyboardInterrupt:
            pass
        call.survived()


def another_thread_calls_too(rng, call, guarded):
    wrong = []

    def work():
        for _ in range(5):
            if call() != call.right:
                wrong.append(1)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong, "other bytes in a thread"


def a_process_forks(rng, call, guarded):
    """While a thread is in a call: the child computes what the parent does, and ends."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            call()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            child = os.fork()
            if child == 0:
                try:
                    os._exit(0 if call() == call.right else 1)
                finally:
                    os._exit(2)
            why = "the child of a fork gave other bytes, raised, or hung for a minute"
            assert ended(child, 60) == 0, why
    finally:
        stop.set()
        thread.join()
    call.survived()


SCENARIOS = (
    memory_runs_out,
    threads_cannot_start,
    a_key_interrupts,
    another_thread_calls_too,
    a_process_forks,
)


def run_all(seed, guarded, rounds=1):
    """Every scenario with some operators; how often each was tried."""
    tried = Counter()
    for number, scenario in enumerate(SCENARIOS * rounds):
        for place, name in enumerate(OPERATORS):
            rng = np.random.default_rng([seed, number, place])
            set_num_threads(int(rng.integers(1, 5)))
            call = Call(rng, name, DTYPES[rng.integers(len(DTYPES))])
            try:
                scenario(rng, call, guarded)
            except AssertionError as error:
                raise AssertionError(f"{scenario.__name__}, {name}: {error}") from error
            tried[scenario.__name__] += 1
    return tried
