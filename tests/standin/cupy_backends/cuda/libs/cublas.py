"""cuBLAS on host memory: matrices are column-major, operands are addresses, and it checks both."""

import ctypes
import functools
import operator
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
from cupy import _memory
from cupy.cuda import runtime
from cupy.cuda.stream import capturing, enqueue, get_current_stream
from emulator import build
from emulator.device import to_tf32

# cudaDataType_t, and cublasComputeType_t with the types of (A and B, C) that it takes
_FLOAT16, _BFLOAT16, _FLOAT32, _FLOAT64 = 2, 14, 0, 1
_DTYPES = {
    _FLOAT16: np.dtype(np.float16),
    _BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    _FLOAT32: np.dtype(np.float32),
    _FLOAT64: np.dtype(np.float64),
}
_COMPUTE_32F, _COMPUTE_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_TYPES = {
    _COMPUTE_32F: {
        (_FLOAT32, _FLOAT32),
        (_FLOAT16, _FLOAT16),
        (_FLOAT16, _FLOAT32),
        (_BFLOAT16, _BFLOAT16),
        (_BFLOAT16, _FLOAT32),
    },
    _COMPUTE_FAST_TF32: {(_FLOAT32, _FLOAT32)},
    _COMPUTE_64F: {(_FLOAT64, _FLOAT64)},
}
_DEFAULT_ALGORITHM = -1
_FULL_PRECISION_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
_MODES = {mode | flag for mode in (0, 1, 2, 3) for flag in (0, _FULL_PRECISION_SUMS)}

_ON_HOST, _ON_DEVICE = 0, 1  # where the factors of a product are

_errors = []  # that functions of the library have told of by a status
_handles = {}  # number -> _Handle
calls = []  # (compute type, math mode) of each product


class CUBLASError(RuntimeError):
    def __init__(self, status, why):
        super().__init__(f"{status}: {why}")
        self.status = status


def _invalid(why):
    raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE", why)


def create():
    handle = 0x1000 + len(_handles)
    _handles[handle] = SimpleNamespace(
        device=runtime.getDevice(), mode=0, pointers=_ON_HOST, stream=0, workspace=None
    )
    return handle


def of(number):
    """What there is of a handle."""
    if number not in _handles:
        raise CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED", f"handle {number}")
    return _handles[number]


def getMathMode(handle):
    return of(handle).mode


def setMathMode(handle, mode):
    if mode not in _MODES:
        _invalid(f"math mode {mode}")
    of(handle).mode = mode


def getPointerMode(handle):
    return of(handle).pointers


def setPointerMode(handle, mode):
    if mode not in (_ON_HOST, _ON_DEVICE):
        _invalid(f"pointer mode {mode}")
    of(handle).pointers = mode


def check_status(status):
    if status:
        raise _errors.pop()


def _set_stream(handle, stream):
    of(handle).stream, of(handle).workspace = stream or 0, None


def _set_workspace(handle, pointer, size):
    if pointer % 256:
        _invalid(f"a workspace at {pointer:#x}")
    of(handle).workspace = _memory.at(pointer, size)


def _stored(name, pointer, dtype, rows, columns, leading, stride, batch):
    """The matrices at an address, (batch, rows, columns)."""
    if leading < max(1, rows):
        _invalid(f"ld{name} = {leading} for {rows} rows")
    if pointer % dtype.itemsize:
        _invalid(f"{name} is not aligned")
    if 0 in (rows, columns, batch):
        return np.empty((batch, rows, columns), dtype)
    last = (batch - 1) * stride + (columns - 1) * leading + rows - 1
    memory = _memory.at(pointer, (last + 1) * dtype.itemsize).view(dtype)
    strides = [n * dtype.itemsize for n in (stride, 1, leading)]
    return np.lib.stride_tricks.as_strided(memory, (batch, rows, columns), strides)


def _operand(name, transposed, rows, columns, *where):
    """op(A) of the call, (batch, rows, columns)."""
    if transposed not in (0, 1):
        _invalid(f"trans{name} = {transposed}")
    if transposed:
        return _stored(name, *where[:2], columns, rows, *where[2:]).swapaxes(1, 2)
    return _stored(name, *where[:2], rows, columns, *where[2:])


