// Weighted sums of samples of several levels, and their transposes: a group of lanes takes a head of a query, each lane
// some of its channels and some of the geometry of its points.
//
// A task is (image, band of heads, query, head of the band), numbered in this order within a launch: what is at work at
// once reads few heads, of which caches hold more pixels. Queries of a grid come strip by strip. Values are
// [image][pixel][head][channel], locations [image][query][head][point] as (x, y), weights likewise, the output
// [image][query][head][channel].
// Locations and weights are of the storage type or of that of sums.
//
// SCALAR: storage type; VEC: channels a thread moves at once; GRID: where points are, see levels.cuh; MIXED: whether
// locations or weights may be of the type of sums where that is another.
#include "tasks.cuh"

// Blocks at once on a multiprocessor, at least: leaves a thread 64 registers, or 128; of the nearest pixels and for
// gradients of points 80.
constexpr int BLOCKS = sizeof(Sum) == 8 ? 2 : 4;
constexpr int BLOCKS_OF_NEAREST = sizeof(Sum) == 8 ? 2 : 3;
constexpr int BLOCKS_OF_GRADIENTS = sizeof(Sum) == 8 ? 2 : 3;
constexpr int MOST_PARTS = PARTS_BYTES / (4 * (int)sizeof(Sum) * THREADS);  // of dot products, at once, of a lane
constexpr int ROUNDS = sizeof(Sum) == 8 ? 1 : 3;  // of points, one of each lane, at once; odd

// Where the notes of a task begin, some for each of its lanes. An odd number of them apart, tasks of a warp find those
// of the same number in other banks; room for so many notes of each lane of a block is enough.
__device__ __forceinline__ int first_note_of(const Params& p, const Task& task, int of_each_lane) {
  return settled((threadIdx.x >> p.lane_bits) * (task.lanes * of_each_lane | 1));
}
template <int OF_EACH_LANE>
constexpr int ROOM = OF_EACH_LANE * THREADS + THREADS / 2;

template <int CORNERS>
__device__ __forceinline__ Sums<CORNERS> corner_weights(const Level& level, const Cell<Sum>& cell, Sum weight) {
  Sums<CORNERS> found;
  Sum along_y[2], along_x[2], share = weight;
  read_weights(cell.y, cell.ly, level.height, BORDER_ZEROS, along_y, share);
  read_weights(cell.x, cell.lx, level.width, BORDER_ZEROS, along_x, share);
#pragma unroll
  for (int k = 0; k < CORNERS; ++k) {
    found.corner[k] = CORNERS == 1 ? weight : along_y[k >> 1] * share * along_x[k & 1];
  }
  return found;
}

// What the lanes of a task need of its points, apart: the tasks of a warp find each of the two in banks of their own.
template <int CORNERS>
struct Notes {
  Corners<CORNERS> corners[ROOM<ROUNDS>];
  Sums<CORNERS> weights[ROOM<ROUNDS>];
};

