// Sums of the rows of x (rows, columns), one block a row. Right as it stands; each BUG_ plants one mistake.
#include "shared.cuh"

struct Params {
  int columns;
};

constexpr int kThreads = 96;
constexpr int kWarps = kThreads / 32;

extern "C" __global__ void __launch_bounds__(kThreads)
    row_sum(const float* __restrict__ x, float* __restrict__ sums, const Params p) {
  SHARED(float, partial, [kWarps]);
  const int thread = threadIdx.x;
  const float* row = x + blockIdx.x * p.columns;
  float sum = 0.f;
  for (int i = thread; i < p.columns; i += kThreads) sum += row[i];
#if defined(BUG_DIVERGENT_MASK)
  const unsigned mask = thread % 32 < 16 ? 0x0000ffffu : 0xffffffffu;
#else
  const unsigned mask = 0xffffffffu;
#endif
#if defined(BUG_DIVERGENT_SHUFFLE)
  if (thread % 32 < 19)
#endif
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(mask, sum, distance);
#if defined(BUG_UNINITIALISED)
  if (thread % 32 == 0 && thread > 0) partial[thread / 32] = sum;
#else
  if (thread % 32 == 0) partial[thread / 32] = sum;
#endif
#if defined(BUG_DIVERGENT_BARRIER)
  if (thread < 64) __syncthreads();
#elif !defined(BUG_MISSING_BARRIER)
  __syncthreads();
#endif
#if defined(BUG_SHARED_READ)
  constexpr int kRead = kWarps + 1;
#else
  constexpr int kRead = kWarps;
#endif
  if (thread == 0) {
    const float* values = partial;
    float total = 0.f;
    for (int i = 0; i < kRead; ++i) total += values[i];
    sums[blockIdx.x] = total;
  }
}
