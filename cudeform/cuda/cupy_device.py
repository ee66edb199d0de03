"""Compile, cache, launch, multiply through CuPy: the only place that talks to a GPU."""

from __future__ import annotations

import os
import threading
import warnings
from functools import cached_property
from typing import Any

import numpy as np

from cudeform.cuda.compile import Unit, flatten
from cudeform.cuda.products import Cublas
from cudeform.cuda.program import Launch, Product, Program, Programs, Starter, address
from cudeform.cuda.replay import Arguments, Replay

_IN_MEMORY = "CUPY_CACHE_IN_MEMORY"
_SHARED_BYTES = 48 << 10  # that every block may have


class CupyDevice(Starter):
    """A CUDA device through CuPy: its current stream, its memory pool, its cuBLAS."""

    def __init__(self, cupy: Any, index: int) -> None:
        self.cuda = cupy.cuda
        self.programs = Programs()
        self._cupy = cupy
        self._index = index
        self._kernels: dict[tuple[Unit, str], Any] = {}
        self._shared_bytes: dict[tuple[Unit, str], int] = {}  # that a block may have
        self._modules: dict[Unit, Any] = {}
        self._lock = threading.RLock()
        self._of_thread = threading.local()
        self._told = False  # that there is no cache

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._cupy.empty(shape, dtype)

    def to_device(self, array: np.ndarray) -> Any:
        return self._cupy.asarray(array)

    def to_host(self, array: Any) -> np.ndarray:
        return self._cupy.asnumpy(array)

    def _kernel(self, unit: Unit, kernel: str) -> Any:
        found = self._kernels.get((unit, kernel))
        if found is not None:
            return found
        with self._lock:
            if unit not in self._modules:
                self._modules[unit] = self._compile(unit)
            found = self._kernels[unit, kernel] = self._modules[unit].get_function(kernel)
        return found

    def _compile(self, unit: Unit) -> Any:
        module = self._cupy.RawModule(code=flatten(unit), options=unit.options)
        try:
            module.compile()
        except (ImportError, OSError, RuntimeError) as error:
            self._explain(error, "nvrtc", "NVRTC, which compiles the kernels at their first call")
            if not isinstance(error, OSError) or _IN_MEMORY in os.environ:
                raise
            self._compile_in_memory(module, error)
        return module

    def _compile_in_memory(self, module: Any, error: OSError) -> None:
        """Without CuPy's folder of compiled kernels, of which it has said what is wrong."""
        if not self._told:
            self._told = True
            what = "CuPy cannot keep compiled kernels, and every process compiles them"
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"cudeform: {what}; {reason}", RuntimeWarning, stacklevel=2)
        os.environ[_IN_MEMORY] = "1"  # CuPy looks at it for each module
        try:
            module.compile()
        finally:
            del os.environ[_IN_MEMORY]

    def _explain(self, error: Exception, library: str, what: str) -> None:
        """Name the command that installs a CUDA library, if its absence is what went wrong."""
        if library in str(error).lower():
            major = self._cupy.cuda.runtime.runtimeGetVersion() // 1000
            command = f"pip install 'cudeform[cuda{major}]'"
            raise RuntimeError(
                f"cudeform: CuPy cannot load {what}; install it with: {command}"
            ) from error

    @cached_property
    def cublas(self) -> Cublas:
        try:
            from cupy_backends.cuda.libs import cublas
        except (ImportError, OSError) as error:
            self._explain(error, "cublas", "cuBLAS, which multiplies the matrices")
            raise
        return Cublas(cublas, int(self.cuda.Device(self._index).compute_capability))

    def cublas_handle(self) -> int:
        """That of this thread."""
        return self._cupy.cuda.device.get_cublas_handle()

    def stream(self) -> int:
        """The current stream, in a thread in which the driver can launch."""
        if not hasattr(self._of_thread, "is_ready"):
            self.cuda.runtime.memGetInfo()  # which makes the device's context the thread's
            self._of_thread.is_ready = True
        return self.cuda.get_current_stream().ptr

    def sizes(self, step: Launch) -> tuple[int, ...]:
        """What the driver is told of a launch before its stream."""
        kernel, shared_bytes = (step.unit, step.kernel), step.shared_bytes
        found = self._kernel(*kernel)
        with self._lock:
            if shared_bytes > self._shared_bytes.get(kernel, _SHARED_BYTES):  # it has to be asked
                found.max_dynamic_shared_size_bytes = self._shared_bytes[kernel] = shared_bytes
        return found.kernel.ptr, step.grid, 1, 1, step.block, 1, 1, shared_bytes

    def prepare(self, program: Program) -> Replay:
        return Replay(self, program)

    def start(self, step: Launch | Product) -> None:
        stream = self.stream()
        addresses = [0 if array is None else address(array) for array in step.arrays]
        if isinstance(step, Launch):
            arguments = Arguments([step])
            arguments.words[: len(addresses)] = addresses
            self.cuda.driver.launchKernel(*self.sizes(step), stream, 0, arguments.extra[0])
            return
        workspace = self.cuda.alloc(self.cublas.workspace_bytes)
        with self.cublas.products(self.cublas_handle(), stream, workspace.ptr) as handle:
            self.cublas.multiply(self.cublas.arguments(step, handle, *addresses))
