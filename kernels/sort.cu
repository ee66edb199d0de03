// Points in buckets, one for each key: a record of each point, in each bucket in the order of the points' numbers.
//
// Points are counted by key, the counts are added up to the starts of the buckets, every point takes a place in its
// bucket, and then each bucket is put in order. Counts are integers and have one sum in whatever order atomics add
// them; which place a point takes does depend on that order, until the last kernel. So equal keys give equal bytes.
// Kernels elsewhere may count their points themselves, by buckets.cuh.
//
// RECORD: of 16 bytes, or of 32
#include "buckets.cuh"

using Record = RECORD;

struct Params {
  int count;      // points
  int keys;       // number of different keys; a point with this key is in no bucket
  int counters;   // to clear, in fours
  int lane_bits;  // 2^lane_bits threads put a bucket in order, if it is short enough for their registers
};

// From the host: THREADS; POINTS a thread that counts and places, KEYS one that finds starts; HELD points of a bucket for
// each thread that puts it in order, at most; the longest bucket that is sorted WHOLE in a block's memory.
// Blocks at once on a multiprocessor, at least: leaves a thread 40 registers, or 80.
constexpr int BLOCKS = sizeof(Record) == 16 ? 6 : 3;
constexpr int WARPS = THREADS / 32;
constexpr int TILE = THREADS * KEYS;  // keys of a block
constexpr int TOGETHER = 4;           // points whose places a thread counts at once
constexpr int RANGE = 32 * WHOLE;     // points that have a bit each in a block's memory
constexpr unsigned ALL = 0xffffffffu;
static_assert(HELD * THREADS <= WHOLE, "a block's memory has what its threads hold");
static_assert(HELD % 4 == 0, "threads read four numbers at once");
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

// counts[key]; ranks[point] = how many points with its key were counted before it
extern "C" __global__ void __launch_bounds__(THREADS)
    count_points(const int* __restrict__ keys, int* __restrict__ counts, int* __restrict__ ranks, const Params p) {
  const int first = first_point();
  int key[POINTS], before[POINTS];
  load_keys(keys, first, p, key);
#pragma unroll
  for (int k = 0; k < POINTS; ++k) before[k] = count_point(key[k], p.keys, counts);
#pragma unroll
  for (int k = 0; k < POINTS; ++k) ranks[first + 32 * k] = before[k];
}

// tile_counts[tile] = points of the keys of each
extern "C" __global__ void __launch_bounds__(THREADS)
    count_tiles(const int* __restrict__ counts, int* __restrict__ tile_counts, const Params p) {
  SHARED(int, warp_sums, [WARPS]);
  Pack<int, KEYS> here;
  here.load(counts + (blockIdx.x * TILE + threadIdx.x * KEYS));
  int sum = 0, total;
#pragma unroll
  for (int k = 0; k < KEYS; ++k) sum += here.lane[k];
  exclusive_sum(sum, warp_sums, total);
  if (threadIdx.x == 0) tile_counts[blockIdx.x] = total;
}

// Buckets that are longer than those for which there are threads: first, in any order, those of up to 32 HELD points, and
// from the end on the others. counts: how many there are of both.
struct Long {
  int* counts;
  int* keys;
  int last;  // in keys
  __device__ __forceinline__ Long(int* counts, int* keys, const Params& p)
      : counts(counts), keys(keys), last(quotient(p.count, HELD << p.lane_bits)) {}
  __device__ __forceinline__ void list(int key, int length) const {
    const bool longest = length > 32 * HELD;
    const int number = atomicAdd(counts + longest, 1);
    keys[longest ? last - number : number] = key;
  }
};

