// Points that are to be put into buckets by sort.cu are counted by whoever has their keys.
#pragma once
#include "prelude.cuh"

constexpr int CROWD_LANES = 4;  // of a warp that have the key of a neighbour: from so many on many may have one

// Counts a point: how many with its key were counted before it, whatever the order. Points of no bucket have the key
// `keys`, and are not counted. Where many in a warp have one key they are counted together: the atomics of a million on
// one place would queue. Every thread of the warp must come here.
__device__ __forceinline__ int count_point(int key, int keys, int* __restrict__ counts) {
  const bool alike = __shfl_xor_sync(0xffffffffu, key, 1) == key && key < keys;
  if (__popc(__ballot_sync(0xffffffffu, alike)) < CROWD_LANES) return key < keys ? atomicAdd(counts + key, 1) : 0;
  const unsigned same = __match_any_sync(0xffffffffu, key), lane = threadIdx.x & 31;
  const int leader = __ffs((int)same) - 1;
  int before = 0;
  if (lane == leader && key < keys) before = atomicAdd(counts + key, __popc(same));
  return __shfl_sync(0xffffffffu, before, leader) + __popc(same & ((1u << lane) - 1u));
}
