// Points in buckets: counted by key, placed, and their values added up in the order of the points. Three launches.
#include "shared.cuh"

struct Params {
  int count;
  int keys;
};

extern "C" __global__ void count_points(const int* __restrict__ keys, int* __restrict__ counts, const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
#if defined(BUG_LOST_UPDATE)
  counts[keys[i]] = counts[keys[i]] + 1;
#elif defined(BUG_MIXED_ATOMICS)
  if (atomicAdd(&counts[keys[i]], 1) == 0) atomicMax(&counts[keys[i]], 0);
#else
  atomicAdd(&counts[keys[i]], 1);
#endif
}

// left[key] = points of the key that have no place yet; firsts[key] = the least point, written by the last to come
extern "C" __global__ void place_points(const int* __restrict__ keys, const int* __restrict__ starts,
                                        int* __restrict__ left, int* __restrict__ found, int* __restrict__ firsts,
                                        const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const int key = keys[i], rest = atomicSub(&left[key], 1) - 1;
  found[starts[key] + rest] = i;
#if defined(BUG_HALF_PLACED)
  if (rest == 0) {
    int first = i;
    for (int place = starts[key]; place < starts[key + 1]; ++place) first = min(first, found[place]);
    firsts[key] = first;
  }
#else
  atomicMin(&firsts[key], i);
#endif
}

extern "C" __global__ void add_points(const float* __restrict__ values, const int* __restrict__ keys,
                                      const int* __restrict__ starts, const int* __restrict__ found,
                                      float* __restrict__ sums, const Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#if defined(BUG_FLOAT_ATOMIC)
  if (i < p.count) atomicAdd(&sums[keys[i]], values[i]);
#else
  if (i >= p.keys) return;
  float sum = 0.f;
  for (int before = -1, next = 0; next < p.count; before = next) {
    next = p.count;
    for (int place = starts[i]; place < starts[i + 1]; ++place) {
      if (found[place] > before) next = min(next, found[place]);
    }
    if (next < p.count) sum += values[next];
  }
  sums[i] = sum;
#endif
}
