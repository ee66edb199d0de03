// Levels: images of several sizes, whose pixels lie one level behind the other, and points in them: at parts of a size,
// or beside the taps of a kernel.
#pragma once
#include "sampling.cuh"

// From the host: THREADS, and MOST_LEVELS whose sizes come with the other numbers.
struct Params {
  double offset_scale;
  int heights[MOST_LEVELS], widths[MOST_LEVELS];
  int ends[MOST_LEVELS];  // of the points of each level, among those of all
  int levels, wide_sizes;  // wide_sizes: 64 bits each, in an array
  int pixels, points;      // of all levels; points: of a head of a query
  Divisor queries;
  int heads, channels;
  int first_image, images, first_head, some_heads;      // of this launch
  Divisor band, bands;  // heads that a query has beside each other in the order of tasks, and such bands of an image
  int location_query, location_head, location_is_wide;  // steps in elements; in the type of sums
  int weight_query, weight_head, weight_is_wide;
  int nearest, softmax;
  int lane_bits, slice_bits;  // 2^lane_bits threads share 2^-slice_bits of the channels of a head of a query
  // With a GRID queries are pixels of an output, and locations offsets from the taps of a kernel, in pixels.
  Divisor kernel_height;
  int out_width;
  // Tasks go down strips of the output, of some columns, and the last of fewer: neighbours read the same pixels.
  Divisor strip_pixels, strip_width, last_width;
  int full_strips;
  int stride_y, stride_x, origin_y, origin_x;
  int dilation_y, dilation_x, center_y, center_x, removed;  // removed: a tap that is no point, or one beyond all
  float narrow_scale;                                       // offset_scale
};

template <class S>
__device__ __forceinline__ S scale_of(const Params& p) {
  return sizeof(S) == 8 ? (S)p.offset_scale : (S)p.narrow_scale;
}

struct alignas(16) Level {
  int height, width;  // 0: nothing is read
  int first;          // pixel; 0 for an empty level
  int end;            // of its points
};

__device__ __forceinline__ long long size_of(const Params& p, const void* __restrict__ sizes, int level, int axis) {
  if (!sizes) return axis ? p.widths[level] : p.heights[level];
  const int at = 2 * level + axis;
  if (p.wide_sizes) return __ldg(static_cast<const long long*>(sizes) + at);
  return __ldg(static_cast<const int*>(sizes) + at);
}

// Fills the block's table. sizes: (levels, 2) as (height, width), or null; ends: of their points, or null. Nobody has
// checked an array of sizes: a level that does not fit behind those before it is empty, and so are those behind it.
__device__ __forceinline__ void load_levels(const Params& p, const void* __restrict__ sizes,
                                            const int* __restrict__ ends, Level* levels) {
  for (int l = threadIdx.x; l < p.levels; l += THREADS) {
    Level level = {};
    long long first = 0, area = 0;
#pragma unroll 1
    for (int i = 0; i <= l; ++i) {
      first += area;
      const long long height = size_of(p, sizes, i, 0), width = size_of(p, sizes, i, 1);
      const bool possible = height >= 0 && width >= 0 && height <= p.pixels && width <= p.pixels;
      const bool fits = possible && first + height * width <= p.pixels;
      area = fits ? height * width : (long long)p.pixels + 1;
      level.height = fits && area > 0 ? (int)height : 0;
      level.width = fits && area > 0 ? (int)width : 0;
    }
    level.first = level.height ? (int)first : 0;
    level.end = ends ? __ldg(ends + l) : p.ends[l];
    levels[l] = level;
  }
  __syncthreads();
}

// The pixel nearest to a part of a level along one axis; NaN: any.
__device__ __forceinline__ int nearest_pixel(float part, int size) {
  return min(max(floor_to_int(rounded_product(part, (float)size) + 0.5f), 0), size - 1);
}
__device__ __forceinline__ int nearest_pixel(double part, int size) {
  return min(max(floor_to_int(rounded_product(part, (double)size) + 0.5), 0), size - 1);
}

// The cell of a point at parts (y, x) of a level.
template <class S>
__device__ __forceinline__ Cell<S> cell_in(const Level& level, S y, S x, bool nearest) {
  const bool exists = level.height > 0;
  if (nearest) {
    const bool inside = exists && y == y && x == x;
    return {nearest_pixel(y, level.height), nearest_pixel(x, level.width), S(0), S(0), inside, true, true};
  }
  // Fused on every machine: the kernels of a backward have to agree where a point is.
  const S height = (S)level.height, width = (S)level.width;
  const S at_y = fma(y, height, S(-0.5)), at_x = fma(x, width, S(-0.5));
  Cell<S> cell = {floor_to_int(at_y), floor_to_int(at_x), S(0), S(0), false, false, false};
  cell.ly = at_y - (S)cell.y;
  cell.lx = at_x - (S)cell.x;
  cell.inside = exists & (at_y > S(-1)) & (at_y < height) & (at_x > S(-1)) & (at_x < width);
  return cell;
}

// The cell of a point `offset` beside a tap of the window at `base`; taps are numbered down the columns of the kernel.
// What the scale leaves whole stays in integers, so that no bit of an offset is lost where the image is large.
template <class S>
__device__ __forceinline__ Cell<S> cell_beside(const Params& p, const Level& level, int base_y, int base_x, int point,
                                               S offset_y, S offset_x) {
  const int tap = point + (point >= p.removed), a = quotient(tap, p.kernel_height), b = tap - a * p.kernel_height;
  const S y = ((S)(b * p.dilation_y - p.center_y) + offset_y) * scale_of<S>(p);
  const S x = ((S)(a * p.dilation_x - p.center_x) + offset_x) * scale_of<S>(p);
  return locate(base_y, base_x, y, x, level.height, level.width, BORDER_ZEROS);
}

// The transpose of sampling in levels. A point has one key: the pixel up and left of it, or where that is outside the
// nearest pixel inside. So there are as many keys as pixels, whatever the sizes of the levels.

// What a pixel needs to know of a point besides its key.
template <class S>
struct alignas(16) Way {
  S y, x;  // from the pixel of the key, -1 to 1
  S weight;
  int query;  // among those of the launch
};

template <class S>
__device__ __forceinline__ S way_along(int pixel, S fraction) {
  return pixel < 0 ? fraction - S(1) : fraction;
}