// Replaces counts by starts: how many points have smaller keys. Lists long buckets.
extern "C" __global__ void __launch_bounds__(THREADS)
    find_starts(int* __restrict__ starts, const int* __restrict__ tile_counts, int* __restrict__ long_counts,
                int* __restrict__ long_keys, const Params p) {
  SHARED(int, warp_sums, [WARPS]);
  int before = 0, tiles_before, total;
  for (int tile = threadIdx.x; tile < (int)blockIdx.x; tile += THREADS) before += __ldg(tile_counts + tile);
  exclusive_sum(before, warp_sums, tiles_before);
  const int first = blockIdx.x * TILE + threadIdx.x * KEYS;
  const Long longer(long_counts, long_keys, p);
  Pack<int, KEYS> counts;
  counts.load_written(starts + first);
  int sum = 0;
#pragma unroll
  for (int k = 0; k < KEYS; ++k) {
    const int here = counts.lane[k];
    if (here > HELD << p.lane_bits) longer.list(first + k, here);
    counts.lane[k] = sum;
    sum += here;
  }
  const int start = tiles_before + exclusive_sum(sum, warp_sums, total);
#pragma unroll
  for (int k = 0; k < KEYS; ++k) counts.lane[k] += start;
  counts.store(starts + first);
}

// numbers = the points by bucket, in any order within one
extern "C" __global__ void __launch_bounds__(THREADS)
    place_points(const int* __restrict__ keys, const int* __restrict__ ranks, const int* __restrict__ starts,
                 int* __restrict__ numbers, const Params p) {
  const int first = first_point();
  int key[POINTS];
  load_keys(keys, first, p, key);
  const int* rank = ranks + first;
#pragma unroll
  for (int k = 0; k < POINTS; ++k) {
    const int before = rank[32 * k];
    if (key[k] < p.keys) numbers[__ldg(starts + key[k]) + before] = first + 32 * k;
  }
}

struct Bucket {
  int start, end;
};

__device__ __forceinline__ Bucket bucket_of(const int* __restrict__ starts, int key) {
  return {__ldg(starts + key), __ldg(starts + key + 1)};
}

// The points by bucket, in any order within one; what is kept of each, by number; and where that goes, by place.
struct Points {
  const int* numbers;
  const Record* given;
  Record* ordered;
  __device__ __forceinline__ void put(int place, int number) const { ordered[place] = load_word(given + number); }
};

// Calls visit(number) for all points of a bucket, each in some thread of the block.
template <class Visit>
__device__ __forceinline__ void each_number(const Points& points, const Bucket& bucket, Visit visit) {
#pragma unroll 4
  for (int first = (bucket.start & -4) + 4 * threadIdx.x; first < bucket.end; first += 4 * THREADS) {
    Pack<int, 4> four;
    four.load(points.numbers + first);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (first + k >= bucket.start && first + k < bucket.end) visit(four.lane[k]);
    }
  }
}

// Sorts the numbers of a bucket in the block's memory, by a bitonic network.
__device__ __forceinline__ void order_whole(const Points& points, const Bucket& bucket, unsigned* numbers) {
  const int length = bucket.end - bucket.start;
  const int size = 1 << (32 - __clz(length - 1));
  for (int i = threadIdx.x; i < size; i += THREADS) {
    numbers[i] = i < length ? __ldg(points.numbers + bucket.start + i) : ALL;
  }
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
  for (int i = threadIdx.x; i < length; i += THREADS) points.put(bucket.start + i, numbers[i]);
  __syncthreads();
}

// Puts the points of a bucket that are in one range in order: each sets its bit, and bits are in order.
__device__ __forceinline__ void order_range(const Points& points, const Bucket& bucket, int first, unsigned* bits,
                                            int* warp_sums) {
  for (int i = threadIdx.x; i < WHOLE; i += THREADS) bits[i] = 0;
  __syncthreads();
  int below = 0, all_below, count = 0, total;
  each_number(points, bucket, [&](int number) {
    if (number < first) ++below;
    if (number >= first && number - first < RANGE) atomicOr(&bits[(number - first) >> 5], 1u << (number & 31));
  });
  __syncthreads();
  constexpr int WORDS = WHOLE / THREADS;
  const int word = threadIdx.x * WORDS;
  for (int w = word; w < word + WORDS; ++w) count += __popc(bits[w]);
  exclusive_sum(below, warp_sums, all_below);
  int place = bucket.start + all_below + exclusive_sum(count, warp_sums, total);
  for (int w = word; w < word + WORDS; ++w) {
    for (unsigned rest = bits[w]; rest; rest &= rest - 1) points.put(place++, first + 32 * w + __ffs((int)rest) - 1);
  }
  __syncthreads();
}

