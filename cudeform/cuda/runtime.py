"""Flatten, compile, cache, launch: the only place that talks to a GPU.

The host code of the operators sees a `Device`: CuPy's is here, the tests have another that runs
the same kernels on the CPU.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cudeform.arrays import dtype_name

__all__ = [
    "SCALARS",
    "CupyDevice",
    "Device",
    "Gemm",
    "Unit",
    "address",
    "device_of",
    "flatten",
    "gemm_arguments",
    "pack",
    "register",
]

SCALARS = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}


@dataclass(frozen=True, eq=False)
class Unit:
    """One translation unit: a file of ``kernels/``, its defines, and the layout of its Params.

    Compared by identity, which is fast: make each once.
    """

    file: str
    defines: tuple[tuple[str, str], ...]
    params: np.dtype


def _kernels() -> Any:
    """The folder of kernel sources: inside the package when installed, beside it in a checkout."""
    packaged = files("cudeform") / "kernels"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "kernels"


def _inline(name: str, seen: set[str]) -> Iterator[str]:
    """The lines of a file with its includes in their places, each file once."""
    seen.add(name)
    yield f'#line 1 "{name}"'
    for number, line in enumerate((_kernels() / name).read_text().splitlines(), 1):
        include = re.fullmatch(r'\s*#include "(.+)"\s*', line)
        if include:
            if include[1] not in seen:
                yield from _inline(include[1], seen)
            yield f'#line {number + 1} "{name}"'
        elif line.strip() != "#pragma once":
            yield line
        else:
            yield ""


@lru_cache(maxsize=512)
def flatten(unit: Unit) -> str:
    """The whole text of a unit for the compiler.

    The headers are part of it, so that a cache keyed by the text never serves a stale binary,
    and the compiler checks that its Params is the dtype the host fills in.
    """
    defines = [f"#define {name} {value}" for name, value in unit.defines]
    message = '"differs from the dtype of the host"'
    asserts = [f"static_assert(sizeof(Params) == {unit.params.itemsize}, {message});"]
    for name, (_, offset, *_) in unit.params.fields.items():
        asserts.append(f"static_assert(OFFSET_OF(Params, {name}) == {offset}, {message});")
    return "\n".join([*defines, *_inline(unit.file, set()), *asserts, ""])


@lru_cache(maxsize=512)
def _format(params: np.dtype) -> struct.Struct:
    codes = {"i4": "i", "i8": "q", "f4": "f", "f8": "d"}
    return struct.Struct("".join(codes[params[name].str[1:]] for name in params.names) + "0q")


def pack(params: np.dtype, values: dict[str, float]) -> np.ndarray:
    """A Params with these values: an array of one, which a launch passes by value."""
    packed = _format(params).pack(*[values[name] for name in params.names])
    return np.frombuffer(packed, params)


class Device(Protocol):
    """What the host code of an operator may ask of a GPU."""

    name: str

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array with undefined contents."""

    def to_device(self, array: np.ndarray) -> Any:
        """A copy of a NumPy array."""

    def to_host(self, array: Any) -> np.ndarray:
        """A copy as a NumPy array; the one call that waits for what was started before."""

    def launch(
        self,
        unit: Unit,
        kernel: str,
        grid: int,
        block: int,
        arrays: tuple[Any, ...],
        params: np.ndarray,
    ) -> None:
        """Start a kernel: contiguous arrays or None first, its Params last."""

    def gemm(
        self, a: Any, b: Any, out: Any, *, accumulate: bool = False, precision: str = "ieee"
    ) -> None:
        """out = a @ b, or out += a @ b, on (batches of) strided matrices, summed in `sum_dtype`."""


class Gemm(NamedTuple):
    """A matrix product in cuBLAS's terms: column-major, its first operand is our second."""

    swapped: bool  # out is transposed, so the operands change places
    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int
    stride_a: int
    stride_b: int
    stride_c: int
    batch: int


def _leading(matrix: Any) -> tuple[bool, int]:
    """Whether a matrix is stored transposed, and the elements from one stored row to the next."""
    rows, columns = matrix.shape[-2:]
    down, across = (stride // matrix.itemsize for stride in matrix.strides[-2:])
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return False, down if rows > 1 else max(columns, 1)
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return True, across if columns > 1 else max(rows, 1)
    raise ValueError(f"no matrix for cuBLAS: shape {matrix.shape}, strides {matrix.strides}")


def gemm_arguments(a: Any, b: Any, out: Any) -> Gemm:
    """cuBLAS arguments for out = a @ b: matrices, or batches (of which one of one is repeated)."""
    swapped, ldc = _leading(out)
    if swapped:
        a, b, out = b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2)
    transpose_a, lda = _leading(b)
    transpose_b, ldb = _leading(a)
    m, n, k = out.shape[-1], out.shape[-2], a.shape[-1]
    sizes = (m, n, k, lda, ldb, ldc)
    if out.ndim == 2:
        return Gemm(swapped, transpose_a, transpose_b, *sizes, 0, 0, 0, 1)
    steps = [x.strides[0] // x.itemsize if x.shape[0] > 1 else 0 for x in (b, a, out)]
    return Gemm(swapped, transpose_a, transpose_b, *sizes, *steps, out.shape[0])


# cudaDataType_t, cublasComputeType_t, cublasMath_t and cublasOperation_t of the CUDA headers
_CUDA_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_DEFAULT_MATH_WITHOUT_REDUCED_PRECISION = 16
_DEFAULT_ALGORITHM = -1


class CupyDevice:
    """A CUDA device through CuPy: its current stream, its memory pool, its cuBLAS."""

    def __init__(self, cupy: Any, index: int) -> None:
        self.name = f"cuda:{index}"
        self._cupy = cupy
        self._kernels: dict[tuple[Unit, str], Any] = {}
        self._modules: dict[Unit, Any] = {}
        self._lock = threading.Lock()
        self._scalars = {
            dtype: (np.zeros((), dtype), np.ones((), dtype)) for dtype in ("float32", "float64")
        }

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
        module = self._cupy.RawModule(code=flatten(unit), options=("-std=c++17",))
        try:
            module.compile()
        except (ImportError, OSError, RuntimeError) as error:
            self._explain(error, "nvrtc", "NVRTC, which compiles the kernels at their first call")
            raise
        return module

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
    ) -> None:
        self._kernel(unit, kernel)((grid,), (block,), (*arrays, params))

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


_registered: dict[type, Callable[[], Device]] = {}
_cupy_devices: dict[int, CupyDevice] = {}


def register(array_type: type, device: Callable[[], Device] | None) -> None:
    """Say which device computes on arrays of exactly this type; None forgets the type."""
    if device is None:
        _registered.pop(array_type, None)
    else:
        _registered[array_type] = device


@contextmanager
def device_of(array: Any) -> Iterator[Device]:
    """The array's device, made current for the time of a call."""
    if type(array) in _registered:
        yield _registered[type(array)]()
        return
    import cupy

    with array.device:
        index = array.device.id
        if index not in _cupy_devices:
            _cupy_devices.setdefault(index, CupyDevice(cupy, index))
        yield _cupy_devices[index]


def address(array: Any) -> int:
    """Where an array's first element is in its device's memory."""
    return array.data.ptr
