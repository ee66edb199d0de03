// Tasks of the kernels of aggregate.cu, which describes them, and the points of one: what is given of them, where they
// are, and the pixels that they read.
#pragma once
#include "levels.cuh"

using Scalar = SCALAR;
using Sum = SumOf<Scalar>::type;
using Channels = Pack<Scalar, VEC>;

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
  task.lanes = settled(1 << p.lane_bits);
  task.lane = settled(threadIdx.x & (task.lanes - 1));
  const int local = blockIdx.x * (THREADS >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  task.present = local < p.images * p.queries * p.some_heads;
  task.local = task.present ? local : 0;
  const int beside = quotient(task.local, p.band), band = quotient(beside, p.queries);
  const int pixel = beside - band * p.queries, i = GRID ? quotient(pixel, p.out_width) : 0;
  task.image = quotient(band, p.bands);
  task.head = settled(p.first_head + (band - task.image * p.bands) * p.band + task.local - beside * p.band);
  task.query = settled(task.image * p.queries + pixel);
  task.row = (long long)p.first_image * p.queries + task.query;
  task.number = task.row * p.heads + task.head;
  task.base_y = settled(i * p.stride_y + p.origin_y);
  task.base_x = settled((pixel - i * p.out_width) * p.stride_x + p.origin_x);
  return task;
}

// The values of a task's head and image.
__device__ __forceinline__ const Scalar* values_of(const Params& p, const Scalar* value, const Task& task) {
  return value + ((long long)(p.first_image + task.image) * p.pixels * p.heads + task.head) * p.channels;
}

// Row `row` of an array of all heads: in bytes, which is one multiplication and addition.
__device__ __forceinline__ const Scalar* row_of(const Params& p, const Scalar* from, int row) {
  const unsigned bytes = (unsigned)(p.heads * p.channels) * (unsigned)sizeof(Scalar);
  return reinterpret_cast<const Scalar*>(reinterpret_cast<const char*>(from) + whole_product(row, bytes));
}

// A number of either type as it is in memory: what waits for it is done where it is used.
template <class Storage>
struct Either {
  Sum number;
  __device__ __forceinline__ void load(const void* from, int k, bool) { number = __ldg(static_cast<const Sum*>(from) + k); }
  __device__ __forceinline__ Sum get(bool) const { return number; }
};
template <class Storage>
struct EitherOfTwo {
  unsigned bits;
  __device__ __forceinline__ void load(const void* from, int k, bool is_wide) {
    if (is_wide) {
      bits = __ldg(static_cast<const unsigned*>(from) + k);
    } else {
      bits = __ldg(static_cast<const unsigned short*>(from) + k);
    }
  }
  __device__ __forceinline__ Sum get(bool is_wide) const {
    return is_wide ? __uint_as_float(bits) : widen(Storage{(unsigned short)bits});
  }
};
template <>
struct Either<float16> : EitherOfTwo<float16> {};
template <>
struct Either<bfloat16> : EitherOfTwo<bfloat16> {};
using Given = Either<Scalar>;

// Neighbours in memory, of the storage type or of that of sums.
struct Numbers {
  const char* first;
  bool are_wide;
  __device__ __forceinline__ Numbers(const void* array, long long at, bool are_wide) : are_wide(are_wide) {
    first = whole_address(static_cast<const char*>(array) + at * bytes());
  }
  __device__ __forceinline__ int bytes() const { return are_wide ? (int)sizeof(Sum) : (int)sizeof(Scalar); }
  template <int N>
  __device__ __forceinline__ void read(int at, Given (&out)[N]) const {
    const void* from = first + whole_product(at, bytes());
#pragma unroll
    for (int k = 0; k < N; ++k) out[k].load(from, k, are_wide);
  }
  __device__ __forceinline__ Sum operator[](int at) const {
    Given one[1];
    read(at, one);
    return one[0].get(are_wide);
  }
};

// The same, which are written.
struct Written {
  char* first;
  bool are_wide;
  __device__ __forceinline__ Written(void* array, long long at, bool are_wide) : are_wide(are_wide) {
    first = whole_address(static_cast<char*>(array) + at * (are_wide ? (int)sizeof(Sum) : (int)sizeof(Scalar)));
  }
  template <int N>
  __device__ __forceinline__ void write(int at, const Sum (&numbers)[N]) const {
    void* to = first + whole_product(at, are_wide ? (int)sizeof(Sum) : (int)sizeof(Scalar));
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (are_wide) {
        narrow(static_cast<Sum*>(to)[k], numbers[k]);
      } else {
        narrow(static_cast<Scalar*>(to)[k], numbers[k]);
      }
    }
  }
};

// Where a task's locations and weights begin.
__device__ __forceinline__ long long locations_of(const Params& p, const Task& task) {
  return task.row * p.location_query + (long long)task.head * p.location_head;
}
__device__ __forceinline__ long long weights_of(const Params& p, const Task& task) {
  return task.row * p.weight_query + (long long)task.head * p.weight_head;
}

