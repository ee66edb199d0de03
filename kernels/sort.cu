// Points in buckets, one for each key: a record of each point, in each bucket in the order of the points' numbers.
//
// Points are counted by key, the counts are added up to the starts of the buckets, every point takes a place in its
// bucket, and then each bucket is put in order. Counts are integers and have one sum in whatever order atomics add
// them; which place a point takes does depend on that order, until the last kernel. So equal keys give equal bytes.
//
// RECORD: of 16 bytes, or of 32
#include "prelude.cuh"

using Record = RECORD;

struct Params {
  int count;      // points
  int keys;       // number of different keys; a point with this key is in no bucket
  int counters;   // to clear, in fours
  int lane_bits;  // 2^lane_bits threads put a bucket in order, if it is short enough for their registers
  int sparse;     // whether there are so few points that each of them has a thread instead
};

// From the host: THREADS; POINTS a thread that counts and places, KEYS one that finds starts; HELD points of a bucket
// that a thread has in registers at most; the longest bucket that is sorted WHOLE in a block's memory.
// Blocks at once on a multiprocessor, at least: leaves a thread 64 registers, or 128.
constexpr int BLOCKS = sizeof(Record) == 16 ? 4 : 2;
constexpr int WARPS = THREADS / 32;
constexpr int TILE = THREADS * KEYS;  // keys of a block
constexpr int RANGE = 32 * WHOLE;     // points that have a bit each in as much memory
constexpr unsigned ALL = 0xffffffffu;
static_assert(HELD * THREADS <= WHOLE, "a block's memory has what its threads hold");
static_assert(HELD / 4 % 4 == 0, "threads store four numbers at once, also those that hold the fewest");
static_assert((TILE & (TILE - 1)) == 0, "the keys of a tile differ in their last bits");

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

// A thread's first point: each warp has points that follow each other, and its lanes take every 32nd.
__device__ __forceinline__ int first_point() {
  return (blockIdx.x * THREADS + (threadIdx.x & -32)) * POINTS + (threadIdx.x & 31);
}

// The keys of a thread's points. One beyond the last is in no bucket.
__device__ __forceinline__ void load_keys(const int* __restrict__ keys, int first, const Params& p, int (&key)[POINTS]) {
  const int* from = keys + first;
  if ((blockIdx.x + 1) * (THREADS * POINTS) <= p.count) {
#pragma unroll
    for (int k = 0; k < POINTS; ++k) key[k] = from[32 * k];
  } else {
#pragma unroll
    for (int k = 0; k < POINTS; ++k) key[k] = first + 32 * k < p.count ? from[32 * k] : p.keys;
  }
}

// Counts the points of a warp by tile. Points that follow each other mostly are in one.
__device__ __forceinline__ void count_tiles(const int (&key)[POINTS], int* __restrict__ tile_counts) {
  const int lane = threadIdx.x & 31, tile = __shfl_sync(ALL, key[0], 0) & -TILE;
  int apart = 0;
#pragma unroll
  for (int k = 0; k < POINTS; ++k) apart |= key[k] ^ tile;
  if (__all_sync(ALL, apart < TILE)) {
    if (lane == 0) atomicAdd(tile_counts + quotient(tile, TILE), 32 * POINTS);
    return;
  }
#pragma unroll
  for (int k = 0; k < POINTS; ++k) {
    const int own = quotient(key[k], TILE);
    const unsigned near = __match_any_sync(ALL, own);
    if (lane == __ffs((int)near) - 1) atomicAdd(tile_counts + own, __popc(near));
  }
}

