// Gradients of the values of weighted sums of samples: points are put into buckets by the pixels that they touch, and a
// pixel gathers from its own. Tasks and arrays are those of aggregate.cu, and so are SCALAR, VEC, GRID and MIXED.
#include "buckets.cuh"
#include "tasks.cuh"

// Blocks at once on a multiprocessor, at least: leaves a thread 64 registers, or 128; and of those that gather a crowd 80.
constexpr int BLOCKS = sizeof(Sum) == 8 ? 2 : 4, CROWD_BLOCKS = sizeof(Sum) == 8 ? 2 : 3;
constexpr int TOGETHER = 4;  // rows that a thread reads at once
constexpr int STRIP = 4;     // of the rows of a level
static_assert(FETCHED % TOGETHER == 0, "what a thread reads at once has been fetched at once");

// The key of every point, (image, head, pixel), how many with it were counted before, and the way from there
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    point_keys(const void* __restrict__ sizes, const int* __restrict__ ends, const void* __restrict__ locations,
               const void* __restrict__ weights, int* __restrict__ keys, int* __restrict__ counts,
               int* __restrict__ ranks, Way<Sum>* __restrict__ ways, const Params p) {
  DYNAMIC_SHARED(Level, levels);
  load_levels(p, sizes, ends, levels);
  const Task task = task_of(p);
  const Shares shares = shares_of(p, task, weights);
  const int slots = p.images * p.some_heads, slot = task.image * p.some_heads + task.head - p.first_head;
  int level = 0;
  for (int first = 0; first < p.points; first += task.lanes) {
    const int point = first + task.lane, number = task.local * p.points + point;
    const bool mine = task.present && point < p.points;
    int key = slots * p.pixels;  // no pixel looks there
    if (mine) {
      const Cell<Sum> cell = cell_of(p, task, levels, level, locations, point);
      const Level& in = levels[level];
      if (cell.inside) key = slot * p.pixels + in.first + max(cell.y, 0) * in.width + max(cell.x, 0);
      ways[number] = {way_along(cell.y, cell.ly), way_along(cell.x, cell.lx), shares(p, point), task.query};
    }
    const int rank = count_point(key, slots * p.pixels, counts);
    if (!mine) continue;
    keys[number] = key;
    ranks[number] = rank;
  }
}

// The weight along one axis of the pixel that is the key's or, if `far`, the next.
template <class S>
__device__ __forceinline__ S way_weight(S way, bool far) {
  return far ? max(way, S(0)) : S(1) - abs(way);
}

// The points of one pixel: two runs of the sorted order, of the row of pixels above and its own.
struct Runs {
  int above, above_middle, own, own_middle;  // where they begin, and the points of the pixel's own column
  int above_count, count;                    // count: of both
};

// Those of the pixel with this key in column x and row y of its level.
__device__ __forceinline__ Runs runs_of(const int* __restrict__ starts, int key, int y, int x, int width, bool nearest) {
  const bool left = x > 0 && !nearest;
  Runs runs = {};
  runs.own = __ldg(starts + key - left);
  runs.own_middle = __ldg(starts + key);
  runs.count = __ldg(starts + key + 1) - runs.own;
  if (y > 0 && !nearest) {
    const int* up = starts + key - width;
    runs.above = __ldg(up - left);
    runs.above_middle = __ldg(up);
    runs.above_count = __ldg(up + 1) - runs.above;
    runs.count += runs.above_count;
  }
  return runs;
}

// A head of a pixel, and its points; none where no level reaches.
struct Pixel {
  int image, head, number;
  Runs runs;
};

// Heads of pixels are numbered by image and head, and within a level STRIP rows at a time, column by column: neighbours
// are gathered together, and have buckets in common.
__device__ __forceinline__ Pixel pixel_of(const Params& p, const Level* levels, const int* __restrict__ starts, int task) {
  const int slot = quotient(task, p.pixels), image = quotient(slot, p.some_heads);
  Pixel pixel = {image, slot - image * p.some_heads, task - slot * p.pixels, {}};
  int number = 0;
  while (number < p.levels && pixel.number >= levels[number].first + levels[number].height * levels[number].width) ++number;
  if (number == p.levels) return pixel;
  const Level level = levels[number];
  const int before = pixel.number - level.first, in_strip = min(STRIP, level.height) * level.width;
  const int strip = quotient(before, in_strip), within = before - strip * in_strip;
  const int rows = min(STRIP, level.height - strip * STRIP);
  const int x = quotient(within, rows), y = strip * STRIP + within - x * rows;
  pixel.number = level.first + y * level.width + x;
  pixel.runs = runs_of(starts, slot * p.pixels + pixel.number, y, x, level.width, p.nearest);
  return pixel;
}

