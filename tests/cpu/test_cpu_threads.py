"""The pool of threads: any caller, any number of threads, after fork, with errors and settings."""

import os
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from processes import python

import cudeform
from cudeform import threads
from cudeform.cpu.conv.steps import NO_STEP, do, steps_of


@pytest.fixture(autouse=True)
def four_threads():
    before = threads.get_num_threads()
    threads.set_num_threads(4)
    yield
    threads.set_num_threads(before)


def convolve(seed, dtype=np.float32):
    """The bytes of a forward and a backward on a few images, large enough for several tiles."""
    rng = np.random.default_rng(seed)
    shapes = {"input": (2, 20, 18, 17), "offset": (2, 18, 18, 17), "weight": (9, 20, 3, 3)}
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    output = cudeform.deform_conv2d(**arrays, padding=1)
    gradients = cudeform.deform_conv2d_backward(output, **arrays, padding=1)
    return [array.tobytes() for array in (output, *gradients[:4])]


def done_by(count, work):
    """What a kernel of three steps, the first two together, is asked for, call by call."""
    asked = []
    steps = steps_of(count, ((40, work), (0, work)), ((30, work),))
    do(lambda *ranges: asked.append(ranges), steps)
    return asked


@pytest.mark.parametrize(("count", "work"), [(1, 2**30), (4, 1)], ids=["one thread", "little"])
def test_one_thread_does_all_steps_at_once(count, work):
    assert done_by(count, work) == [((0, 40), (0, 0), (0, 30))]


def test_several_threads_do_one_step_after_the_other():
    asked = done_by(4, 2**30)
    steps = [[number for number in range(3) if ranges[number] != NO_STEP] for ranges in asked]
    assert steps == sorted(steps) and {len(step) for step in steps} == {1}
    for number, count in ((0, 40), (2, 30)):
        tasks = [task for ranges in asked for task in range(*ranges[number])]
        assert sorted(tasks) == list(range(count)) and len(asked) > 2


def test_every_task_is_done_once():
    done = [0] * 1000
    threads.run(lambda i: done.__setitem__(i, done[i] + 1), len(done))
    assert done == [1] * len(done)


