// One kernel for each group of intrinsics; the tests compute the same with NumPy.
#include "shared.cuh"

struct Params {
  int width;
  unsigned mask;
};

// out (6, threads)
extern "C" __global__ void shuffles(const int* __restrict__ x, int* __restrict__ out, const Params p) {
  const int i = threadIdx.x;
  const int n = blockDim.x;
  const int value = x[i];
  out[i] = __shfl_sync(0xffffffffu, value, i * 7 + 3, p.width);
  out[n + i] = __shfl_up_sync(0xffffffffu, value, 3, p.width);
  out[2 * n + i] = __shfl_down_sync(0xffffffffu, value, 3, p.width);
  out[3 * n + i] = __shfl_xor_sync(0xffffffffu, value, 5, p.width);
  out[4 * n + i] = (int)__shfl_xor_sync(0xffffffffu, (double)value, 1);
  out[5 * n + i] = -7;
  if (p.mask >> (i % 32) & 1) {
    __syncwarp(p.mask);
    out[5 * n + i] = __reduce_add_sync(p.mask, value);
  }
}

// out (8, threads)
extern "C" __global__ void votes(const int* __restrict__ x, unsigned* __restrict__ out, const Params p) {
  const int i = threadIdx.x;
  const int n = blockDim.x;
  const int value = x[i];
  out[i] = __ballot_sync(0xffffffffu, value > 0);
  out[n + i] = __match_any_sync(0xffffffffu, value);
  out[2 * n + i] = __any_sync(0xffffffffu, value > 2);
  out[3 * n + i] = __all_sync(0xffffffffu, value > -3);
  out[4 * n + i] = __syncthreads_count(value > 0);
  out[5 * n + i] = __syncthreads_or(value > 2);
  out[6 * n + i] = __syncthreads_and(value > -3);
  out[7 * n + i] = __reduce_max_sync(0xffffffffu, (unsigned)(value + 10));
}

// integers (5), floats (2)
extern "C" __global__ void atomics(const int* __restrict__ x, int* __restrict__ integers,
                                   float* __restrict__ floats, double* __restrict__ doubles,
                                   unsigned long long* __restrict__ wide, const Params p) {
  const int value = x[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&integers[0], value);
  atomicMax(&integers[1], value);
  atomicMin(&integers[2], value);
  atomicOr(&integers[3], 1 << (value & 15));
  int old = 0;
  while (true) {
    const int seen = atomicCAS(&integers[4], old, old + value);
    if (seen == old) break;
    old = seen;
  }
  atomicAdd(floats, (float)value);
  atomicAdd(doubles, (double)value);
  atomicAdd(wide, (unsigned long long)(value + 100));
}

// b[i] = a[i] with lanes reversed, for each type of vector
extern "C" __global__ void vectors(const float4* __restrict__ a, float4* __restrict__ b,
                                   const uint2* __restrict__ c, uint2* __restrict__ d,
                                   const ushort4* __restrict__ e, ushort4* __restrict__ f,
                                   const double2* __restrict__ g, double2* __restrict__ h, const Params p) {
  const int i = threadIdx.x;
  const float4 v = __ldg(&a[i]);
  __stcs(&b[i], make_float4(v.w, v.z, v.y, v.x));
  const uint2 u = __ldcs(&c[i]);
  d[i] = make_uint2(u.y, u.x);
  const ushort4 s = __ldcg(&e[i]);
  f[i] = make_ushort4(s.w, s.z, s.y, s.x);
  const double2 w = g[i];
  h[i] = make_double2(w.y, w.x);
}

// out (10, threads)
extern "C" __global__ void bits(const unsigned* __restrict__ x, unsigned* __restrict__ out, const Params p) {
  const int i = threadIdx.x;
  const int n = blockDim.x;
  const unsigned v = x[i];
  out[i] = __popc(v);
  out[n + i] = __ffs((int)v);
  out[2 * n + i] = __clz((int)v);
  out[3 * n + i] = __brev(v);
  out[4 * n + i] = __umulhi(v, 0x9E3779B9u);
  out[5 * n + i] = __byte_perm(v, 0x44332211u, 0x5140);
  out[6 * n + i] = (unsigned)__float2int_rd(__uint_as_float(v));
  out[7 * n + i] = __float2uint_rn(__uint_as_float(v));
  out[8 * n + i] = __funnelshift_r(v, 0x80000001u, 9);
  out[9 * n + i] = max(v, 77) + min((int)i, 5);
}