// What a pixel adds of a point: a row of values, so many times; or nothing.
template <class S>
struct alignas(2 * sizeof(S)) Share {
  S weight;
  int query;  // or -1
};

// Adds up a pixel's points: those from `first` on that its threads fetch at a time, and so on by `step`. Each of its
// 2^team_bits threads fetches some for all of them; 2^lane_bits share the channels of a row, and groups of these the
// rows. Every thread of the warp must come here.
//
// active: whether the thread has channels to add; shares: room for FETCHED in each thread of the block; load(query) reads
// a row, add(row, weight) adds it.
template <class S, class Load, class Add>
__device__ __forceinline__ void gather_ways(const Runs& runs, int first, int step, bool active, int team_bits,
                                            int lane_bits, const Way<S>* __restrict__ ways, Share<S>* shares, Load load,
                                            Add add) {
  const int team = 1 << team_bits, own = threadIdx.x & (team - 1);
  const int group = own >> lane_bits, groups = 1 << (team_bits - lane_bits);
  Share<S>* const shared = shares + FETCHED * (threadIdx.x - own);
  int most = runs.count;
  for (int apart = 16; apart >= team; apart /= 2) most = max(most, __shfl_xor_sync(WARP, most, apart));
#pragma unroll 1
  for (; first < most; first += step) {
    Way<S> way[FETCHED] = {};
    bool down[FETCHED], right[FETCHED];
#pragma unroll
    for (int k = 0; k < FETCHED; ++k) {
      const int i = first + k * team + own;
      down[k] = i < runs.above_count;
      const int place = down[k] ? runs.above + i : runs.own + i - runs.above_count;
      right[k] = place < (down[k] ? runs.above_middle : runs.own_middle);
      if (i < runs.count) way[k] = ways[place];
    }
#pragma unroll
    for (int k = 0; k < FETCHED; ++k) {
      const int i = k * team + own;
      // A point left of its key, which is at the edge, does not touch the pixel on the right.
      const bool outside = (down[k] && way[k].y < S(0)) || (right[k] && way[k].x < S(0));
      const S weight = way_weight(way[k].y, down[k]) * way_weight(way[k].x, right[k]) * way[k].weight;
      shared[i] = {weight, first + i < runs.count && !outside ? way[k].query : -1};
    }
    __syncwarp(WARP);
    const int ready = active ? min(runs.count - first, FETCHED * team) : 0;
#pragma unroll 1
    for (int i = group; i < ready; i += TOGETHER * groups) {
      decltype(load(0)) row[TOGETHER];
      Share<S> share[TOGETHER];
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k) {
        share[k] = shared[i + k * groups];
        row[k] = load(max(share[k].query, 0));
      }
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k) {
        if (share[k].query >= 0) add(row[k], share[k].weight);
      }
    }
    __syncwarp(WARP);
  }
}

// What a thread adds up of a pixel: some of its channels.
struct Slice {
  const Scalar* from;  // these channels of the first query
  int channel;
  bool active;
  Sum sum[VEC];
  __device__ __forceinline__ Slice(const Params& p, const Pixel& pixel, int c, bool present, const Scalar* grad_output)
      : channel(c), active(present && c < p.channels) {
    const long long row = (long long)p.first_image * p.queries * p.heads + p.first_head + pixel.head;
    from = whole_address(grad_output + (row * p.channels + c));
#pragma unroll
    for (int v = 0; v < VEC; ++v) sum[v] = Sum(0);
  }
  __device__ __forceinline__ void gather(const Params& p, const Runs& runs, int first, int step, int team_bits,
                                         const Way<Sum>* __restrict__ ways, Share<Sum>* shares) {
    gather_ways(
        runs, first, step, active, team_bits, p.lane_bits, ways, shares,
        [&](int query) {
          Channels grad;
          grad.load(row_of(p, from, query));
          return grad;
        },
        [&](const Channels& grad, Sum weight) {
#pragma unroll
          for (int v = 0; v < VEC; ++v) sum[v] += weight * widen(grad.lane[v]);
        });
  }
  // Those of the block's first warp become the sums of those of all.
  __device__ __forceinline__ void add_warps(Sum* sums) {
#pragma unroll
    for (int v = 0; v < VEC; ++v) sums[v * THREADS + threadIdx.x] = sum[v];
    __syncthreads();
    for (int other = threadIdx.x + 32; threadIdx.x < 32 && other < THREADS; other += 32) {
#pragma unroll
      for (int v = 0; v < VEC; ++v) sum[v] += sums[v * THREADS + other];
    }
    __syncthreads();
  }
  __device__ __forceinline__ void store(const Params& p, const Pixel& pixel, Scalar* grad_value) const {
    const long long image = p.first_image + pixel.image;
    const long long row = (image * p.pixels + pixel.number) * p.heads + p.first_head + pixel.head;
    Channels out;
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(out.lane[v], sum[v]);
    out.store(grad_value + (row * p.channels + channel));
  }
};