@pytest.mark.parametrize("count", [0, 1, 3, 16, 17, 1001])
def test_pieces_make_up_the_whole(count):
    pieces = []
    threads.share(lambda first, last: pieces.append((first, last)), count)
    assert sorted(i for first, last in pieces for i in range(first, last)) == list(range(count))
    assert all(first < last for first, last in pieces)
    if count > 1000:
        assert len(pieces) >= 4 * threads._PIECES  # so many for each thread
        lengths = [last - first for first, last in sorted(pieces)]
        assert max(lengths) <= -(-count // len(pieces)) * 2
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[-8:] == [1] * 8  # that threads end together


@pytest.mark.parametrize(
    "work, count",
    [
        (0, 1),
        (threads._SMALL - 1, 1),
        (threads._SMALL, threads._SMALL // threads._LEAST),
    ],
)
def test_a_piece_is_worth_its_beginning(work, count):
    pieces = []
    threads.share(lambda first, last: pieces.append((first, last)), 100, work)
    assert sorted(i for first, last in pieces for i in range(first, last)) == list(range(100))
    assert len(pieces) == count


@pytest.mark.parametrize("work", [1, 1e9])
def test_loops_shared_together_are_done_once_each(work):
    done = []

    def note(name, first, last):
        done.extend((name, i) for i in range(first, last))

    threads.share_all([(partial(note, "a"), 5, 0), (partial(note, "b"), 40, work)])
    assert sorted(done) == [*(("a", i) for i in range(5)), *(("b", i) for i in range(40))]


def test_tasks_run_on_as_many_threads_as_asked_for():
    together = threading.Barrier(4, timeout=60)
    threads.run(lambda i: together.wait(), 4)


def test_an_error_in_a_task_reaches_the_caller_when_all_tasks_have_ended():
    running = set()

    def task(i):
        running.add(i)
        time.sleep(0.01)
        running.discard(i)
        if i % 2:
            raise KeyError(f"task {i}")

    with pytest.raises(KeyError, match="task"):
        threads.run(task, 16)
    assert not running
    test_every_task_is_done_once()


def test_an_error_on_another_thread_reaches_the_caller():
    caller = threading.current_thread()
    together = threading.Barrier(2, timeout=60)

    def task(i):
        together.wait()
        if threading.current_thread() is not caller:
            raise KeyError("elsewhere")

    with pytest.raises(KeyError, match="elsewhere"):
        threads.run(task, 2)


@pytest.fixture
def thread_limit(monkeypatch):
    """Call it with n: only n more threads of the pool can be started, of the seven it wants."""
    threads.set_num_threads(8)
    start = threads.start_new_thread

    def set_limit(allowed):
        tickets = iter(range(allowed))

        def limited(*args):
            if next(tickets, None) is None:
                raise RuntimeError("can't start new thread")
            return start(*args)

        monkeypatch.setattr(threads, "start_new_thread", limited)

    return set_limit


@pytest.mark.parametrize("allowed", [0, 1, 2, 6])
def test_a_call_is_finished_however_few_threads_can_be_started(thread_limit, allowed):
    thread_limit(allowed)
    for _ in range(10):
        done = [0] * 32

        def task(i, done=done):
            time.sleep(0.001)
            done[i] += 1

        threads.run(task, len(done))
        assert done == [1] * len(done)


def test_an_error_reaches_the_caller_where_not_all_threads_can_be_started(thread_limit):
    thread_limit(1)
    test_an_error_on_another_thread_reaches_the_caller()


def test_without_threads_no_array_is_kept(thread_limit):
    thread_limit(0)
    array = np.zeros(3)
    known = weakref.ref(array)
    threads.run(lambda i, array=array: array.fill(i), 9)
    del array
    assert known() is None


def test_an_interrupt_waits_for_the_tasks_that_have_begun():
    """What they write belongs to the caller again when the call ends, however it ends."""
    together = threading.Barrier(2, timeout=60)
    caller = threading.get_ident()
    ended = []

    def task(i):
        together.wait()
        if threading.get_ident() != caller:
            time.sleep(0.05)  # the caller waits by now
            signal.pthread_kill(caller, signal.SIGINT)
            time.sleep(0.2)
            ended.append(i)

    # In the background of a shell without job control a process is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.run(task, 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == 1


class Interrupt:
    """A KeyboardInterrupt before one instruction of this thread, of the library or of Python's."""

    def __init__(self, number):
        self.left = number
        self.before = None

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)

    def __exit__(self, *error):
        sys.settrace(self.before)

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self.trace


@pytest.mark.parametrize("warm", [True, False])
def test_an_interrupt_at_any_time_leaves_the_pool_as_it_was(warm):
    """And no task behind that still runs. With the pool there, or to be made."""
    number, interrupted = 0, True
    while interrupted:
        number += 1
        threads.set_num_threads(3)
        threads.set_num_threads(2)
        if warm:
            threads.run(lambda i: None, 2)
        running = set()

        def task(i, running=running):
            running.add(i)
            time.sleep(0.001)
            running.discard(i)

        interrupted = False
        try:
            with Interrupt(number):
                threads.run(task, 3)
        except KeyboardInterrupt:
            interrupted = True
        assert not running, number
        finished = threading.Event()
        together = threading.Barrier(2, timeout=60)

        def again(together=together, finished=finished):
            threads.run(lambda i: together.wait(), 2)
            finished.set()

        threading.Thread(target=again, daemon=True).start()
        assert finished.wait(60), f"after an interrupt before instruction {number}"
    assert number > 100


SHUTDOWN = """
import atexit, os, threading, time
from cudeform import threads
threads.set_num_threads(4)

def check():
    done = [0] * 16
    def task(i):
        time.sleep(0.001)
        done[i] += 1
    threads.run(task, len(done))
    if done != [1] * len(done):
        os.write(1, b"unfinished")

def for_ever():
    while True:
        check()

def last():
    check()
    time.sleep(0.1)  # the others see the end too
    os.write(1, b"last")

atexit.register(last)
for _ in range(3):
    threading.Thread(target=for_ever, daemon=True).start()
time.sleep(0.05)
"""


def test_calls_are_finished_while_the_interpreter_shuts_down():
    assert python(SHUTDOWN) == "last"


def test_eight_python_threads_at_once():
    expected = [convolve(seed) for seed in range(8)]
    together = threading.Barrier(8, timeout=60)

    def caller(seed):
        together.wait()
        return [convolve(seed) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for seed, results in enumerate(pool.map(caller, range(8))):
            assert all(result == expected[seed] for result in results)


def test_callers_at_once_share_the_threads():
    names = set()

    def task(i):
        names.add(threading.current_thread().name)
        time.sleep(0.005)

    with ThreadPoolExecutor(6, "caller") as callers:
        list(callers.map(lambda i: threads.run(task, 20), range(6)))
    assert 1 <= sum(name.startswith("cudeform") for name in names) <= 3


def test_a_call_from_inside_a_task_does_not_wait_for_itself():
    expected = convolve(3)
    results = [None] * 8
    finished = threading.Event()

    def nested():
        threads.run(lambda i: results.__setitem__(i, convolve(3)), len(results))
        finished.set()

    threading.Thread(target=nested, daemon=True).start()
    assert finished.wait(60)
    assert results == [expected] * len(results)


def test_the_number_of_threads_may_change_during_a_call():
    expected = convolve(5)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for count in (1, 3, 2, 7):
                threads.set_num_threads(count)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        assert all(convolve(5) == expected for _ in range(20))
    finally:
        stop.set()
        changing.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_after_fork_has_threads_of_its_own():
    expected = convolve(4)  # the pool exists before the fork
    child = os.fork()
    if child == 0:
        together = threading.Barrier(4, timeout=20)
        try:
            threads.run(lambda i: together.wait(), 4)
            os._exit(0 if convolve(4) == expected else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert convolve(4) == expected


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "set_num_threads: expected `n` to be at least 1, got 0"),
        (-2, ValueError, "set_num_threads: expected `n` to be at least 1, got -2"),
        (1.5, TypeError, "set_num_threads: expected `n` to be an integer, got 1.5"),
        ("2", TypeError, "set_num_threads: expected `n` to be an integer, got '2'"),
    ],
)
def test_a_wrong_number_of_threads_is_named(value, error, message):
    with pytest.raises(error, match=message):
        threads.set_num_threads(value)
    assert threads.get_num_threads() == 4


ASK = "from cudeform.threads import get_num_threads as n; print('threads', n())"


def test_the_environment_says_how_many_threads():
    assert "threads 7\n" in python(ASK, CUDEFORM_NUM_THREADS="7")


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5"])
def test_a_wrong_environment_is_named(value):
    assert (
        "ValueError: expected the environment variable `CUDEFORM_NUM_THREADS` to be "
        f"an integer of at least 1, got '{value}'"
    ) in python(ASK, CUDEFORM_NUM_THREADS=value)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_default_is_the_cpus_this_process_may_use():
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert "threads 1\n" in python(one + ASK, CUDEFORM_NUM_THREADS="")
