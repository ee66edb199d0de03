"""The one pool of threads, and how a call shares its tasks out over it."""

from __future__ import annotations

import operator
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

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


def run(task: Callable[[int], None], count: int) -> None:
    """Call task(0), ..., task(count - 1), each once, on several threads, in order of start.

    The caller works too, so that a busy pool delays nothing and a call from inside another pool
    cannot deadlock. Returns when all tasks have ended; then the first exception is raised.
    """
    left = deque(range(count))

    def work() -> None:
        while True:
            try:
                index = left.popleft()
            except IndexError:
                return
            task(index)

    helpers = _start(work, min(get_num_threads(), count) - 1)
    try:
        work()
    finally:
        left.clear()
        started = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in started]  # waits
    for error in errors:
        if error is not None:
            raise error


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


def _start(work: Callable[[], None], helpers: int) -> list[Future]:
    global _pool
    if helpers < 1:
        return []
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(get_num_threads() - 1, 1), "cudeform")
        try:
            return [_pool.submit(work) for _ in range(helpers)]
        except RuntimeError:  # the interpreter is shutting down: the caller works alone
            return []


def _after_fork() -> None:
    # The parent's threads do not exist in the child, and another thread may have held the lock.
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
