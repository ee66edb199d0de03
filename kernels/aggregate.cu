// Weighted sums of samples of several levels, and their transposes: a group of lanes takes a head of a query, each lane
// some of its channels and some of the geometry of its points.
//
// A task is (image, query, head), numbered in this order within a launch. Values are [image][pixel][head][channel],
// locations [image][query][head][point] as (x, y), weights likewise, the output [image][query][head][channel].
// Locations and weights are of the storage type or of that of sums, which is no other unit: they are read once.
//
// SCALAR: storage type; VEC: channels a thread moves at once; GRID: where points are, see levels.cuh.
#include "buckets.cuh"
#include "levels.cuh"

using Scalar = SCALAR;
using Sum = SumOf<Scalar>::type;
using Channels = Pack<Scalar, VEC>;

// Blocks at once on a multiprocessor, at least: leaves a thread 64 registers, or 128.
constexpr int BLOCKS = sizeof(Sum) == 8 ? 2 : 4;
constexpr unsigned WARP = 0xffffffffu;

struct Task {
  int lanes, lane;
  bool present;
  int local, query, image;  // number, query and image of this launch
  int head;
  long long row, number;  // query, and task, of all in the arrays
  int base_y, base_x;     // of the query's window in a grid
};

// A task that is not there stands for the first, of which it stores nothing.
__device__ __forceinline__ Task task_of(const Params& p) {
  Task task;
  task.lanes = 1 << p.lane_bits;
  task.lane = threadIdx.x & (task.lanes - 1);
  const int local = blockIdx.x * (THREADS >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  task.present = local < p.images * p.queries * p.some_heads;
  task.local = task.present ? local : 0;
  task.query = quotient(task.local, p.some_heads);
  task.image = quotient(task.query, p.queries);
  task.head = p.first_head + task.local - task.query * p.some_heads;
  task.row = (long long)p.first_image * p.queries + task.query;
  task.number = task.row * p.heads + task.head;
  const int pixel = task.query - task.image * p.queries, i = GRID ? quotient(pixel, p.out_width) : 0;
  task.base_y = i * p.stride_y + p.origin_y;
  task.base_x = (pixel - i * p.out_width) * p.stride_x + p.origin_x;
  return task;
}

// The values of a task's head and image.
__device__ __forceinline__ const Scalar* values_of(const Params& p, const Scalar* value, const Task& task) {
  return value + ((long long)(p.first_image + task.image) * p.pixels * p.heads + task.head) * p.channels;
}

__device__ __forceinline__ Sum read_either(const void* from, long long at, bool is_wide) {
  return is_wide ? read(static_cast<const Sum*>(from) + at) : read(static_cast<const Scalar*>(from) + at);
}

__device__ __forceinline__ void write_either(void* to, long long at, bool is_wide, Sum value) {
  if (is_wide) {
    narrow(static_cast<Sum*>(to)[at], value);
  } else {
    narrow(static_cast<Scalar*>(to)[at], value);
  }
}

// Where a task's locations and weights begin.
__device__ __forceinline__ long long locations_of(const Params& p, const Task& task) {
  return task.row * p.location_query + (long long)task.head * p.location_head;
}
__device__ __forceinline__ long long weights_of(const Params& p, const Task& task) {
  return task.row * p.weight_query + (long long)task.head * p.weight_head;
}

// How the weights of a task's points follow from what is given: by themselves, or as a softmax.
struct Shares {
  const void* given;
  long long first;
  Sum most, scale;
  __device__ __forceinline__ Sum raw(const Params& p, int point) const {
    return read_either(given, first + point, p.weight_is_wide);
  }
  __device__ __forceinline__ Sum operator()(const Params& p, int point) const {
    const Sum weight = raw(p, point);
    return p.softmax ? exp(weight - most) * scale : weight;
  }
};

__device__ __forceinline__ Shares shares_of(const Params& p, const Task& task, const void* __restrict__ weights) {
  Shares shares = {weights, weights_of(p, task), Sum(0), Sum(1)};
  if (!p.softmax) return shares;
  Sum most = shares.raw(p, 0);
  for (int point = task.lane; point < p.points; point += task.lanes) most = max(most, shares.raw(p, point));
  for (int step = task.lanes / 2; step > 0; step /= 2) most = max(most, __shfl_xor_sync(WARP, most, step));
  Sum total[1] = {};
  for (int point = task.lane; point < p.points; point += task.lanes) total[0] += exp(shares.raw(p, point) - most);
  group_sums(total, task.lanes);
  shares.most = most;
  shares.scale = Sum(1) / total[0];
  return shares;
}

// The cell of a task's point. `level` is that of an earlier point, and becomes that of this one.
__device__ __forceinline__ Cell<Sum> cell_of(const Params& p, const Task& task, const Level* levels, int& level,
                                             const void* __restrict__ locations, int point) {
  while (point >= levels[level].end) ++level;
  const long long at = locations_of(p, task) + 2 * point;
  const Sum x = read_either(locations, at, p.location_is_wide);
  const Sum y = read_either(locations, at + 1, p.location_is_wide);
  if (GRID) return cell_beside(p, levels[level], task.base_y, task.base_x, point, y, x);
  return cell_in(p, levels[level], y, x);
}

// The pixels of a point that are read: four, or one of the nearest.
template <int CORNERS>
struct alignas(4 * CORNERS) Corners {
  int pixel[CORNERS];
};

template <int CORNERS>
__device__ __forceinline__ Corners<CORNERS> corners_of(const Level& level, const Cell<Sum>& cell) {
  Corners<CORNERS> corners;
#pragma unroll
  for (int k = 0; k < CORNERS; ++k) {
    corners.pixel[k] = level.first + corner_pixel(cell, k, level.height, level.width);
  }
  return corners;
}

// What the lanes of a task need of a point that reads something.
template <int CORNERS>
struct alignas(16) Footprint {
  Corners<CORNERS> corners;
  Sum weight[CORNERS];
};

template <int CORNERS>
__device__ __forceinline__ Footprint<CORNERS> footprint_of(const Level& level, const Cell<Sum>& cell, Sum weight) {
  Footprint<CORNERS> f;
  f.corners = corners_of<CORNERS>(level, cell);
  Sum along_y[2], along_x[2], share = weight;
  read_weights(cell.y, cell.ly, level.height, BORDER_ZEROS, along_y, share);
  read_weights(cell.x, cell.lx, level.width, BORDER_ZEROS, along_x, share);
#pragma unroll
  for (int k = 0; k < CORNERS; ++k) f.weight[k] = CORNERS == 1 ? weight : along_y[k >> 1] * along_x[k & 1] * share;
  return f;
}

template <int CORNERS>
__device__ __forceinline__ void sum_samples(const Scalar* __restrict__ value, const void* __restrict__ sizes,
                                            const int* __restrict__ ends, const void* __restrict__ locations,
                                            const void* __restrict__ weights, Scalar* __restrict__ output,
                                            const Params& p) {
  DYNAMIC_SHARED(Level, levels);
  SHARED(Footprint<CORNERS>, notes, [THREADS]);
  load_levels(p, sizes, ends, levels);
  const Task task = task_of(p);
  const Shares shares = shares_of(p, task, weights);
  Footprint<CORNERS>* const shared = notes + (threadIdx.x - task.lane);
  const int first_lane = (threadIdx.x & 31) - task.lane;
  for (int slice = 0; slice < p.channels; slice += task.lanes * VEC) {
    const int c = slice + task.lane * VEC;
    const bool active = task.present && c < p.channels;
    const Scalar* from = values_of(p, value, task) + c;
    Sum sum[VEC] = {};
    int level = 0;
    for (int first = 0; first < p.points; first += task.lanes) {
      const int point = first + task.lane;
      Cell<Sum> cell = {};
      if (point < p.points) cell = cell_of(p, task, levels, level, locations, point);
      // Of the points that read something, so that the loop over them has no branch.
      const unsigned inside = (__ballot_sync(WARP, cell.inside) >> first_lane) & ((2u << (task.lanes - 1)) - 1u);
      if (cell.inside) {
        const Footprint<CORNERS> f = footprint_of<CORNERS>(levels[level], cell, shares(p, point));
        shared[__popc(inside & ((1u << task.lane) - 1u))] = f;
      }
      __syncwarp(WARP);
      const int count = active ? __popc(inside) : 0;
#pragma unroll(4 / CORNERS)
      for (int i = 0; i < count; ++i) {
        const Footprint<CORNERS> f = shared[i];
        Channels corner[CORNERS];
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) corner[k].load(row_of(p, from, f.corners.pixel[k]));
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
#pragma unroll
          for (int k = 0; k < CORNERS; ++k) sum[v] += f.weight[k] * widen(corner[k].lane[v]);
        }
      }
      __syncwarp(WARP);
    }
    if (active) {
      Channels out;
#pragma unroll
      for (int v = 0; v < VEC; ++v) narrow(out.lane[v], sum[v]);
      out.store(output + (task.number * p.channels + c));
    }
  }
}

