"""Products of matrices by cuBLAS, the one that CuPy has loaded.

CuPy's own functions for it refuse to be called while a stream is captured; cuBLAS does not, if its
workspace is memory of the caller's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cudeform.arrays import dtype_name
from cudeform.cuda.program import Product

# cudaDataType_t, cublasComputeType_t, cublasMath_t, cublasPointerMode_t, cublasGemmAlgo_t of CUDA
_CUDA_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_DEFAULT_MATH_WITHOUT_REDUCED_PRECISION = 16
_FACTORS_ON_HOST = 0
_DEFAULT_ALGORITHM = -1
_long, _pointer = ctypes.c_longlong, ctypes.c_void_p  # a number is a C int
_SCALARS = {
    dtype: (of(0), of(1))
    for dtype, of in (("float32", ctypes.c_float), ("float64", ctypes.c_double))
}


class Cublas:
    """cuBLAS on one device. `cublas` is CuPy's module of it."""

    def __init__(self, cublas: Any, capability: int) -> None:
        names = "cublasGemmStridedBatchedEx", "cublasSetStream_v2", "cublasSetWorkspace_v2"
        self._gemm, self._set_stream, self._set_workspace = _functions(cublas.__file__, names)
        self._cublas = cublas
        # What NVIDIA recommends, so that the fastest algorithms can be chosen
        self.workspace_bytes = (32 if capability >= 90 else 8) << 20

    @contextmanager
    def products(self, handle: int, stream: int, workspace: int) -> Iterator[int]:
        """Let products with this handle run on a stream, with a workspace that is there until then.

        Afterwards the handle is as CuPy left it, which sets its stream for every call of its own.
        """
        cublas, check = self._cublas, self._cublas.check_status
        math_mode, pointer_mode = cublas.getMathMode(handle), cublas.getPointerMode(handle)
        check(self._set_stream(_pointer(handle), _pointer(stream)))
        check(
            self._set_workspace(
                _pointer(handle), _pointer(workspace), ctypes.c_size_t(self.workspace_bytes)
            )
        )
        cublas.setMathMode(handle, _DEFAULT_MATH_WITHOUT_REDUCED_PRECISION)
        cublas.setPointerMode(handle, _FACTORS_ON_HOST)
        try:
            yield handle
        finally:
            cublas.setMathMode(handle, math_mode)
            cublas.setPointerMode(handle, pointer_mode)
            # which also takes back the workspace
            check(self._set_stream(_pointer(handle), _pointer(stream)))

    def multiply(self, arguments: tuple[Any, ...]) -> None:
        """One product, within `products`."""
        self._cublas.check_status(self._gemm(*arguments))

    @staticmethod
    def arguments(product: Product, handle: Any, a: Any, b: Any, out: Any) -> tuple[Any, ...]:
        """Those of cuBLAS for a product, with a handle and the addresses of the three arrays.

        These may be `ctypes.c_void_p` whose values are still to come.
        """
        g, (dtype, _, out_dtype) = product.gemm, (view.dtype for view in product.arrays)
        handle, a, b, out = (_pointer(p) if isinstance(p, int) else p for p in (handle, a, b, out))
        first, second = (a, b) if g.swapped else (b, a)
        double = out_dtype == np.float64
        compute = _COMPUTE_64F if double else _COMPUTE_32F
        if product.precision == "tf32" and dtype == np.float32:
            compute = _COMPUTE_32F_FAST_TF32
        scalars = _SCALARS["float64" if double else "float32"]
        of, out_of = (_CUDA_TYPES[dtype_name(dtype)] for dtype in (dtype, out_dtype))
        return (
            handle, int(g.transpose_a), int(g.transpose_b), g.m, g.n, g.k,
            ctypes.byref(scalars[1]),
            first, of, g.lda, _long(g.stride_a),
            second, of, g.ldb, _long(g.stride_b),
            ctypes.byref(scalars[int(product.accumulate)]),
            out, out_of, g.ldc, _long(g.stride_c),
            g.batch, compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip


def _functions(path: str, names: tuple[str, ...]) -> list[Any]:
    """Functions of the library that the library at a path is linked with."""
    try:
        library = ctypes.CDLL(path)
        return [library[name] for name in names]
    except (AttributeError, OSError) as error:
        raise RuntimeError(
            f"cudeform: cuBLAS is looked for behind CuPy's {path}, and is not found: {error}"
        ) from error