// Puts a bucket in order that a group of lanes can hold, HELD points each: every point counts those before it. Every
// thread of the warp must come here.
__device__ __forceinline__ void order_held(const Points& points, int start, int length, int lanes, unsigned* shared) {
  const int lane = threadIdx.x & (lanes - 1);
  unsigned* const all = shared + HELD * (threadIdx.x - lane);
#pragma unroll 4
  for (int at = lane; at < ((length + 3) & -4); at += lanes) {
    all[at] = at < length ? __ldg(points.numbers + start + at) : ALL;
  }
  __syncwarp(ALL);
#pragma unroll 1
  for (int first = lane; first < length; first += TOGETHER * lanes) {
    unsigned number[TOGETHER];
    int before[TOGETHER] = {};
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) number[i] = first + i * lanes < length ? all[first + i * lanes] : 0;
#pragma unroll 1
    for (int other = 0; other < length; other += 4) {
      Pack<unsigned, 4> four;
      four.load_written(all + other);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) before[i] += four.lane[k] < number[i];
      }
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      if (first + i * lanes < length) points.put(start + before[i], number[i]);
    }
  }
  __syncwarp(ALL);
}

// Puts the buckets in order that are too long for a warp: a block takes one, or a range of one's points.
__device__ __forceinline__ void order_longest(const int* __restrict__ starts, const Long& longer, const Points& points,
                                              const Params& p, unsigned* shared, int* warp_sums) {
  const int ranges = (p.count - 1) / RANGE + 1;
  const long long items = (long long)longer.counts[1] * ranges;
  for (long long item = blockIdx.x; item < items; item += gridDim.x) {
    const int number = (int)(item / ranges), range = (int)(item - (long long)number * ranges);
    const Bucket bucket = bucket_of(starts, longer.keys[longer.last - number]);
    if (bucket.end - bucket.start > WHOLE) {
      order_range(points, bucket, range * RANGE, shared, warp_sums);
    } else if (range == 0) {
      order_whole(points, bucket, shared);
    }
  }
}

// ordered = the records by bucket, in each by the number of the point
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    order_points(const int* __restrict__ starts, const int* __restrict__ numbers, const Record* __restrict__ given,
                 int* __restrict__ long_counts, int* __restrict__ long_keys, Record* __restrict__ ordered,
                 const Params p) {
  SHARED(unsigned, shared, [WHOLE]);
  SHARED(int, warp_sums, [WARPS]);
  const Points points = {numbers, given, ordered};
  const Long longer(long_counts, long_keys, p);
  const int warp = blockIdx.x * WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  // First all buckets, of which those for which there are threads are put in order, then the longer ones by whole warps.
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const int bits = pass ? 5 : p.lane_bits, buckets = pass ? longer.counts[0] : p.keys;
#pragma unroll 1
    for (int first = warp << (5 - bits); first < buckets; first += gridDim.x * WARPS << (5 - bits)) {
      const int item = first + (lane >> bits);
      Bucket bucket = {0, 0};
      if (item < buckets) bucket = bucket_of(starts, pass ? longer.keys[item] : item);
      const int length = bucket.end - bucket.start;
      order_held(points, bucket.start, length <= HELD << bits ? length : 0, 1 << bits, shared);
    }
  }
  if (longer.counts[1] == 0) return;
  __syncthreads();
  order_longest(starts, longer, points, p, shared, warp_sums);
}
