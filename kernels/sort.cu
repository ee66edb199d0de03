// Points in buckets, one for each key, each bucket in the order of the points' numbers.
//
// Points are counted by key, the counts are added up to the starts of the buckets, every point takes a place in its
// bucket, and then each bucket is put in order. Counts are integers and have one sum in whatever order atomics add
// them; which place a point takes does depend on that order, until the last kernel. So equal keys give equal bytes.
#include "prelude.cuh"

struct Params {
  int count;     // points
  int keys;      // number of different keys; a point with this key is in no bucket
  int counters;  // to clear, in fours
  int words;     // of 16 bytes in a record: 0 if there are none, else 1 or 2
};

// From the host: THREADS; KEYS a thread; the longest bucket that is SHORT, and that is sorted WHOLE.
constexpr int BLOCKS = 4;  // at once on a multiprocessor, at least: leaves a thread 64 registers
constexpr int WARPS = THREADS / 32;
constexpr int TILE = THREADS * KEYS;  // keys of a block
constexpr int RANGE = 32 * WHOLE;     // points that have a bit each in as much memory
constexpr unsigned ALL = 0xffffffffu;
static_assert(THREADS == 2 * SHORT && 2 * THREADS <= WHOLE, "a thread fetches two points for a block's short buckets");

// The sum of the values of all threads before this one; `total` is the sum of all.
__device__ __forceinline__ int exclusive_sum(int value, int* warp_sums, int& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(ALL, inclusive, step);
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

extern "C" __global__ void __launch_bounds__(THREADS) clear(int* __restrict__ counters, const Params p) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= p.counters) return;
  Pack<int, 4> zeros;
  zeros.clear();
  zeros.store(counters + 4 * (long long)i);
}

// counts[key], and of each tile of keys; ranks[point] = how many points with its key were counted before it. Points of
// a warp with one key are counted together: where a million have the same, their atomics queue.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_points(const int* __restrict__ keys, int* __restrict__ counts, int* __restrict__ tile_counts,
                 int* __restrict__ ranks, const Params p) {
  const int i = blockIdx.x * THREADS + threadIdx.x, lane = threadIdx.x & 31;
  const int key = i < p.count ? __ldg(keys + i) : p.keys;
  const bool wanted = key < p.keys;
  const unsigned same = __match_any_sync(ALL, key);
  const int first = __ffs(same) - 1;
  int before = 0;
  if (wanted && lane == first) before = atomicAdd(counts + key, __popc(same));
  before = __shfl_sync(ALL, before, first);
  if (wanted) ranks[i] = before + __popc(same & ((1u << lane) - 1u));
  const int tile = wanted ? key / TILE : -1;
  const unsigned near = __match_any_sync(ALL, tile);
  if (wanted && lane == __ffs(near) - 1) atomicAdd(tile_counts + tile, __popc(near));
}

// Replaces counts by starts: how many points have smaller keys. Lists the buckets that are not short, in any order.
extern "C" __global__ void __launch_bounds__(THREADS)
    find_starts(int* __restrict__ starts, const int* __restrict__ tile_counts, int* __restrict__ long_count,
                int* __restrict__ long_keys, const Params p) {
  SHARED(int, warp_sums, [WARPS]);
  int before = 0, tiles_before, total;
  for (int tile = threadIdx.x; tile < (int)blockIdx.x; tile += THREADS) before += __ldg(tile_counts + tile);
  exclusive_sum(before, warp_sums, tiles_before);
  const int first = blockIdx.x * TILE + threadIdx.x * KEYS;
  Pack<int, KEYS> counts;
  counts.load_written(starts + first);
  int sum = 0;
#pragma unroll
  for (int k = 0; k < KEYS; ++k) {
    const int here = counts.lane[k];
    if (here > SHORT) long_keys[atomicAdd(long_count, 1)] = first + k;
    counts.lane[k] = sum;
    sum += here;
  }
  const int start = tiles_before + exclusive_sum(sum, warp_sums, total);
#pragma unroll
  for (int k = 0; k < KEYS; ++k) counts.lane[k] += start;
  counts.store(starts + first);
}

struct alignas(8) Found {
  int point, key;
};

__device__ __forceinline__ Found found_at(const Found* __restrict__ found, int place) {
  const int2 both = __ldg(reinterpret_cast<const int2*>(found) + place);
  return {both.x, both.y};
}

// found = the points by bucket, in any order within one
extern "C" __global__ void __launch_bounds__(THREADS)
    place_points(const int* __restrict__ keys, const int* __restrict__ ranks, const int* __restrict__ starts,
                 Found* __restrict__ found, const Params p) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= p.count) return;
  const int key = __ldg(keys + i);
  if (key < p.keys) found[__ldg(starts + key) + __ldg(ranks + i)] = {i, key};
}

struct Bucket {
  int start, end;
};

__device__ __forceinline__ Bucket bucket_of(const int* __restrict__ starts, int key) {
  return {__ldg(starts + key), __ldg(starts + key + 1)};
}

