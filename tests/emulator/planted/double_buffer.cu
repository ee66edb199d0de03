// Running sums of x (count) through two tiles in turn; every thread reads what its neighbour wrote.
#include "shared.cuh"

struct Params {
  int tiles;
};

constexpr int kThreads = 64;

extern "C" __global__ void __launch_bounds__(kThreads)
    neighbour_sum(const float* __restrict__ x, float* __restrict__ sums, const Params p) {
  float* buffers = dynamic_shared<float>();
  const int thread = threadIdx.x;
  float sum = 0.f;
  buffers[thread] = x[thread];
  for (int tile = 0; tile < p.tiles; ++tile) {
    float* now = buffers + tile % 2 * kThreads;
    float* next = buffers + (tile + 1) % 2 * kThreads;
#if defined(BUG_MISSING_BARRIER)
    if (tile != 3) __syncthreads();
#else
    __syncthreads();
#endif
    if (tile + 1 < p.tiles) next[thread] = x[(tile + 1) * kThreads + thread];
    sum += now[(thread + 1) % kThreads];
  }
  sums[thread] = sum;
}