// counts[key], and of each tile of keys; ranks[point] = how many points with its key were counted before it. Points of
// a warp with one key are counted together: where a million have the same, their atomics queue. Those of no bucket are
// counted too, which takes less than to ask.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_points(const int* __restrict__ keys, int* __restrict__ counts, int* __restrict__ tile_counts,
                 int* __restrict__ ranks, const Params p) {
  const int first = first_point(), lane = threadIdx.x & 31;
  int key[POINTS], before[POINTS];
  unsigned same[POINTS];
  load_keys(keys, first, p, key);
#pragma unroll
  for (int k = 0; k < POINTS; ++k) {
    same[k] = __match_any_sync(ALL, key[k]);
    before[k] = 0;
    if (lane == __ffs((int)same[k]) - 1) before[k] = atomicAdd(counts + key[k], __popc(same[k]));
  }
#pragma unroll
  for (int k = 0; k < POINTS; ++k) {
    before[k] = __shfl_sync(ALL, before[k], __ffs((int)same[k]) - 1);
    ranks[first + 32 * k] = before[k] + __popc(same[k] & ((1u << lane) - 1u));
  }
  count_tiles(key, tile_counts);
}

// Lists those of a thread's buckets that are longer than the registers of the threads that put them in order.
__device__ __forceinline__ void list_long(const Pack<int, KEYS>& counts, int first, int* __restrict__ long_count,
                                          int* __restrict__ long_keys, const Params& p) {
#pragma unroll
  for (int k = 0; k < KEYS; ++k) {
    if (counts.lane[k] > HELD << p.lane_bits && first + k < p.keys) long_keys[atomicAdd(long_count, 1)] = first + k;
  }
}

// Replaces counts by starts: how many points have smaller keys. Lists long buckets, in any order.
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
  int sum = 0, most = 0;
#pragma unroll
  for (int k = 0; k < KEYS; ++k) most = max(most, counts.lane[k]);
  if (most > HELD << p.lane_bits) list_long(counts, first, long_count, long_keys, p);
#pragma unroll
  for (int k = 0; k < KEYS; ++k) {
    const int here = counts.lane[k];
    counts.lane[k] = sum;
    sum += here;
  }
  const int start = tiles_before + exclusive_sum(sum, warp_sums, total);
#pragma unroll
  for (int k = 0; k < KEYS; ++k) counts.lane[k] += start;
  counts.store(starts + first);
}

// found = the points by bucket, in any order within one
extern "C" __global__ void __launch_bounds__(THREADS)
    place_points(const int* __restrict__ keys, const int* __restrict__ ranks, const int* __restrict__ starts,
                 int* __restrict__ found, const Params p) {
  const int first = first_point();
  int key[POINTS];
  load_keys(keys, first, p, key);
  const int* rank = ranks + first;
#pragma unroll
  for (int k = 0; k < POINTS; ++k) {
    const int before = rank[32 * k];
    if (key[k] < p.keys) found[__ldg(starts + key[k]) + before] = first + 32 * k;
  }
}

struct Bucket {
  int start, end;
};

__device__ __forceinline__ Bucket bucket_of(const int* __restrict__ starts, int key) {
  return {__ldg(starts + key), __ldg(starts + key + 1)};
}

// What is kept of each point, which the caller gives by number, and where it goes by place.
struct Records {
  const Record* given;
  Record* ordered;
  __device__ __forceinline__ void put(int place, int point) const { ordered[place] = load_word(given + point); }
};

// Sorts a bucket in the block's memory, by a bitonic network.
__device__ __forceinline__ void order_whole(const int* __restrict__ found, const Records& records,
                                            const Bucket& bucket, unsigned* numbers) {
  const int length = bucket.end - bucket.start;
  const int size = 1 << (32 - __clz(length - 1));
  for (int i = threadIdx.x; i < size; i += THREADS) numbers[i] = i < length ? __ldg(found + bucket.start + i) : ALL;
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
  for (int i = threadIdx.x; i < length; i += THREADS) records.put(bucket.start + i, numbers[i]);
  __syncthreads();
}

// Puts the points of a bucket that are in one range in order: each sets its bit, and bits are in order.
__device__ __forceinline__ void order_range(const int* __restrict__ found, const Records& records,
                                            const Bucket& bucket, int first, unsigned* bits, int* warp_sums) {
  for (int i = threadIdx.x; i < WHOLE; i += THREADS) bits[i] = 0;
  __syncthreads();
  int below = 0, all_below, count = 0, total;
#pragma unroll 4
  for (int i = bucket.start + threadIdx.x; i < bucket.end; i += THREADS) {
    const int number = __ldg(found + i) - first;
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
    for (unsigned rest = bits[w]; rest; rest &= rest - 1) records.put(place++, first + 32 * w + __ffs((int)rest) - 1);
  }
  __syncthreads();
}