// What lies in the order of the points: their numbers, or what is kept of each.
struct Ordered {
  int* order;
  const uint4* records;
  uint4* records_out;
  int words;
  __device__ __forceinline__ void put(int place, int point) const {
    if (words == 0) {
      order[place] = point;
      return;
    }
    const uint4* from = records + words * (long long)point;
    uint4* to = records_out + words * (long long)place;
    to[0] = __ldg(from);
    if (words == 2) to[1] = __ldg(from + 1);
  }
};

// Sorts a bucket in the block's memory, by a bitonic network.
__device__ __forceinline__ void order_whole(const Found* __restrict__ found, const Ordered& ordered,
                                            const Bucket& bucket, unsigned* numbers) {
  const int length = bucket.end - bucket.start;
  const int size = 1 << (32 - __clz(length - 1));
  for (int i = threadIdx.x; i < size; i += THREADS) numbers[i] = i < length ? found_at(found, bucket.start + i).point : ALL;
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size / 2; i += THREADS) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const unsigned a = numbers[low], b = numbers[high];
        if ((a > b) != ((low & run) != 0)) {
          numbers[low] = b;
          numbers[high] = a;
        }
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < length; i += THREADS) ordered.put(bucket.start + i, numbers[i]);
  __syncthreads();
}

// Puts the points of a bucket that are in one range in order: each sets its bit, and bits are in order.
__device__ __forceinline__ void order_range(const Found* __restrict__ found, const Ordered& ordered,
                                            const Bucket& bucket, int first, unsigned* bits, int* warp_sums) {
  for (int i = threadIdx.x; i < WHOLE; i += THREADS) bits[i] = 0;
  __syncthreads();
  int below = 0, all_below, count = 0, total;
#pragma unroll 4
  for (int i = bucket.start + threadIdx.x; i < bucket.end; i += THREADS) {
    const int number = found_at(found, i).point - first;
    if (number < 0) ++below;
    if (number >= 0 && number < RANGE) atomicOr(&bits[number >> 5], 1u << (number & 31));
  }
  __syncthreads();
  constexpr int WORDS = WHOLE / THREADS;
  const int word = threadIdx.x * WORDS;
  for (int w = word; w < word + WORDS; ++w) count += __popc(bits[w]);
  exclusive_sum(below, warp_sums, all_below);
  int place = bucket.start + all_below + exclusive_sum(count, warp_sums, total);
  for (int w = word; w < word + WORDS; ++w) {
    for (unsigned rest = bits[w]; rest; rest &= rest - 1) ordered.put(place++, first + 32 * w + __ffs((int)rest) - 1);
  }
  __syncthreads();
}

// Puts the block's points of short buckets in order: each counts those in its bucket that come before it.
__device__ __forceinline__ void order_short(const int* __restrict__ starts, const Found* __restrict__ found, int count,
                                            const Ordered& ordered, unsigned* numbers) {
  // Beside the block's places as many in front of and behind them as a bucket may reach.
  const int first = blockIdx.x * THREADS - SHORT, thread = threadIdx.x;
  const int beside = thread < SHORT ? thread : THREADS + thread;
  if (first + beside >= 0 && first + beside < count) numbers[beside] = found_at(found, first + beside).point;
  const int i = first + SHORT + thread;
  Found mine = {0, 0};
  if (i < count) mine = found_at(found, i);
  numbers[SHORT + thread] = mine.point;
  __syncthreads();
  const Bucket bucket = bucket_of(starts, mine.key);
  if (i < count && bucket.end - bucket.start <= SHORT) {
    int place = bucket.start;
#pragma unroll 4
    for (int other = bucket.start; other < bucket.end; ++other) {
      place += (numbers[other - first] - (unsigned)mine.point) >> 31;  // 1 if it is the smaller one
    }
    ordered.put(place, mine.point);
  }
  __syncthreads();
}

// order = the points by bucket, in each by number; or, if there are records, records_out = those in this order
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    order_points(const int* __restrict__ starts, const Found* __restrict__ found, const int* __restrict__ long_count,
                 const int* __restrict__ long_keys, int* __restrict__ order, const uint4* __restrict__ records,
                 uint4* __restrict__ records_out, const Params p) {
  SHARED(unsigned, numbers, [WHOLE]);
  SHARED(int, warp_sums, [WARPS]);
  const Ordered ordered = {order, records, records_out, p.words};
  order_short(starts, found, __ldg(starts + p.keys), ordered, numbers);
  const int ranges = (p.count - 1) / RANGE + 1;
  const long long items = (long long)__ldg(long_count) * ranges;
  for (long long item = blockIdx.x; item < items; item += gridDim.x) {
    const int number = (int)(item / ranges), range = (int)(item - (long long)number * ranges);
    const Bucket bucket = bucket_of(starts, __ldg(long_keys + number));
    if (bucket.end - bucket.start > WHOLE) {
      order_range(found, ordered, bucket, range * RANGE, numbers, warp_sums);
    } else if (range == 0) {
      order_whole(found, ordered, bucket, numbers);
    }
  }
}
