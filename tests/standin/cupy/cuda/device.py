"""Devices, and the handle of cuBLAS that each thread has for each of them."""

import threading

from . import runtime

_local = threading.local()


class Device:
    def __init__(self, device=None):
        self.id = runtime.getDevice() if device is None else int(device)

    def __enter__(self):
        before = runtime.getDevice()
        runtime.setDevice(self.id)
        self._stack().append(before)
        return self

    def __exit__(self, *error):
        runtime.setDevice(self._stack().pop())

    @staticmethod
    def _stack():
        if not hasattr(_local, "stack"):
            _local.stack = []
        return _local.stack

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    @property
    def attributes(self):
        return {"L2CacheSize": 1 << 10, "MultiProcessorCount": 4}

    @property
    def compute_capability(self):
        return "80"

    @property
    def cublas_handle(self):
        from cupy_backends.cuda.libs import cublas

        if not hasattr(_local, "handles"):
            _local.handles = {}
        if self.id not in _local.handles:
            with self:
                _local.handles[self.id] = cublas.create()
        return _local.handles[self.id]


def get_cublas_handle():
    return Device().cublas_handle
