"""Streams, events and graphs: work waits in its stream's queue until someone waits for it.

So whatever is read too early, or from another stream, is still the poison of a new allocation.
"""

import threading
import time
from collections import deque

from . import runtime

_lock = threading.RLock()
_queues = {}  # by (device, pointer of the stream)
_local = threading.local()


class Queue:
    """The work of one stream that has not run yet."""

    def __init__(self, blocking):
        self.blocking = blocking  # whether it and the default stream wait for each other
        self.work = deque()
        self.captured = None

    def run(self):
        if self.captured is not None:
            raise runtime.CUDARuntimeError("cudaErrorStreamCaptureUnsupported", "wait")
        with _lock:
            while self.work:
                self.work.popleft()()


def _queue(device, pointer, blocking=True):
    with _lock:
        return _queues.setdefault((device, pointer), Queue(blocking))


def enqueue(work):
    """Do it on the current device after all else on its current stream, and not before."""
    device, stream = runtime.getDevice(), get_current_stream()
    queue = _queue(device, stream.ptr)
    if queue.captured is not None:
        queue.captured.append(work)
        return
    for (where, pointer), other in list(_queues.items()):
        default = 0 in (pointer, stream.ptr)  # one of the two is the legacy default stream
        if where == device and other is not queue and default and other.blocking and queue.blocking:
            other.run()
    with _lock:
        queue.work.append(work)


def check_current(stream):
    """What is given a stream by its pointer is given the current one."""
    if stream != get_current_stream().ptr:
        raise runtime.CUDARuntimeError("cudaErrorInvalidResourceHandle", f"stream {stream:#x}")


def synchronize_current():
    """Wait for the current stream of the current device, as every copy to the host does."""
    _queue(runtime.getDevice(), get_current_stream().ptr).run()


def capturing():
    return _queue(runtime.getDevice(), get_current_stream().ptr).captured is not None


def _stack():
    """The streams of this thread that ``with`` made current: (device, stream)."""
    if not hasattr(_local, "stack"):
        _local.stack = []
    return _local.stack


def get_current_stream(device_id=-1):
    device = runtime.getDevice() if device_id == -1 else device_id
    here = [stream for where, stream in _stack() if where == device]
    return here[-1] if here else Stream.null


class _BaseStream:
    def __init__(self, ptr, device_id):
        self.ptr = ptr
        self.device_id = device_id

    def __enter__(self):
        current = runtime.getDevice()
        if self.device_id not in (-1, current):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with "
                f"the current device ({current})"
            )
        _stack().append((current, self))
        return self

    def __exit__(self, *error):
        _stack().pop()

    def _own(self):
        return _queue(runtime.getDevice() if self.device_id == -1 else self.device_id, self.ptr)

    def synchronize(self):
        self._own().run()

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        queue = self._own()
        if queue.captured is not None:
            raise runtime.CUDARuntimeError("cudaErrorIllegalState", "already capturing")
        queue.captured = []

    def end_capture(self):
        queue = self._own()
        if queue.captured is None:
            raise runtime.CUDARuntimeError("cudaErrorIllegalState", "not capturing")
        captured, queue.captured = queue.captured, None
        return Graph(captured)

    def is_capturing(self):
        return self._own().captured is not None


class Stream(_BaseStream):
    null = None
    _last = 0

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if null:
            super().__init__(0, -1)
            return
        with _lock:
            Stream._last += 1
            super().__init__(0x5000 + Stream._last, runtime.getDevice())
        _queue(self.device_id, self.ptr, not non_blocking)


Stream.null = Stream(null=True)


class ExternalStream(_BaseStream):
    def __init__(self, ptr, device_id=-1):
        super().__init__(ptr, device_id)


class Event:
    """A place in a stream's work; its time is when that place was reached."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._stream = self._time = None

    def record(self, stream=None):
        self._stream = get_current_stream() if stream is None else stream
        self._time = None
        with self._stream:
            enqueue(self._reach)

    def _reach(self):
        self._time = time.perf_counter()

    def synchronize(self):
        if self._stream is not None:
            self._stream.synchronize()


def get_elapsed_time(start_event, end_event):
    if None in (start_event._time, end_event._time):
        raise runtime.CUDARuntimeError("cudaErrorNotReady", "an event that is not reached yet")
    return (end_event._time - start_event._time) * 1e3


class Graph:
    """Captured work, to be done again on the same memory."""

    def __init__(self, work):
        self._work = work

    def launch(self, stream=None):
        with get_current_stream() if stream is None else stream:
            for work in self._work:
                enqueue(work)