// output = weighted sums of the samples of all points
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    aggregate(const Scalar* __restrict__ value, const void* __restrict__ sizes, const int* __restrict__ ends,
              const void* __restrict__ locations, const void* __restrict__ weights, Scalar* __restrict__ output,
              const Params p) {
  sum_samples<4>(value, sizes, ends, locations, weights, output, p);
}

// The same of the nearest pixels
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    aggregate_nearest(const Scalar* __restrict__ value, const void* __restrict__ sizes, const int* __restrict__ ends,
                      const void* __restrict__ locations, const void* __restrict__ weights,
                      Scalar* __restrict__ output, const Params p) {
  sum_samples<1>(value, sizes, ends, locations, weights, output, p);
}

// A sample and its slopes along what is given from the dot products of its corners with the gradient.
struct Slopes {
  Sum value, along_y, along_x;
};

template <int CORNERS>
__device__ __forceinline__ Slopes slopes_of(const Params& p, const Level& level, const Cell<Sum>& cell,
                                            const Sum (&dots)[CORNERS]) {
  Slopes found = {Sum(0), Sum(0), Sum(0)};
  if (!cell.inside) return found;
  if (CORNERS == 1) return {dots[0], Sum(0), Sum(0)};
  Sum dot[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    dot[k] = corner_exists(cell, k, level.height, level.width) ? dots[k % CORNERS] : Sum(0);
    found.value += corner_weight(cell.ly, cell.lx, k) * dot[k];
  }
  slopes(cell, dot, found.along_y, found.along_x);
  found.along_y *= GRID ? (Sum)p.offset_scale : (Sum)level.height;
  found.along_x *= GRID ? (Sum)p.offset_scale : (Sum)level.width;
  return found;
}