template <int CORNERS>
__device__ __forceinline__ void sum_samples(const Scalar* __restrict__ value, const void* __restrict__ sizes,
                                            const int* __restrict__ ends, const void* __restrict__ locations,
                                            const void* __restrict__ weights, Scalar* __restrict__ output,
                                            const Params& p) {
  DYNAMIC_SHARED(Level, levels);
  SHARED(Notes<CORNERS>, notes, [1]);
  if (!GRID) load_levels(p, sizes, ends, levels);
  const Task task = task_of(p);
  const Shares shares = raw_shares_of(p, task, weights);
  Walk<CORNERS> walk(p, task, levels, locations, shares.given);
  const int first_note = first_note_of(p, task, ROUNDS);
  const unsigned below = settled((1u << (threadIdx.x & 31)) - 1u);
  const unsigned own = settled(((2u << (task.lanes - 1)) - 1u) << ((threadIdx.x - task.lane) & 31));
  const int c = (task.slice * task.lanes + task.lane) * VEC;
  const int active = settled(task.present && c < p.channels);
  const Scalar* from = whole_address(values_of(p, value, task) + c);
  Sum sum[VEC] = {}, total[1] = {};
  for (int first = 0; first < p.points;) {
    int end = first_note;  // of the notes of those points that read something: the loop over them has no branch
    for (int round = 0; round < ROUNDS && first < p.points; ++round, first += task.lanes) {
      const int point = first + task.lane;
      Sum weight;
      const Cell<Sum> cell = walk.step(p, task, point, weight);
      weight = shares.of(p, weight);
      if (point < p.points) total[0] += weight;
      const unsigned inside = __ballot_sync(WARP, cell.inside) & own;
      if (cell.inside) {
        const int note = end + __popc(inside & below);
        notes->corners[note] = corners_of<CORNERS>(walk.level, cell);
        notes->weights[note] = corner_weights<CORNERS>(walk.level, cell, weight);
      }
      end += __popc(inside);
    }
    __syncwarp(WARP);
    end = active ? end : first_note;
#pragma unroll(4 / CORNERS)
    for (int i = first_note; i < end; ++i) {
      const Corners<CORNERS> at = notes->corners[i];
      const Sums<CORNERS> share = notes->weights[i];
      Channels corner[CORNERS];
#pragma unroll
      for (int k = 0; k < CORNERS; ++k) corner[k].load(row_of(p, from, at.pixel[k]));
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) sum[v] += share.corner[k] * widen(corner[k].lane[v]);
      }
    }
    __syncwarp(WARP);
  }
  Sum scale = Sum(1);
  if (p.softmax) {
    group_sums(total, task.lanes);
    scale = Sum(1) / total[0];
  }
  if (active) {
    Channels out;
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(out.lane[v], sum[v] * scale);
    out.store(output + (task.number * p.channels + c));
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
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_NEAREST)
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
  const bool row[2] = {cell.y >= 0, cell.y < level.height - 1}, column[2] = {cell.x >= 0, cell.x < level.width - 1};
  Sum dot[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) dot[k] = row[k >> 1] && column[k & 1] ? dots[k % CORNERS] : Sum(0);
  const Sum up = Sum(1) - cell.ly, left = Sum(1) - cell.lx;
  const Sum above = left * dot[0] + cell.lx * dot[1], below = left * dot[2] + cell.lx * dot[3];
  found.value = up * above + cell.ly * below;
  found.along_y = (below - above) * (GRID ? scale_of<Sum>(p) : (Sum)level.height);
  found.along_x = (up * (dot[1] - dot[0]) + cell.ly * (dot[3] - dot[2])) * (GRID ? scale_of<Sum>(p) : (Sum)level.width);
  return found;
}

// A lane's share of a slice of the channels of a task: values and the gradient of the output.
struct Slice {
  bool active;
  const Scalar* from;
  Sum grad[VEC];
  __device__ __forceinline__ void load(const Params& p, int c, const Scalar* value, const Scalar* grad_output) {
    active = c < p.channels;
    from = whole_address(value + (active ? c : 0));
    Channels given;
    given.clear();
    if (active) given.load(grad_output + c);
#pragma unroll
    for (int v = 0; v < VEC; ++v) grad[v] = widen(given.lane[v]);
  }
};

// A lane's part of the dot products of the corners of one point with the gradient.
template <int CORNERS>
__device__ __forceinline__ Sums<CORNERS> dots_of(const Params& p, const Slice& slice, const Corners<CORNERS>& at) {
  Sums<CORNERS> dot = {};
  Channels corner[CORNERS];
#pragma unroll
  for (int k = 0; k < CORNERS; ++k) corner[k].load(row_of(p, slice.from, at.pixel[k]));
#pragma unroll
  for (int k = 0; k < CORNERS; ++k) {
#pragma unroll
    for (int v = 0; v < VEC; ++v) dot.corner[k] += slice.grad[v] * widen(corner[k].lane[v]);
  }
  return dot;
}

