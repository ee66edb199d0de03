"""Matrix products of strided arrays in cuBLAS's terms."""

from __future__ import annotations

from typing import Any, NamedTuple


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
    if max(sizes) >= 2**31:  # a C int would take their last bits in silence
        raise ValueError(f"no product for cuBLAS, which counts in 32 bits: {max(sizes)} elements")
    if out.ndim == 2:
        return Gemm(swapped, transpose_a, transpose_b, *sizes, 0, 0, 0, 1)
    steps = [x.strides[0] // x.itemsize if x.shape[0] > 1 else 0 for x in (b, a, out)]
    return Gemm(swapped, transpose_a, transpose_b, *sizes, *steps, out.shape[0])