// Each lane's dot products of the corners of one point of a round with the gradient of the output.
template <int CORNERS>
__device__ __forceinline__ void dot_corners(const Params& p, const Task& task, const Corners<CORNERS>* shared, int count,
                                            const Scalar* __restrict__ value, const Scalar* __restrict__ grad_output,
                                            Sum (&mine)[CORNERS]) {
  for (int slice = 0; slice < p.channels; slice += task.lanes * VEC) {
    const int c = slice + task.lane * VEC;
    const bool active = c < p.channels;
    const Scalar* from = values_of(p, value, task) + (active ? c : 0);
    Channels grad;
    grad.clear();
    if (active) grad.load(grad_output + (task.number * p.channels + c));
    for (int i = 0; i < count; ++i) {
      const Corners<CORNERS> corners = shared[i];
      Sum dot[CORNERS] = {};
      Channels corner[CORNERS];
#pragma unroll
      for (int k = 0; k < CORNERS; ++k) corner[k].load(row_of(p, from, corners.pixel[k]));
#pragma unroll
      for (int k = 0; k < CORNERS; ++k) {
#pragma unroll
        for (int v = 0; v < VEC; ++v) dot[k] += widen(grad.lane[v]) * widen(corner[k].lane[v]);
        if (!active) dot[k] = Sum(0);  // not 0 * pixel, which may be infinite
      }
      group_sums(dot, task.lanes);
      if (i == task.lane) {
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) mine[k] += dot[k];
      }
    }
  }
}

