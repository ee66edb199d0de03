// The functions of cuBLAS that callers look up by their names, which go on to Python.

#include <cstddef>
#include <cstdint>

using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, int64_t,
                     const void*, int, int, int64_t, const void*, void*, int, int, int64_t, int,
                     int, int);
using SetStream = int (*)(void*, void*);
using SetWorkspace = int (*)(void*, void*, std::size_t);

extern "C" {

Gemm gemm;
SetStream set_stream;
SetWorkspace set_workspace;

int cublasGemmStridedBatchedEx(void* handle, int transa, int transb, int m, int n, int k,
                               const void* alpha, const void* a, int a_type, int lda,
                               int64_t stride_a, const void* b, int b_type, int ldb,
                               int64_t stride_b, const void* beta, void* c, int c_type, int ldc,
                               int64_t stride_c, int batch, int compute, int algorithm) {
    return gemm(handle, transa, transb, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb,
                stride_b, beta, c, c_type, ldc, stride_c, batch, compute, algorithm);
}

int cublasSetStream_v2(void* handle, void* stream) { return set_stream(handle, stream); }

int cublasSetWorkspace_v2(void* handle, void* workspace, std::size_t bytes) {
    return set_workspace(handle, workspace, bytes);
}
}