// How the weights of a task's points follow from what is given: by themselves, or as a softmax.
struct Shares {
  Numbers given;
  Sum most, scale;
  __device__ __forceinline__ Sum of(const Params& p, Sum weight) const {
    return p.softmax ? exp(weight - most) * scale : weight;
  }
  __device__ __forceinline__ Sum operator()(const Params& p, int point) const { return of(p, given[point]); }
};

// Those of a softmax that are not yet divided by their sum.
__device__ __forceinline__ Shares raw_shares_of(const Params& p, const Task& task, const void* __restrict__ weights) {
  Shares shares = {Numbers(weights, weights_of(p, task), p.weight_is_wide), Sum(0), Sum(1)};
  if (!p.softmax) return shares;
  Sum most = shares.given[0];
  for (int point = task.lane; point < p.points; point += task.lanes) most = max(most, shares.given[point]);
  for (int step = task.lanes / 2; step > 0; step /= 2) most = max(most, __shfl_xor_sync(WARP, most, step));
  shares.most = most;
  return shares;
}

__device__ __forceinline__ Shares shares_of(const Params& p, const Task& task, const void* __restrict__ weights) {
  Shares shares = raw_shares_of(p, task, weights);
  if (!p.softmax) return shares;
  Sum total[1] = {};
  for (int point = task.lane; point < p.points; point += task.lanes) total[0] += shares(p, point);
  group_sums(total, task.lanes);
  shares.scale = Sum(1) / total[0];
  return shares;
}

// The cell of a task's point. `level` is that of an earlier point, and becomes that of this one.
__device__ __forceinline__ Cell<Sum> cell_of(const Params& p, const Task& task, const Level* levels, int& level,
                                             const void* __restrict__ locations, int point) {
  while (point >= levels[level].end) ++level;
  const Numbers given(locations, locations_of(p, task), p.location_is_wide);
  const Sum x = given[2 * point], y = given[2 * point + 1];
  if (GRID) return cell_beside(p, levels[level], task.base_y, task.base_x, point, y, x);
  return cell_in(levels[level], y, x, p.nearest);
}

// The points of a task as one of its lanes goes through them.
template <int CORNERS>
struct Walk {
  const Level* levels;
  int number;
  Level level;  // that of the last point
  Numbers locations, weights;
  Given place[2], weight[1];  // of the next point
  __device__ __forceinline__ Walk(const Params& p, const Task& task, const Level* levels,
                                  const void* __restrict__ locations, const Numbers& weights)
      : levels(levels), locations(locations, locations_of(p, task), p.location_is_wide), weights(weights) {
    start(p, task);
  }
  __device__ __forceinline__ void start(const Params& p, const Task& task) {
    number = -1;
    level = GRID ? Level{p.heights[0], p.widths[0], 0, p.points} : Level{};
    read(p, task.lane);
  }
  __device__ __forceinline__ void read(const Params& p, int point) {
    if (point >= p.points) return;
    locations.read(2 * point, place);
    weights.read(point, weight);
  }
  // The cell and the weight of a point, which is the next. Its successor is asked for, and comes while these are used.
  __device__ __forceinline__ Cell<Sum> step(const Params& p, const Task& task, int point, Sum& given) {
    const Sum x = place[0].get(locations.are_wide), y = place[1].get(locations.are_wide);
    given = weight[0].get(weights.are_wide);
    read(p, point + task.lanes);
    const bool exists = point < p.points;
    while (!GRID && exists && point >= level.end) level = levels[++number];
    Cell<Sum> cell = GRID ? cell_beside(p, level, task.base_y, task.base_x, point, y, x)
                          : cell_in(level, y, x, CORNERS == 1);
    cell.inside &= exists;
    return cell;
  }
};

// The pixels of a point that are read: four, or one of the nearest.
template <int CORNERS>
struct alignas(4 * CORNERS) Corners {
  int pixel[CORNERS];
};

// Of a point inside. A corner outside stands for the nearest pixel, see corner_pixel.
template <int CORNERS>
__device__ __forceinline__ Corners<CORNERS> corners_of(const Level& level, const Cell<Sum>& cell) {
  const int y[2] = {max(cell.y, 0), min(cell.y + 1, level.height - 1)};
  const int x[2] = {max(cell.x, 0), min(cell.x + 1, level.width - 1)};
  Corners<CORNERS> corners;
#pragma unroll
  for (int k = 0; k < CORNERS; ++k) corners.pixel[k] = y[k >> 1] * level.width + (level.first + x[k & 1]);
  return corners;
}

// Numbers of each of them.
template <int CORNERS>
struct alignas(CORNERS == 4 ? 16 : sizeof(Sum)) Sums {
  Sum corner[CORNERS];
};