template <int CORNERS>
__device__ __forceinline__ void differentiate(const Scalar* __restrict__ value, const void* __restrict__ sizes,
                                              const int* __restrict__ ends, const void* __restrict__ locations,
                                              const void* __restrict__ weights,
                                              const Scalar* __restrict__ grad_output,
                                              void* __restrict__ grad_locations, void* __restrict__ grad_weights,
                                              Sum* __restrict__ samples, const Params& p) {
  DYNAMIC_SHARED(Level, levels);
  SHARED(Corners<CORNERS>, notes, [THREADS]);
  load_levels(p, sizes, ends, levels);
  const Task task = task_of(p);
  const Shares shares = shares_of(p, task, weights);
  Corners<CORNERS>* const shared = notes + (threadIdx.x - task.lane);
  const long long row = weights_of(p, task), local_row = (long long)task.local * p.points;
  Sum total[1] = {};
  int level = 0;
  for (int first = 0; first < p.points; first += task.lanes) {
    const int point = first + task.lane;
    const bool mine = task.present && point < p.points;
    Cell<Sum> cell = {};
    Corners<CORNERS> corners = {};  // outside: of the first pixel, and what comes of it is not used
    if (point < p.points) cell = cell_of(p, task, levels, level, locations, point);
    if (cell.inside) corners = corners_of<CORNERS>(levels[level], cell);
    shared[task.lane] = corners;
    __syncwarp(WARP);
    Sum dots[CORNERS] = {};
    dot_corners(p, task, shared, min(p.points - first, task.lanes), value, grad_output, dots);
    __syncwarp(WARP);
    if (!mine) continue;
    const Slopes found = slopes_of(p, levels[level], cell, dots);
    const Sum weight = shares(p, point);
    if (grad_locations) {
      const long long at = locations_of(p, task) + 2 * point;
      write_either(grad_locations, at, p.location_is_wide, cell.inside ? weight * found.along_x : Sum(0));
      write_either(grad_locations, at + 1, p.location_is_wide, cell.inside ? weight * found.along_y : Sum(0));
    }
    if (samples) samples[local_row + point] = found.value;
    if (grad_weights && !samples) write_either(grad_weights, row + point, p.weight_is_wide, found.value);
    total[0] += weight * found.value;
  }
  if (!samples) return;
  group_sums(total, task.lanes);
  if (!task.present) return;
  for (int point = task.lane; point < p.points; point += task.lanes) {
    const Sum grad = shares(p, point) * (samples[local_row + point] - total[0]);
    write_either(grad_weights, row + point, p.weight_is_wide, grad);
  }
}

// Gradients of locations and weights; each may be null. samples: room for those of a softmax, or null
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    point_gradients(const Scalar* __restrict__ value, const void* __restrict__ sizes, const int* __restrict__ ends,
                    const void* __restrict__ locations, const void* __restrict__ weights,
                    const Scalar* __restrict__ grad_output, void* __restrict__ grad_locations,
                    void* __restrict__ grad_weights, Sum* __restrict__ samples, const Params p) {
  differentiate<4>(value, sizes, ends, locations, weights, grad_output, grad_locations, grad_weights, samples, p);
}

// The same of the nearest pixels
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    point_gradients_nearest(const Scalar* __restrict__ value, const void* __restrict__ sizes,
                            const int* __restrict__ ends, const void* __restrict__ locations,
                            const void* __restrict__ weights, const Scalar* __restrict__ grad_output,
                            void* __restrict__ grad_locations, void* __restrict__ grad_weights,
                            Sum* __restrict__ samples, const Params p) {
  differentiate<1>(value, sizes, ends, locations, weights, grad_output, grad_locations, grad_weights, samples, p);
}

// The key of every point, (image, head, pixel), and how many with it were counted before
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    point_keys(const void* __restrict__ sizes, const int* __restrict__ ends, const void* __restrict__ locations,
               int* __restrict__ keys, int* __restrict__ counts, int* __restrict__ ranks, const Params p) {
  DYNAMIC_SHARED(Level, levels);
  load_levels(p, sizes, ends, levels);
  const Task task = task_of(p);
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
    }
    const int rank = count_point(key, slots * p.pixels, counts);
    if (!mine) continue;
    keys[number] = key;
    ranks[number] = rank;
  }
}

// Places the ways of all points, from the pixels of their keys.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    place_ways(const void* __restrict__ sizes, const int* __restrict__ ends, const void* __restrict__ locations,
               const void* __restrict__ weights, const int* __restrict__ keys, const int* __restrict__ ranks,
               const int* __restrict__ starts, int* __restrict__ numbers, Way<Sum>* __restrict__ ways, const Params p) {
  DYNAMIC_SHARED(Level, levels);
  load_levels(p, sizes, ends, levels);
  const Task task = task_of(p);
  const Shares shares = shares_of(p, task, weights);
  if (!task.present) return;
  const Places<Way<Sum>> places = {starts, numbers, ways};
  const int none = p.images * p.some_heads * p.pixels;
  int level = 0;
  for (int point = task.lane; point < p.points; point += task.lanes) {
    const int number = task.local * p.points + point, key = __ldg(keys + number);
    const Cell<Sum> cell = cell_of(p, task, levels, level, locations, point);
    if (key == none) continue;
    places.put(key, __ldg(ranks + number), number,
               {way_along(cell.y, cell.ly), way_along(cell.x, cell.lx), shares(p, point), task.query});
  }
}