__device__ __forceinline__ void put_in_order(unsigned& low, unsigned& high) {
  const unsigned least = min(low, high);
  high = max(low, high);
  low = least;
}

// The pairs of a step that have both numbers in one thread: registers `apart`, or, mirrored, with this difference in bits.
template <int COUNT>
__device__ __forceinline__ void step_within(unsigned (&numbers)[COUNT], int apart) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if ((i ^ apart) > i) put_in_order(numbers[i], numbers[i ^ apart]);
  }
}

// The pairs of a step that have their numbers in lanes `apart`: the lane above has the larger ones then.
template <int COUNT>
__device__ __forceinline__ void step_between(unsigned (&numbers)[COUNT], int apart, bool above, bool mirrored) {
  unsigned others[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) others[i] = __shfl_xor_sync(ALL, numbers[mirrored ? COUNT - 1 - i : i], apart);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) numbers[i] = (others[i] < numbers[i]) != above ? others[i] : numbers[i];
}

// Sorts the numbers of a group of lanes, the smallest ones to the first lane: runs of 2, 4, 8 ... are merged. Each merge
// compares the first of a run with the last of the next and so on, then halves with halves.
template <int COUNT>
__device__ __forceinline__ void sort_lanes(unsigned (&numbers)[COUNT], int lanes, int lane) {
#pragma unroll
  for (int run = 2; run <= COUNT; run *= 2) {
    step_within(numbers, run - 1);
#pragma unroll
    for (int apart = run / 4; apart > 0; apart /= 2) step_within(numbers, apart);
  }
#pragma unroll 1
  for (int run = 2; run <= lanes; run *= 2) {
    step_between(numbers, run - 1, lane & (run / 2), true);
#pragma unroll 1
    for (int apart = run / 4; apart > 0; apart /= 2) step_between(numbers, apart, lane & apart, false);
#pragma unroll
    for (int apart = COUNT / 2; apart > 0; apart /= 2) step_within(numbers, apart);
  }
}

// Puts a bucket in order that a group of lanes can hold, COUNT points each. Through shared memory, so that records that
// follow each other are written together.
template <int COUNT>
__device__ __forceinline__ void order_held(const int* __restrict__ found, const Records& records, int start,
                                           int length, int lanes, unsigned* shared) {
  const int lane = threadIdx.x & (lanes - 1);
  unsigned numbers[COUNT];
  const int* from = found + (start + lane);
#pragma unroll
  for (int i = 0, rest = length - lane; i < COUNT; ++i, rest -= lanes, from += lanes) {
    numbers[i] = rest > 0 ? *from : ALL;
  }
  sort_lanes(numbers, lanes, lane);
  const int thread = threadIdx.x & 31;
  unsigned* const own = shared + HELD * (threadIdx.x - thread);  // of the warp: others may hold more points, or fewer
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    Pack<unsigned, 4> four;
#pragma unroll
    for (int k = 0; k < 4; ++k) four.lane[k] = numbers[i + k];
    four.store(own + COUNT * thread + i);
  }
  __syncwarp(ALL);
  const unsigned* number = own + (COUNT * (thread - lane) + lane);
  Record* to = records.ordered + (start + lane);
#pragma unroll
  for (int i = 0, rest = length - lane; i < COUNT; ++i, rest -= lanes, number += lanes, to += lanes) {
    if (rest > 0) *to = load_word(records.given + *number);
  }
  __syncwarp(ALL);
}

