"""The one pool of threads, and how a call shares its tasks out over it.

A key may interrupt the caller between any two instructions. So what is shared between threads is
changed by single operations of deques, dictionaries and queues, and nothing holds a lock of
Python's own, as those of `threading` and `concurrent.futures` do: it might be held for ever.
"""

from __future__ import annotations

import math
import os
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from queue import SimpleQueue

from cudeform import checks

VARIABLE = "CUDEFORM_NUM_THREADS"

_count: int | None = None  # None until the first question: the environment is read late
# In multiplications as samples are blended with: four of these take about a nanosecond.
_SMALL = 2**18  # what takes no longer than to wake a thread and wait for it
_LEAST = 2**16  # of a piece: to begin one takes microseconds
_TASKS = 4  # for each thread, where a pass can be cut into so many
_GAIN = 1.3  # see `too_few`
_PIECES = 8  # for each thread at least: enough that a slow thread holds nobody up

Loop = tuple[Callable[[int, int], None], int, float]  # the arguments of `share`


def _from_environment() -> int | None:
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(
            f"expected the environment variable `{VARIABLE}` to be an integer of at least 1, "
            f"got {value!r}"
        )
    return int(value)


def _usable_cpus() -> int:
    """The CPUs this process may use, which can be fewer than the machine has."""
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """The number of threads that an operator on the CPU uses, the caller's included.

    Returns
    -------
    int
        What `set_num_threads` was given last; else the environment variable
        ``CUDEFORM_NUM_THREADS``; else the number of CPUs that this process may use.

    Raises
    ------
    ValueError
        The environment variable holds something else than a positive integer.
    """
    global _count
    if _count is None:
        _count = _from_environment() or _usable_cpus()
    return _count


def set_num_threads(n: int) -> None:
    """Set the number of threads that an operator on the CPU uses, the caller's included.

    Results do not depend on it, to the last bit. Calls under way keep the number they began with.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        `n` is not an integer, or is less than 1.
    """
    global _count
    _count = count = checks.integer("set_num_threads", "n", n, 1)
    for other in list(_pools):
        if other != count and (pool := _pools.pop(other, None)):
            pool.close()


