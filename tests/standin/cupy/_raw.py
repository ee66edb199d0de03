"""Raw kernels: compiled and run by the emulator, launched by CuPy's rules."""

import numpy as np
from emulator.device import EmulatorDevice

from ._array import ndarray
from .cuda import runtime
from .cuda.stream import enqueue


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


class RawKernel:
    def __init__(self, code, name, options=()):
        self.code, self.name = code, name
        if name not in _emulator.library(_Source(code)).kernels:
            raise runtime.CUDARuntimeError("CUDA_ERROR_NOT_FOUND", f"named symbol {name}")

    def __call__(self, grid, block, args, *, shared_mem=0):
        for size in (grid, block):
            if not isinstance(size, tuple) or not all(isinstance(n, int) for n in size):
                raise TypeError(f"expected a tuple of int, got {size!r}")
        *arrays, params = args
        hosts = tuple(self._pointer(array) for array in arrays)
        source = _Source(self.code, params.dtype)
        params = self._value(params)
        enqueue(lambda: _emulator.launch(source, self.name, grid, block, hosts, params, shared_mem))

    def _pointer(self, array):
        if array is None:
            return None
        if not isinstance(array, ndarray):
            raise TypeError(f"{self.name}: expected an array of the device, got {type(array)}")
        if array.device.id != runtime.getDevice():
            raise runtime.CUDARuntimeError(
                "cudaErrorIllegalAddress", f"{self.name}: an array of {array.device!r}"
            )
        return array.host

    def _value(self, params):
        """A copy, as the driver makes one before the launch returns."""
        if not isinstance(params, np.ndarray):
            raise TypeError(f"{self.name}: expected a structure by value, got {type(params)}")
        if params.size != 1:
            raise TypeError(
                f"You are trying to pass a numpy.ndarray of shape {params.shape} as a kernel "
                "parameter. Only numpy.ndarrays of size one can be passed by value."
            )
        return params.copy()
