"""The one pool of threads, and how a call shares its tasks out over it."""

from __future__ import annotations

import operator
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cudeform import checks

__all__ = ["get_num_threads", "run", "set_num_threads", "share"]

VARIABLE = "CUDEFORM_NUM_THREADS"

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_count: int | None = None  # None until the first question: the environment is read late


_SMALL = 2**16
_PIECES = 8  # for each thread: enough that a slow thread holds nobody up


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
    global _count, _pool
    try:
        count = operator.index(n)
    except TypeError:
        checks.fail("set_num_threads", "n", "to be an integer", repr(n), error=TypeError)
    if count < 1:
        checks.fail("set_num_threads", "n", "to be at least 1", repr(n))
    with _lock:
        old, _pool, _count = _pool, None, count
    if old is not None:
        old.shutdown(wait=False)  # what it was given, it still does


class _Call:
    """The tasks of one call of `run`, for whichever threads come to do them."""

    def __init__(self, task: Callable[[int], None], count: int) -> None:
        self._task = task
        self._left = deque(range(count))
        self._helpers = 0  # at work now
        self._changed = threading.Condition()
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
        with self._changed:
            if not self._left:
                return
            self._helpers += 1
        try:
            self.work()
        except BaseException as error:  # for the caller, who waits
            self.errors.append(error)
        finally:
            with self._changed:
                self._helpers -= 1
                self._changed.notify()

    def end(self) -> None:
        """Start no more tasks, wait for those begun, raise the first error.

        Arrays that a task writes must not be given back before, whatever happens: an interrupt
        is raised afterwards.
        """
        while True:
            try:
                self._left.clear()
                with self._changed:
                    self._changed.wait_for(lambda: not self._helpers)
                break
            except BaseException as interrupt:
                self.errors.append(interrupt)
        del self._task  # a pool without threads may hold this call, but not the arrays
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
    have ended; then the first exception is raised.
    """
    call = _Call(task, count)
    try:
        _start(call.help, min(get_num_threads(), count) - 1)
        call.work()
    except BaseException as error:
        call.errors.append(error)
    call.end()


def share(task: Callable[[int, int], None], count: int, work: float = _SMALL) -> None:
    """Call task(first, last) on several threads, for pieces that make up range(count).

    The caller does a `work` of less than `_SMALL` multiplications alone: waking a thread takes
    longer.
    """
    if work < _SMALL:
        task(0, count)
        return
    pieces = min(count, _PIECES * get_num_threads()) if get_num_threads() > 1 else min(count, 1)
    run(lambda i: task(count * i // pieces, count * (i + 1) // pieces), pieces)


def _start(help: Callable[[], None], helpers: int) -> None:
    """Ask up to this many threads of the pool for help; fewer may come, and later than now.

    Futures would not tell: the executor may queue what it then cannot start a thread for, raise,
    and still do it when another thread is free.
    """
    global _pool
    if helpers < 1:
        return
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(get_num_threads() - 1, 1), "cudeform")
        for i in range(helpers):
            try:
                _pool.submit(help)
            except (RuntimeError, MemoryError):  # a limit, or the interpreter is shutting down
                if i == 0:
                    _pool = None  # nobody reads its queue, which would grow with every call
                return


def _after_fork() -> None:
    # The parent's threads do not exist in the child, and another thread may have held the lock.
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
