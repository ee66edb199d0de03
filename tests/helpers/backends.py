"""The three ways to run one test body: NumPy arrays, emulated CUDA arrays, CuPy arrays."""

import os
import shutil
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

__all__ = ["BACKENDS", "Cpu", "Cuda", "Emulator", "is_set", "require"]


class Cpu:
    """The Numba backend on NumPy arrays."""

    name = "cpu"

    def missing(self):
        """Why this backend cannot run here, or None."""

    def active(self, **options):
        return nullcontext()

    def to_device(self, array):
        return array

    def to_host(self, array):
        return array


class Emulator(Cpu):
    """The CUDA backend on arrays that a g++ build of its kernels computes on."""

    name = "emulator"

    def missing(self):
        return None if shutil.which("g++") else "needs g++"

    @contextmanager
    def active(self, **options):
        """`options` are those of EmulatorDevice: check, order, seed."""
        from emulator import device

        with device.install(device.EmulatorDevice(**options)):
            yield

    def to_device(self, array):
        from emulator import device

        return device.to_device(array)

    def to_host(self, array):
        from emulator import device

        return np.asarray(device.to_host(array))


class Cuda(Cpu):
    """The CUDA backend on CuPy arrays."""

    name = "cuda"

    def missing(self):
        try:
            import cupy
        except ImportError:
            return "needs CuPy"
        return None if cupy.cuda.is_available() else "needs a GPU that CuPy can use"

    def to_device(self, array):
        import cupy

        return cupy.asarray(array)

    def to_host(self, array):
        import cupy

        return cupy.asnumpy(array)


BACKENDS = {backend.name: backend for backend in (Cpu(), Emulator(), Cuda())}

# The variable that makes a backend's absence a failure instead of a skip.
_REQUIRED = {"emulator": "CI", "cuda": "CUDEFORM_REQUIRE_CUDA"}


def is_set(variable):
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").lower() not in ("", "0", "false")


def require(backend):
    """Skip the running test if the backend cannot run here, or fail it where it must."""
    why = backend.missing()
    if why is None:
        return
    variable = _REQUIRED[backend.name]
    if not is_set(variable):
        pytest.skip(f"{backend.name} backend: {why}")
    pytest.fail(f"{backend.name} backend: {why}, and {variable} is set", pytrace=False)
