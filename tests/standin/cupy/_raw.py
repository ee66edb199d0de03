"""Raw kernels: compiled and run by the emulator, launched by the driver's rules."""

from functools import cached_property

import numpy as np
from emulator.device import EmulatorDevice

from . import _memory
from .cuda import driver, runtime


class _Source:
    """What the emulator asks of a translation unit."""

    file, defines = "RawModule", ()

    def __init__(self, code, params=None):
        self.code, self.params = code, params


_emulator = EmulatorDevice(flatten=lambda source: source.code)


class RawModule:
    def __init__(self, *, code=None, path=None, options=(), backend="nvrtc"):
        if not isinstance(code, str) or path is not None:
            raise TypeError("expected `code`, a str")
        if not isinstance(options, tuple) or not all(isinstance(o, str) for o in options):
            raise TypeError("expected `options`, a tuple of str")
        self.code, self.options = code, options

    def compile(self, log_stream=None):
        _emulator.library(_Source(self.code))

    def get_function(self, name):
        return RawKernel(self.code, name, self.options)


class Function:
    def __init__(self, ptr):
        self.ptr = ptr


class RawKernel:
    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, code, name, options=()):
        self.code, self.name = code, name
        library = _emulator.library(_Source(code))
        if name not in library.kernels:
            raise runtime.CUDARuntimeError("CUDA_ERROR_NOT_FOUND", f"named symbol {name}")
        self._signature = library.signature(name)

    @cached_property
    def kernel(self):
        return Function(driver.enter(self._started))

    def _started(self, grid, block, arguments, shared_bytes):
        """What the stream has to do for a launch with these arguments, as bytes."""
        *pointers, params = self._signature
        size = 8 * len(pointers) + params.bytes
        if len(arguments) != size:
            why = f"{self.name}: {len(arguments)} bytes of arguments, the kernel takes {size}"
            raise runtime.CUDARuntimeError("CUDA_ERROR_INVALID_VALUE", why)
        if shared_bytes > self.max_dynamic_shared_size_bytes:
            raise runtime.CUDARuntimeError("CUDA_ERROR_INVALID_VALUE", "too much shared memory")
        places = np.frombuffer(arguments, np.uint64, len(pointers)).tolist()
        arrays = tuple(map(self._array, pointers, places))
        dtype = np.dtype([("bytes", f"V{params.bytes}")])
        values = np.frombuffer(arguments, dtype, offset=8 * len(pointers))
        source = _Source(self.code, dtype)
        launch = source, self.name, grid, block, arrays, values, shared_bytes
        return lambda: _emulator.launch(*launch)

    def _array(self, parameter, place):
        """All of the allocation from an address on, as elements of what the kernel expects."""
        if not place:
            return None
        memory = _memory.behind(place)
        kinds = {b"f": f"f{parameter.bytes}", b"i": f"i{parameter.bytes}"}
        dtype = np.dtype(kinds.get(parameter.kind, "u1") if parameter.bytes else "u1")
        return memory[: memory.size // dtype.itemsize * dtype.itemsize].view(dtype)