class _Pool:
    """Threads that call what they are given; they are started when there is something to call."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: dict[int, object] = {}  # by their number: they enter themselves

    def ask(self, help: Callable[[], None], times: int) -> None:
        """Have up to so many threads call `help`; fewer may come, and later than now."""
        for number in range(min(times, self._most)):
            if number not in self._threads:
                try:
                    start_new_thread(self._serve, (number,))
                except (RuntimeError, MemoryError):  # a limit, or the interpreter shuts down
                    return
            self._given.put(help)

    def close(self) -> None:
        """End the threads, also one that starts later. What they were given they still do."""
        self._given.put(None)

    def _serve(self, number: int) -> None:
        this = object()
        if self._threads.setdefault(number, this) is not this:
            return  # two callers started it
        threading.current_thread().name = f"cudeform_{number}"
        try:
            while (help := self._given.get()) is not None:
                help()
                del help  # or the next wait would keep its arrays
        finally:
            del self._threads[number]
        self._given.put(None)  # for the others


_pools: dict[int, _Pool] = {}  # by the number of threads that they make with the caller


class _Call:
    """The tasks of one call of `run`, for whichever threads come to do them."""

    def __init__(self, task: Callable[[int], None], count: int) -> None:
        self._task = task
        self._left = deque(range(count))
        self._came: deque[None] = deque()  # an entry for each helper
        self._went: deque[None] = deque()
        self._news: SimpleQueue[None] = SimpleQueue()
        self.errors: list[BaseException] = []

    def work(self) -> None:
        while True:
            try:
                index = self._left.popleft()
            except IndexError:
                return
            self._task(index)

    def help(self) -> None:
        """`work` on a thread of the pool; nothing where it comes too late."""
        self._came.append(None)  # before there is a task that it could have taken
        try:
            self.work()
        except BaseException as error:  # for the caller, who waits
            self.errors.append(error)
        finally:
            self._went.append(None)
            self._news.put(None)

    def stop(self) -> None:
        """Start no more tasks."""
        self._left.clear()

    def wait(self) -> None:
        """Until those that have begun have ended."""
        while len(self._went) < len(self._came):
            self._news.get()

    def end(self) -> None:
        """Raise the first error."""
        del self._task  # a helper that has not come yet may hold this call, but not the arrays
        errors, self.errors = self.errors, []
        try:
            if errors:
                raise errors[0]
        finally:
            del errors  # or the error would hold itself


def run(task: Callable[[int], None], count: int) -> None:
    """Call task(0), ..., task(count - 1), each once, on several threads, in order of start.

    The caller works too, so that a busy pool delays nothing, a call from inside another pool
    cannot deadlock, and everything is done where no thread can be started. Returns when all tasks
    have ended, whatever happens, as what they write is the caller's again; then the first
    exception is raised, an interrupt too.
    """
    call = _Call(task, count)
    helpers = min(get_num_threads(), count) - 1
    while True:
        try:
            if helpers > 0:
                asked, helpers = helpers, 0
                _pool().ask(call.help, asked)
            call.work()
            call.wait()
            break
        except BaseException as error:
            call.errors.append(error)
            call.stop()
    call.end()


def _pool() -> _Pool:
    count = get_num_threads()
    return _pools.get(count) or _pools.setdefault(count, _Pool(max(count - 1, 1)))


def wanted_tasks(work: float = math.inf, count: int | None = None) -> int:
    """How many tasks a pass of so much `work` should have, none of which is small: one for one
    thread, several for each of more. `count` threads, or as many as there are.
    """
    count = count or get_num_threads()
    return 1 if count == 1 else int(max(min(_TASKS * count, work // _SMALL), 1))


def too_few(tasks: int) -> bool:
    """Whether to cut tasks further where that takes more work: what several then do of it goes
    through memory, and is partly done several times, so that threads together gain about the square
    root of their number. Tasks of their own gain as many times as they run side by side.
    """
    count = get_num_threads()
    return count > 1 and tasks / -(-tasks // count) < _GAIN * math.sqrt(count)


def share(task: Callable[[int, int], None], count: int, work: float = math.inf) -> None:
    """Call task(first, last) on several threads, for pieces that make up range(count).

    The caller does a `work` of less than `_SMALL` multiplications alone.
    """
    if count == 1 or takes_one(work) or get_num_threads() == 1:
        task(0, count)
        return
    ends = _ends(count, get_num_threads(), int(count * _LEAST // work))
    run(lambda i: task(ends[i], ends[i + 1]), len(ends) - 1)


def share_all(loops: list[Loop]) -> None:
    """`share` with the arguments of several calls, of which none needs what another does: so the
    other threads are woken once.
    """
    total: float = 0
    for _, _, work in loops:
        total += work
    if total < _SMALL or (threads := get_num_threads()) == 1:
        for task, count, _ in loops:
            task(0, count)
        return
    pieces = []
    for task, count, work in loops:
        ends = _ends(count, threads, int(count * _LEAST // max(work, 1)))
        pieces += [partial(task, *piece) for piece in pairwise(ends)]
    run(lambda i: pieces[i](), len(pieces))


def takes_one(work: float) -> bool:
    """Whether so many multiplications are done by the time that another thread has woken up."""
    return work < _SMALL


def _ends(count: int, threads: int, least: int) -> list[int]:
    """Where pieces of range(count) end: the last are ever smaller, so that threads end together,
    but of `least` at the least.
    """
    ends, most = [0], -(-count // (_PIECES * threads))
    while (left := count - ends[-1]) > 0:
        length = max(min(left // (2 * threads), most), least, 1)
        ends.append(min(ends[-1] + length, count))
    return ends


def _after_fork() -> None:
    global _pools
    _pools = {}  # the parent's threads do not exist in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
