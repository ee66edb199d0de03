// Kernels that touch global memory in ways that are easy to get wrong.
#include "shared.cuh"

struct Params {
  int count;
};

// twice[i] = 2 x[i]
extern "C" __global__ void double_each(const float* __restrict__ x, float* __restrict__ twice,
                                       const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#if defined(BUG_OFF_BY_ONE)
  if (i <= p.count) twice[i] = i < p.count ? 2.f * x[i] : 0.f;
#else
  if (i < p.count) twice[i] = 2.f * x[i];
#endif
#if defined(BUG_WRITE_READ_ONLY)
  if (i == 0) const_cast<float*>(x)[i] = 0.f;
#endif
}

// counts[k] = how many elements of x equal k
extern "C" __global__ void histogram(const int* __restrict__ x, int* __restrict__ counts, const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
#if defined(BUG_NOT_ATOMIC)
  counts[x[i]] += 1;
#elif defined(BUG_READ_OF_ATOMIC)
  if (atomicAdd(&counts[x[i]], 1) < counts[x[i]] - p.count) counts[x[i]] = 0;
#else
  atomicAdd(&counts[x[i]], 1);
#endif
}

// sums[i] = x[4 i] + ... + x[4 i + 3]
extern "C" __global__ void sum_fours(const float* __restrict__ x, float* __restrict__ sums, const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const float4 v = __ldg(reinterpret_cast<const float4*>(x) + i);
  sums[i] = v.x + v.y + v.z + v.w;
}

// Each block writes what the next one reads.
extern "C" __global__ void shift_blocks(float* __restrict__ x, const Params p) {
  const int i = blockIdx.x;
  if (threadIdx.x > 0) return;
#if defined(BUG_BLOCKS_COMMUNICATE)
  if (i + 1 < p.count) x[i] = x[i + 1];
#else
  if (i < p.count) x[i] = x[i] + 1.f;
#endif
}

// (int)x, which for a NaN differs between the host and a GPU
extern "C" __global__ void truncate(const float* __restrict__ x, int* __restrict__ y, const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#if defined(BUG_CAST)
  if (i < p.count) y[i] = (int)x[i];
#else
  if (i < p.count) y[i] = __float2int_rz(x[i]);
#endif
}

// A table of constants, a local array, an index computed from data.
__constant__ float weights[4] = {1.f, 2.f, 4.f, 8.f};
extern "C" __global__ void look_up(const int* __restrict__ x, float* __restrict__ y, const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float local[4];
  for (int k = 0; k < 4; ++k) local[k] = weights[k];
#if defined(BUG_LOCAL_INDEX)
  if (i < p.count) y[i] = local[x[i] + 1];
#else
  if (i < p.count) y[i] = local[x[i]];
#endif
}

// Every block adds its elements to the total, which is whole when the launch ends and not before.
extern "C" __global__ void add_up(const int* __restrict__ x, int* __restrict__ total, const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.count) atomicAdd(&total[0], x[i]);
  __syncthreads();
#if defined(BUG_READ_BEFORE_THE_END)
  if (i == 0 || i == p.count - 1) total[1 + blockIdx.x] = total[0];
#else
  if (i == 0) total[1] = p.count;
#endif
}
