// A stable sort of small integer keys: eight bits a pass, least significant first. Of each key only its place in the
// input is moved. Stable and free of races, so equal inputs give equal orders on any device.
//
// A pass is three launches: every block counts the digits of its tile, one block a digit adds up the counts of all
// tiles, and every block sends its elements to their places.
#include "prelude.cuh"

struct Params {
  int count;   // elements
  int shift;   // of the digit in the key
  int blocks;  // tiles
  int keys;    // number of different keys, for `starts`
};

// From the host: THREADS, DIGITS, and TILE elements a block.
constexpr int WARPS = THREADS / 32;
constexpr int ROUNDS = TILE / THREADS;

__device__ __forceinline__ int digit_of(const Params& p, int key) { return (key >> p.shift) & (DIGITS - 1); }

// The sum of the values of all threads before this one; `total` is the sum of all.
__device__ __forceinline__ int exclusive_sum(int value, int* warp_sums, int& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < WARPS; ++w) {
    if (w == warp) before = total;
    total += warp_sums[w];
  }
  __syncthreads();  // warp_sums may be used again
  return before + inclusive - value;
}

// counts[digit][block]
extern "C" __global__ void __launch_bounds__(THREADS)
    count_digits(const int* __restrict__ keys, int* __restrict__ counts, const Params p) {
  SHARED(int, bins, [DIGITS]);
  bins[threadIdx.x] = 0;
  __syncthreads();
  const int first = blockIdx.x * TILE;
  for (int round = 0; round < ROUNDS; ++round) {
    const int i = first + round * THREADS + threadIdx.x;
    if (i < p.count) atomicAdd(&bins[digit_of(p, __ldg(keys + i))], 1);
  }
  __syncthreads();
  counts[threadIdx.x * p.blocks + blockIdx.x] = bins[threadIdx.x];
}

// counts[digit][block] = elements with this digit in the blocks before; totals[digit]
extern "C" __global__ void __launch_bounds__(THREADS)
    add_counts(int* __restrict__ counts, int* __restrict__ totals, const Params p) {
  SHARED(int, warp_sums, [WARPS]);
  int* row = counts + blockIdx.x * p.blocks;
  int before = 0;
  for (int base = 0; base < p.blocks; base += THREADS) {
    const int i = base + threadIdx.x;
    const int value = i < p.blocks ? row[i] : 0;
    int total;
    const int sum = exclusive_sum(value, warp_sums, total);
    if (i < p.blocks) row[i] = before + sum;
    before += total;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

// `order` names the elements in the order of the passes before; null stands for 0, 1, 2, ...
extern "C" __global__ void __launch_bounds__(THREADS)
    move_elements(const int* __restrict__ keys, const int* __restrict__ order, const int* __restrict__ counts,
                  const int* __restrict__ totals, int* __restrict__ keys_out, int* __restrict__ order_out,
                  const Params p) {
  SHARED(int, warp_sums, [WARPS]);
  SHARED(int, warp_counts, [WARPS * DIGITS]);
  SHARED(int, next, [DIGITS]);  // where this block's next element with a digit goes
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int total;
  const int digits_before = exclusive_sum(__ldg(totals + threadIdx.x), warp_sums, total);
  next[threadIdx.x] = digits_before + __ldg(counts + threadIdx.x * p.blocks + blockIdx.x);
  const int first = blockIdx.x * TILE;
  for (int round = 0; round < ROUNDS; ++round) {
    const int i = first + round * THREADS + threadIdx.x;
    const bool present = i < p.count;
    const int key = present ? __ldg(keys + i) : 0;
    const int digit = present ? digit_of(p, key) : DIGITS;  // absent elements match only each other
    for (int w = 0; w < WARPS; ++w) warp_counts[w * DIGITS + threadIdx.x] = 0;
    __syncthreads();
    const unsigned peers = __match_any_sync(0xffffffffu, digit);
    const int rank = __popc(peers & ((1u << lane) - 1u));
    if (present && rank == 0) warp_counts[warp * DIGITS + digit] = __popc(peers);
    __syncthreads();
    int place = next[threadIdx.x];  // this thread now speaks for the digit threadIdx.x
    for (int w = 0; w < WARPS; ++w) {
      const int here = warp_counts[w * DIGITS + threadIdx.x];
      warp_counts[w * DIGITS + threadIdx.x] = place;
      place += here;
    }
    next[threadIdx.x] = place;
    __syncthreads();
    if (present) {
      const int to = warp_counts[warp * DIGITS + digit] + rank;
      keys_out[to] = key;
      order_out[to] = order ? __ldg(order + i) : i;
    }
    __syncthreads();
  }
}

// starts[key] = the first place in the sorted keys that holds this key or a larger one, for keys 0 to p.keys
extern "C" __global__ void __launch_bounds__(THREADS)
    find_starts(const int* __restrict__ sorted_keys, int* __restrict__ starts, const Params p) {
  const int key = blockIdx.x * THREADS + threadIdx.x;
  if (key > p.keys) return;
  int low = 0, high = p.count;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (__ldg(sorted_keys + middle) < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[key] = low;
}
