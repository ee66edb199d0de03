"""Device memory: poisoned host memory between guard bytes, known by its address."""

import weakref

import numpy as np
from emulator.device import EmulatorDevice

from .cuda import runtime

_emulator = EmulatorDevice()
_live = {}  # address -> a weak reference to the Memory there


class Memory:
    """One allocation."""

    def __init__(self, size):
        self.device_id = runtime.getDevice()
        self.size = size
        self.bytes = _emulator.empty((size,), np.uint8)
        self.ptr = self.bytes.data.ptr
        _live[self.ptr] = weakref.ref(self)

    def __del__(self):
        _live.pop(self.ptr, None)


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem = mem
        self.ptr = mem.ptr + offset
        self.device_id = mem.device_id


def at(pointer, size):
    """The bytes from an address on, which lie in one live allocation of the current device."""
    found = behind(pointer)
    return found[:size] if size <= found.size else _refuse(pointer, size)


def behind(pointer):
    """All bytes from an address on, of the live allocation of the current device that it is in."""
    for start, reference in list(_live.items()):
        memory = reference()
        if memory is not None and start <= pointer <= start + memory.size:
            if memory.device_id == runtime.getDevice():
                return memory.bytes[pointer - start :]
    return _refuse(pointer, 1)


def _refuse(pointer, size):
    raise runtime.CUDARuntimeError(
        "cudaErrorIllegalAddress", f"{size} bytes at {pointer:#x} of device {runtime.getDevice()}"
    )
