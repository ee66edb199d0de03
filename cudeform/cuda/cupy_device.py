"""Compile, cache, launch, multiply through CuPy: the only place that talks to a GPU."""

from __future__ import annotations

import os
import threading
import warnings
from functools import cached_property
from typing import Any

import numpy as np

from cudeform.arrays import dtype_name
from cudeform.cuda.compile import Unit, flatten
from cudeform.cuda.gemm import gemm_arguments

__all__ = ["CupyDevice"]

# cudaDataType_t, cublasComputeType_t, cublasMath_t and cublasOperation_t of the CUDA headers
_CUDA_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_DEFAULT_MATH_WITHOUT_REDUCED_PRECISION = 16
_DEFAULT_ALGORITHM = -1
_IN_MEMORY = "CUPY_CACHE_IN_MEMORY"
_SHARED_BYTES = 48 << 10  # that every block may have


class CupyDevice:
    """A CUDA device through CuPy: its current stream, its memory pool, its cuBLAS."""

    def __init__(self, cupy: Any, index: int) -> None:
        self.name = f"cuda:{index}"
        self._cupy = cupy
        self._index = index
        self._kernels: dict[tuple[Unit, str], Any] = {}
        self._modules: dict[Unit, Any] = {}
        self._lock = threading.Lock()
        self._told = False  # that there is no cache
        self._scalars = {
            dtype: (np.zeros((), dtype), np.ones((), dtype)) for dtype in ("float32", "float64")
        }

    @cached_property
    def capability(self) -> int:
        return int(self._cupy.cuda.Device(self._index).compute_capability)

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

    def _cublas(self) -> Any:
        try:
            from cupy_backends.cuda.libs import cublas
        except (ImportError, OSError) as error:
            self._explain(error, "cublas", "cuBLAS, which multiplies the matrices")
            raise
        return cublas

    def launch(
        self,
        unit: Unit,
        kernel: str,
        grid: int,
        block: int,
        arrays: tuple[Any, ...],
        params: np.ndarray,
        shared_bytes: int = 0,
    ) -> None:
        function = self._kernel(unit, kernel)
        if shared_bytes > _SHARED_BYTES:  # a kernel has to ask for more
            function.max_dynamic_shared_size_bytes = shared_bytes
        function((grid,), (block,), (*arrays, params), shared_mem=shared_bytes)

    def gemm(
        self, a: Any, b: Any, out: Any, *, accumulate: bool = False, precision: str = "ieee"
    ) -> None:
        g = gemm_arguments(a, b, out)
        first, second = (a, b) if g.swapped else (b, a)
        double = out.dtype == np.float64
        compute = _COMPUTE_64F if double else _COMPUTE_32F
        if precision == "tf32" and a.dtype == np.float32:
            compute = _COMPUTE_32F_FAST_TF32
        scalars = self._scalars["float64" if double else "float32"]
        one, beta = scalars[1].ctypes.data, scalars[int(accumulate)].ctypes.data
        cublas, handle = self._cublas(), self._cupy.cuda.device.get_cublas_handle()
        math_mode = cublas.getMathMode(handle)
        cublas.setMathMode(handle, _DEFAULT_MATH_WITHOUT_REDUCED_PRECISION)
        try:
            cublas.gemmStridedBatchedEx(
                handle, int(g.transpose_a), int(g.transpose_b), g.m, g.n, g.k,
                one,
                first.data.ptr, _CUDA_TYPES[dtype_name(first.dtype)], g.lda, g.stride_a,
                second.data.ptr, _CUDA_TYPES[dtype_name(second.dtype)], g.ldb, g.stride_b,
                beta,
                out.data.ptr, _CUDA_TYPES[dtype_name(out.dtype)], g.ldc, g.stride_c,
                g.batch, compute, _DEFAULT_ALGORITHM,
            )  # fmt: skip
        finally:
            cublas.setMathMode(handle, math_mode)
