"""Children of a fork."""

import os
import signal
import time

__all__ = ["ended"]


def ended(child, seconds, kill=os.kill):
    """The exit status of a child process; None where it took longer, and was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