// Each lane's dot products of one point of a round. Every lane leaves its parts of those of some points in `parts`, and
// adds up all parts of its own point.
template <int CORNERS>
__device__ __forceinline__ void add_dots(const Params& p, const Task& task, const Slice& slice,
                                         const Corners<CORNERS>* corners, int count, Sums<CORNERS>* parts,
                                         Sum (&mine)[CORNERS]) {
  for (int start = 0; start < count; start += MOST_PARTS) {
    const int some = min(MOST_PARTS, count - start);
    if (slice.active) {
#pragma unroll 1
      for (int i = 0; i < some; ++i) parts[i * THREADS + task.lane] = dots_of(p, slice, corners[start + i]);
    } else {  // not 0 * pixel, which may be infinite
#pragma unroll 1
      for (int i = 0; i < some; ++i) parts[i * THREADS + task.lane] = Sums<CORNERS>{};
    }
    __syncwarp(WARP);
    if (task.lane >= start && task.lane < start + some) {
      const Sums<CORNERS>* own = parts + (task.lane - start) * THREADS;
#pragma unroll 2
      for (int j = 0; j < task.lanes; ++j) {
        const Sums<CORNERS> part = own[task.lane ^ j];  // in other banks than those that other lanes read now
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) mine[k] += part.corner[k];
      }
    }
    __syncwarp(WARP);
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
  SHARED(Corners<CORNERS>, notes, [ROOM<1>]);
  if (!GRID) load_levels(p, sizes, ends, levels);
  const Task task = task_of(p);
  const int first_note = first_note_of(p, task, 1);
  Sums<CORNERS>* const parts = reinterpret_cast<Sums<CORNERS>*>(levels + p.levels) + (threadIdx.x - task.lane);
  const Shares shares = shares_of(p, task, weights);
  Walk<CORNERS> walk(p, task, levels, locations, shares.given);
  const Scalar* const own_value = whole_address(values_of(p, value, task));
  const Scalar* const own_grad = whole_address(grad_output + task.number * p.channels);
  const Written of_locations(static_cast<char*>(grad_locations), locations_of(p, task), p.location_is_wide);
  const Written of_weights(static_cast<char*>(grad_weights), weights_of(p, task), p.weight_is_wide);
  const long long local_row = (long long)task.local * p.points;
  Slice slice;
  slice.load(p, task.lane * VEC, own_value, own_grad);
  Sum total[1] = {};
  for (int first = 0; first < p.points; first += task.lanes) {
    const int point = first + task.lane;
    Sum weight;
    const Cell<Sum> cell = walk.step(p, task, point, weight);
    Corners<CORNERS> corners = {};  // outside: of the first pixel, and what comes of it is not used
    if (cell.inside) corners = corners_of<CORNERS>(walk.level, cell);
    notes[first_note + task.lane] = corners;
    __syncwarp(WARP);
    Sum dots[CORNERS] = {};
    const int count = min(p.points - first, task.lanes);
    for (int c = 0; c < p.channels; c += task.lanes * VEC) {
      if (p.channels > task.lanes * VEC) slice.load(p, c + task.lane * VEC, own_value, own_grad);
      add_dots(p, task, slice, notes + first_note, count, parts, dots);
    }
    if (!task.present || point >= p.points) continue;
    const Slopes found = slopes_of(p, walk.level, cell, dots);
    weight = shares.of(p, weight);
    if (grad_locations) {
      of_locations.write(2 * point, {cell.inside ? weight * found.along_x : Sum(0),
                                     cell.inside ? weight * found.along_y : Sum(0)});
    }
    if (samples) samples[local_row + point] = found.value;
    if (grad_weights && !samples) of_weights.write(point, {found.value});
    total[0] += weight * found.value;
  }
  if (!samples) return;
  group_sums(total, task.lanes);
  if (!task.present) return;
  for (int point = task.lane; point < p.points; point += task.lanes) {
    const Sum grad = shares(p, point) * (samples[local_row + point] - total[0]);
    of_weights.write(point, {grad});
  }
}

// Gradients of locations and weights; each may be null. samples: room for those of a softmax, or null
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_GRADIENTS)
    point_gradients(const Scalar* __restrict__ value, const void* __restrict__ sizes, const int* __restrict__ ends,
                    const void* __restrict__ locations, const void* __restrict__ weights,
                    const Scalar* __restrict__ grad_output, void* __restrict__ grad_locations,
                    void* __restrict__ grad_weights, Sum* __restrict__ samples, const Params p) {
  differentiate<4>(value, sizes, ends, locations, weights, grad_output, grad_locations, grad_weights, samples, p);
}

// The same of the nearest pixels
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_GRADIENTS)
    point_gradients_nearest(const Scalar* __restrict__ value, const void* __restrict__ sizes,
                            const int* __restrict__ ends, const void* __restrict__ locations,
                            const void* __restrict__ weights, const Scalar* __restrict__ grad_output,
                            void* __restrict__ grad_locations, void* __restrict__ grad_weights,
                            Sum* __restrict__ samples, const Params p) {
  differentiate<1>(value, sizes, ends, locations, weights, grad_output, grad_locations, grad_weights, samples, p);
}
