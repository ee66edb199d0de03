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
  int slice;  // of the channels
  bool present;
  int local, query, image;  // number, query and image of this launch
  int head;
  long long row, number;  // query, and task, of all in the arrays
  int base_y, base_x;     // of the query's window in a grid
};

// Pixel number `task` of those of a grid, in the order of tasks.
struct OutputPixel {
  int i, j;
};

__device__ __forceinline__ OutputPixel pixel_of(const Params& p, int task) {
  const int strip = quotient(task, p.strip_pixels), rest = task - strip * p.strip_pixels;
  const Divisor width = strip < p.full_strips ? p.strip_width : p.last_width;
  const int i = quotient(rest, width);
  return {i, strip * p.strip_width + rest - i * width};
}

// A task that is not there stands for the first, of which it stores nothing.
__device__ __forceinline__ Task task_of(const Params& p) {
  Task task;
  task.lanes = settled(1 << p.lane_bits);
  task.lane = settled(threadIdx.x & (task.lanes - 1));
  const int team = blockIdx.x * (THREADS >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  const int local = team >> p.slice_bits;
  task.slice = team & ((1 << p.slice_bits) - 1);
  task.present = local < p.images * p.queries * p.some_heads;
  task.local = task.present ? local : 0;
  const int beside = quotient(task.local, p.band), band = quotient(beside, p.queries);
  task.image = quotient(band, p.bands);
  task.head = settled(p.first_head + (band - task.image * p.bands) * p.band + task.local - beside * p.band);
  int number = beside - band * p.queries;
  if (GRID) {
    const OutputPixel pixel = pixel_of(p, number);
    number = pixel.i * p.out_width + pixel.j;
    task.base_y = settled(pixel.i * p.stride_y + p.origin_y);
    task.base_x = settled(pixel.j * p.stride_x + p.origin_x);
  }
  task.query = settled(task.image * p.queries + number);
  task.row = (long long)p.first_image * p.queries + task.query;
  task.number = task.row * p.heads + task.head;
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

// Coordinates of a grid may begin anywhere, and are moved one by one; others in pairs.
constexpr int MOST_AT_ONCE = GRID ? 1 : 2;

// A number of either type as it came from memory, number k of a few: what waits for it is done where it is used.
template <class Storage>
struct Either {
  Sum number;
  template <int N>
  __device__ __forceinline__ void set(const Pack<Sum, N>& some, int k) {
    number = some.lane[k % N];
  }
  __device__ __forceinline__ Sum get(bool, int) const { return number; }
};
template <class Storage>
struct EitherOfTwo {
  unsigned bits;
  template <int N>
  __device__ __forceinline__ void set(const Pack<float, N>& some, int k) {
    bits = __float_as_uint(some.lane[k % N]);
  }
  template <int N>
  __device__ __forceinline__ void set(const Pack<Storage, N>& some, int) {
    bits = some.word;  // of two numbers both, so that nothing waits here
  }
  __device__ __forceinline__ Sum get(bool is_wide, int k) const {
    return is_wide ? __uint_as_float(bits) : widen(Storage{(unsigned short)(bits >> 16 * (k % MOST_AT_ONCE))});
  }
};
template <>
struct Either<float16> : EitherOfTwo<float16> {};
template <>
struct Either<bfloat16> : EitherOfTwo<bfloat16> {};
using Given = Either<Scalar>;

// Neighbours in memory, of the storage type or of that of sums.
template <class Byte>
struct Numbers {
  Byte* first;
  bool are_wide;
  __device__ __forceinline__ Numbers(Byte* array, long long at, bool are_wide) : are_wide(MIXED && are_wide) {
    first = whole_address(array + at * bytes());
  }
  __device__ __forceinline__ int bytes() const { return are_wide ? (int)sizeof(Sum) : (int)sizeof(Scalar); }
  template <int N>
  __device__ __forceinline__ void read(int at, Given (&out)[N]) const {
    const Byte* from = first + whole_product(at, bytes());
    are_wide ? load(reinterpret_cast<const Sum*>(from), out) : load(reinterpret_cast<const Scalar*>(from), out);
  }
  __device__ __forceinline__ Sum operator[](int at) const {
    Given one[1];
    read(at, one);
    return one[0].get(are_wide, 0);
  }
  template <int N>
  __device__ __forceinline__ void write(int at, const Sum (&numbers)[N]) const {
    Byte* to = first + whole_product(at, bytes());
    are_wide ? store(reinterpret_cast<Sum*>(to), numbers) : store(reinterpret_cast<Scalar*>(to), numbers);
  }

 private:
  template <class T, int N>
  __device__ __forceinline__ static void load(const T* from, Given (&out)[N]) {
    constexpr int AT_ONCE = N < MOST_AT_ONCE ? N : MOST_AT_ONCE;
#pragma unroll
    for (int k = 0; k < N; k += AT_ONCE) {
      Pack<T, AT_ONCE> some;
      some.load(from + k);
#pragma unroll
      for (int j = k; j < k + AT_ONCE; ++j) out[j].set(some, j);
    }
  }
  template <class T, int N>
  __device__ __forceinline__ static void store(T* to, const Sum (&numbers)[N]) {
    constexpr int AT_ONCE = N < MOST_AT_ONCE ? N : MOST_AT_ONCE;
#pragma unroll
    for (int k = 0; k < N; k += AT_ONCE) {
      Pack<T, AT_ONCE> some;
#pragma unroll
      for (int j = 0; j < AT_ONCE; ++j) narrow(some.lane[j], numbers[k + j]);
      some.store(to + k);
    }
  }
};
using Read = Numbers<const char>;
using Written = Numbers<char>;

// Where a task's locations and weights begin.
__device__ __forceinline__ long long locations_of(const Params& p, const Task& task) {
  return task.row * p.location_query + (long long)task.head * p.location_head;
}
__device__ __forceinline__ long long weights_of(const Params& p, const Task& task) {
  return task.row * p.weight_query + (long long)task.head * p.weight_head;
}

// How the weights of a task's points follow from what is given: by themselves, or as a softmax.
struct Shares {
  Read given;
  Sum most, scale;
  __device__ __forceinline__ Sum of(const Params& p, Sum weight) const {
    return p.softmax ? exp(weight - most) * scale : weight;
  }
  __device__ __forceinline__ Sum operator()(const Params& p, int point) const { return of(p, given[point]); }
};

// Those of a softmax that are not yet divided by their sum.
__device__ __forceinline__ Shares raw_shares_of(const Params& p, const Task& task, const void* __restrict__ weights) {
  Shares shares = {Read(static_cast<const char*>(weights), weights_of(p, task), p.weight_is_wide), Sum(0), Sum(1)};
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
  const Read given(static_cast<const char*>(locations), locations_of(p, task), p.location_is_wide);
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
  Read locations, weights;
  Given place[2], weight[1];  // of the next point
  __device__ __forceinline__ Walk(const Params& p, const Task& task, const Level* levels,
                                  const void* __restrict__ locations, const Read& weights)
      : levels(levels),
        locations(static_cast<const char*>(locations), locations_of(p, task), p.location_is_wide),
        weights(weights) {
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
    const Sum x = place[0].get(locations.are_wide, 0), y = place[1].get(locations.are_wide, 1);
    given = weight[0].get(weights.are_wide, 0);
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