// grad_value = every pixel's share of the grad_output of the points that touched it. A group of lanes takes a head of a
// pixel, or lists it. Small levels, whose pixels have many points, come last and are begun first.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    gather_value(const Scalar* __restrict__ grad_output, const void* __restrict__ sizes, const int* __restrict__ ends,
                 const int* __restrict__ starts, const Way<Sum>* __restrict__ ways, int* __restrict__ counts,
                 int* __restrict__ many, int* __restrict__ very_many, Scalar* __restrict__ grad_value, const Params p) {
  DYNAMIC_SHARED(Level, levels);
  SHARED(Share<Sum>, shares, [FETCHED * THREADS]);
  load_levels(p, sizes, ends, levels);
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1), tasks = p.images * p.some_heads * p.pixels;
  const int number = blockIdx.x * (THREADS >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  const int task = number < tasks ? tasks - 1 - number : 0;
  Pixel pixel = pixel_of(p, levels, starts, task);
  bool present = number < tasks;
  if (pixel.runs.count > CROWD) {
    const bool large = pixel.runs.count > LARGE_CROWD;
    if (present && lane == 0) (large ? very_many : many)[atomicAdd(counts + large, 1)] = task;
    present = false;
  }
  if (!present) pixel.runs.count = 0;
  for (int c = lane * VEC; c - lane * VEC < p.channels; c += lanes * VEC) {
    Slice slice(p, pixel, c, present, grad_output);
    slice.gather(p, pixel.runs, 0, FETCHED << p.lane_bits, p.lane_bits, ways, shares);
    if (slice.active) slice.store(p, pixel, grad_value);
  }
}

// The same of those that were listed: by a warp each, or by a block where there are very many points.
extern "C" __global__ void __launch_bounds__(THREADS, CROWD_BLOCKS)
    gather_crowded(const Scalar* __restrict__ grad_output, const void* __restrict__ sizes, const int* __restrict__ ends,
                   const int* __restrict__ starts, const Way<Sum>* __restrict__ ways, const int* __restrict__ counts,
                   const int* __restrict__ many, const int* __restrict__ very_many, Scalar* __restrict__ grad_value,
                   const Params p) {
  constexpr int WARPS = THREADS / 32;
  DYNAMIC_SHARED(Level, levels);
  SHARED(Share<Sum>, shares, [FETCHED * THREADS]);
  SHARED(Sum, sums, [THREADS * VEC]);
  if ((__ldg(counts) | __ldg(counts + 1)) == 0) return;
  load_levels(p, sizes, ends, levels);
  const int lanes = 1 << p.lane_bits, thread = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int lane = thread & (lanes - 1);
#pragma unroll 1
  for (int by_block = 0; by_block < 2; ++by_block) {
    const int workers = by_block ? 1 : WARPS, part = by_block ? warp : 0, parts = by_block ? WARPS : 1;
    const int* tasks = by_block ? very_many : many;
    const int count = __ldg(counts + by_block);
#pragma unroll 1
    for (int i = blockIdx.x * workers + (by_block ? 0 : warp); i < count; i += gridDim.x * workers) {
      const Pixel pixel = pixel_of(p, levels, starts, __ldg(tasks + i));
      for (int c = lane * VEC; c - lane * VEC < p.channels; c += lanes * VEC) {
        Slice slice(p, pixel, c, true, grad_output);
        slice.gather(p, pixel.runs, part * 32 * FETCHED, parts * 32 * FETCHED, 5, ways, shares);
        group_sums(slice.sum, 32, lanes);
        if (by_block) slice.add_warps(sums);
        if (slice.active && thread < lanes && part == 0) slice.store(p, pixel, grad_value);
      }
    }
  }
}