def _gemm_strided_batched_ex(
    handle, transa, transb, m, n, k,
    alpha,
    A, Atype, lda, strideA,
    B, Btype, ldb, strideB,
    beta,
    C, Ctype, ldc, strideC,
    batchCount, computeType, algo,
):  # fmt: skip
    """C = alpha op(A) op(B) + beta C, all column-major."""
    for number in (transa, transb, m, n, k, lda, ldb, ldc, batchCount, computeType, algo):
        if not -(2**31) <= operator.index(number) < 2**31:
            raise OverflowError("value too large to convert to int")
    has = of(handle)
    if has.stream != get_current_stream().ptr:
        raise CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED", f"on stream {has.stream:#x}")
    if has.workspace is None and capturing():
        raise CUBLASError("CUBLAS_STATUS_ALLOC_FAILED", "memory while a stream is captured")
    if has.pointers != _ON_HOST:
        raise CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED", "factors of the host on the device")
    if has.device != runtime.getDevice():
        raise CUBLASError("CUBLAS_STATUS_ARCH_MISMATCH", "a handle of another device")
    if min(m, n, k, batchCount) < 0:
        _invalid(f"m, n, k, batch = {m}, {n}, {k}, {batchCount}")
    if Atype != Btype or (Atype, Ctype) not in _TYPES.get(computeType, ()):
        why = f"compute type {computeType} of {Atype}, {Btype} -> {Ctype}"
        raise CUBLASError("CUBLAS_STATUS_NOT_SUPPORTED", why)
    if algo != _DEFAULT_ALGORITHM:
        raise CUBLASError("CUBLAS_STATUS_NOT_SUPPORTED", f"algorithm {algo}")
    if batchCount > 1 and abs(strideC) < ldc * (n - 1) + m and abs(strideC) < m:
        _invalid("the matrices of C overlap")
    dtype = _DTYPES[Atype]
    a = _operand("a", transa, m, k, A, dtype, lda, strideA, batchCount)
    b = _operand("b", transb, k, n, B, dtype, ldb, strideB, batchCount)
    c = _stored("c", C, _DTYPES[Ctype], m, n, ldc, strideC, batchCount)
    scalar = ctypes.c_double if computeType == _COMPUTE_64F else ctypes.c_float
    factors = [scalar.from_address(pointer).value for pointer in (alpha, beta)]
    calls.append((computeType, has.mode))
    reduced = dtype.itemsize == 2 and not has.mode & _FULL_PRECISION_SUMS
    workspace = has.workspace
    enqueue(lambda: _multiply(a, b, c, *factors, computeType, reduced, workspace))


def _multiply(a, b, c, alpha, beta, compute, reduced, workspace):
    if workspace is not None:
        workspace.fill(0xFF)  # whatever lies there
    sums = np.float64 if compute == _COMPUTE_64F else np.float32
    stored = a.dtype
    left, right = (x.astype(sums) for x in (a, b))
    if compute == _COMPUTE_FAST_TF32:
        left, right = to_tf32(left), to_tf32(right)
    if reduced:  # each term on its own, to make the most of it
        terms = (left[:, :, i : i + 1] @ right[:, i : i + 1] for i in range(left.shape[2]))
        total = np.zeros(c.shape, sums)
        for term in terms:
            total = (total + term).astype(stored).astype(sums)
    else:
        total = left @ right
    total = sums(alpha) * total
    if beta:  # else C is not read, whatever it holds
        total += sums(beta) * c.astype(sums)
    c[...] = total.astype(c.dtype)


def _exported(function):
    """A function as C calls it: with a status in the place of an exception."""

    @functools.wraps(function)
    def call(*arguments):
        try:
            function(*arguments)
        except Exception as error:
            _errors.append(error)
            return 1
        return 0

    return call


def _library():
    """The path of the library, in which the functions are those of this module."""
    path = build.shared_library(Path(_HERE).with_name("exports.cpp"))
    library = ctypes.CDLL(str(path))
    for name, function, types in _EXPORTS:
        kept = ctypes.CFUNCTYPE(ctypes.c_int, *types)(_exported(function))
        ctypes.c_void_p.in_dll(library, name).value = ctypes.cast(kept, ctypes.c_void_p).value
        _kept.append(kept)
    return str(path)


_HERE, _kept = __file__, []
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
_ARRAY = (_P, _I, _I, _L)
_EXPORTS = (
    ("gemm", _gemm_strided_batched_ex,
     (_P, *(_I,) * 5, _P, *_ARRAY, *_ARRAY, _P, *_ARRAY, *(_I,) * 3)),
    ("set_stream", _set_stream, (_P, _P)),
    ("set_workspace", _set_workspace, (_P, _P, ctypes.c_size_t)),
)  # fmt: skip
__file__ = _library()  # as that of CuPy's module, which is linked with cuBLAS