// Puts the buckets of the warp's groups of lanes in order, of up to HELD points a lane. The threads of a warp do the
// same: as many steps as the longest bucket takes.
__device__ __forceinline__ void order_lanes(const int* __restrict__ found, const Records& records, int start,
                                            int length, int lanes, unsigned* shared) {
  if (__any_sync(ALL, length > HELD / 2 * lanes)) {
    order_held<HELD>(found, records, start, length, lanes, shared);
  } else if (__any_sync(ALL, length > HELD / 4 * lanes)) {
    order_held<HELD / 2>(found, records, start, length, lanes, shared);
  } else if (__any_sync(ALL, length > 1)) {
    order_held<HELD / 4>(found, records, start, length, lanes, shared);
  } else if (length > 0 && (threadIdx.x & (lanes - 1)) == 0) {
    records.put(start, __ldg(found + start));
  }
}

// Puts the points of buckets in order that one thread could hold: each counts those of its bucket that come before it.
__device__ __forceinline__ void order_few(const int* __restrict__ keys, const int* __restrict__ starts,
                                          const int* __restrict__ found, const Records& records, const Params& p) {
  const int points = __ldg(starts + p.keys);
#pragma unroll 1
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < points; i += gridDim.x * THREADS) {
    const int point = __ldg(found + i);
    const Bucket bucket = bucket_of(starts, __ldg(keys + point));
    if (bucket.end - bucket.start > HELD) continue;
    int place = bucket.start;
#pragma unroll 1
    for (int other = bucket.start; other < bucket.end; ++other) place += __ldg(found + other) < point;
    records.put(place, point);
  }
}

// Puts the buckets in order that are too long for a warp: a block takes one, or a range of one's points.
__device__ __forceinline__ void order_longest(const int* __restrict__ starts, const int* __restrict__ found, int longer,
                                              const int* __restrict__ long_keys, const Records& records,
                                              const Params& p, unsigned* shared, int* warp_sums) {
  const int ranges = (p.count - 1) / RANGE + 1;
  const long long items = (long long)longer * ranges;
  for (long long item = blockIdx.x; item < items; item += gridDim.x) {
    const int number = (int)(item / ranges), range = (int)(item - (long long)number * ranges);
    const Bucket bucket = bucket_of(starts, __ldg(long_keys + number));
    const int length = bucket.end - bucket.start;
    if (length > WHOLE) {
      order_range(found, records, bucket, range * RANGE, shared, warp_sums);
    } else if (length > 32 * HELD && range == 0) {
      order_whole(found, records, bucket, shared);
    }
  }
}

// ordered = the records by bucket, in each by the number of the point
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    order_points(const int* __restrict__ keys, const int* __restrict__ starts, const int* __restrict__ found,
                 const int* __restrict__ long_count, const int* __restrict__ long_keys,
                 const Record* __restrict__ given, Record* __restrict__ ordered, const Params p) {
  SHARED(unsigned, shared, [WHOLE]);
  SHARED(int, warp_sums, [WARPS]);
  const Records records = {given, ordered};
  const int longer = __ldg(long_count), warp = blockIdx.x * WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  // First the buckets for which there are threads, then the longer ones by more lanes, and those that are longer still.
  int held = 0, bits = p.lane_bits;  // points of the longest bucket before
  if (p.sparse) {
    order_few(keys, starts, found, records, p);
    held = HELD;
    bits = 3;
  }
#pragma unroll 1
  for (;; bits = min(max(bits + 2, 3), 5)) {
    const bool given = held == 0;
    const int buckets = given ? p.keys : longer;
#pragma unroll 1
    for (int first = warp << (5 - bits); first < buckets; first += gridDim.x * WARPS << (5 - bits)) {
      const int item = first + (lane >> bits);
      Bucket bucket = {0, 0};
      if (item < buckets) bucket = bucket_of(starts, given ? item : __ldg(long_keys + item));
      const int length = bucket.end - bucket.start;
      // Through a shuffle, so that what follows from it is not computed ahead of the loop, for all the kernel's ways.
      const int lanes = __shfl_sync(ALL, 1 << bits, 0);
      const bool fits = length > held && length <= HELD << bits;
      order_lanes(found, records, bucket.start, fits ? length : 0, lanes, shared);
    }
    if (longer == 0) return;
    if (bits == 5) break;
    held = HELD << bits;
  }
  __syncthreads();
  order_longest(starts, found, longer, long_keys, records, p, shared, warp_sums);
}
