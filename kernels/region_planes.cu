// Gradients of the input of a pooling in planes, which is how the caller has it: neighbouring threads have neighbouring
// pixels. Values of rows are [region][class][channel][bin], the input is [image][class][channel][group][pixel].
//
// SCALAR: storage type; INDEX: integer that counts elements of an array.
#include "region_tiles.cuh"

using Scalar = SCALAR;
using Sum = SumOf<Scalar>::type;
using Index = INDEX;

// From the host: THREADS of a block that gathers, at most PLANES channels of a pixel for each, and the pixels of a PART
// that a warp keeps the sums of.
constexpr int GATHER_BLOCKS = 2;  // at once on a multiprocessor, at least: leaves a thread 128 registers
constexpr int WARP = 32;
constexpr int OWNERS = 512;  // pixels so far apart have one owner together, who adds before others do

// grad_input = every pixel's share of the grad_values of the rows that touch it: a block has a tile of pixels, a thread
// some channels of one
template <class Target>
__device__ __forceinline__ void gather_channels(const Bounds<Sum>* __restrict__ bounds, const Row<Sum>* __restrict__ rows,
                                                const Scalar* __restrict__ grad_values,
                                                Target* __restrict__ grad_input, const Params& p) {
  SHARED(Listed<Sum>, shared, [1]);
  Listed<Sum>& listed = shared[0];
  const int slices = (p.channels - 1) / PLANES + 1, width = (p.channels - 1) / slices + 1;
  const int number = quotient((int)blockIdx.x, slices), first = ((int)blockIdx.x - number * slices) * width;
  const int channels = min(width, p.channels - first);
  const Tile tile = tile_of(p, number);
  const int line = quotient((int)threadIdx.x, p.tile_x), column = threadIdx.x - line * p.tile_x;
  const int y = tile.top + line, x = tile.left + column;
  const bool active = y < p.height && x < p.width;
  const Index step = plane_step<Index>(p);
  Target* out = grad_input + (plane_of<Index>(p, tile.image) + first * step + (y * p.width + x));
  Sum sum[PLANES] = {};
  if (p.accumulate && active) {
#pragma unroll
    for (int c = 0; c < PLANES; ++c) {
      if (c < channels) sum[c] = widen(out[c * step]);
    }
  }
  each_batch(p, tile, bounds, rows, listed, [&](const int* numbers, int count) {
    for (int i = 0; i < count; ++i) {
      const Sum* shares = listed.shares + i * (p.tile_y + p.tile_x);
      const Sum down = shares[p.tile_x + line], across = shares[column];
      if (!active || !(down >= Sum(0)) || !(across >= Sum(0))) continue;  // 0 * NaN is not 0
      const Sum weight = down * across * listed.scales[i];
      const Scalar* from = grad_values + value_of_plane<Index>(p, numbers[i], first);
#pragma unroll
      for (int c = 0; c < PLANES; ++c) {
        if (c < channels) sum[c] += weight * read(from + c * p.bins.value);
      }
    }
  });
#pragma unroll
  for (int c = 0; c < PLANES; ++c) {
    if (active && c < channels) narrow(out[c * step], sum[c]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, GATHER_BLOCKS)
    gather_planes(const Bounds<Sum>* __restrict__ bounds, const Row<Sum>* __restrict__ rows,
                  const Scalar* __restrict__ grad_values, Scalar* __restrict__ grad_input, const Params p) {
  gather_channels(bounds, rows, grad_values, grad_input, p);
}

// The same into unrounded sums, for regions that come in several launches
extern "C" __global__ void __launch_bounds__(THREADS, GATHER_BLOCKS)
    gather_planes_sums(const Bounds<Sum>* __restrict__ bounds, const Row<Sum>* __restrict__ rows,
                       const Scalar* __restrict__ grad_values, Sum* __restrict__ grad_input, const Params p) {
  gather_channels(bounds, rows, grad_values, grad_input, p);
}

// Whether a region has samples or pixels of an image in these lines of it.
__device__ __forceinline__ bool touches_lines(const Params& p, const Sum* __restrict__ box, int image, int top,
                                              int bottom) {
  if (image_of(p, box) != image) return false;
  const Extent<Sum> down = extent_of(p, __ldg(box + 2), __ldg(box + 4));
  if (!down.finite) return false;
  if (p.reads != READS_PIXELS) {  // with room for the pixel beside a sample, and for what was rounded
    const Sum end = down.start + down.size, room = Sum(2) + (abs(down.start) + abs(down.size)) * Sum(1e-6);
    return min(down.start, end) - room <= (Sum)bottom && max(down.start, end) + room >= (Sum)top;
  }
  const Sum bin = down.size / (Sum)p.bins_y;
  const Grid<Sum> low = pixels_of(p, down, bin, 0, p.height);
  const Grid<Sum> high = pixels_of(p, down, bin, p.bins_y - 1, p.height);
  return (int)low.first <= bottom && (int)high.first + high.count > top;
}

// What a warp has of a plane: the sums of the pixels from `first` on.
struct Part {
  int first, count;
  Sum* sums;
  int* owners;  // which lane adds next to some of the pixels
  int next;     // less in each round, so that owners of rounds before do not count
};

// Adds what each lane has to the pixel that it chose, if that is in the part: of lanes that wait for the same owner the
// first is next. Every lane of the warp must come here.
__device__ __forceinline__ void add_in_order(Part& part, bool chose, int pixel, Sum value) {
  int at = pixel - part.first;
  if (!chose || at >= part.count) at = -1;
  for (; __any_sync(ALL, at >= 0); part.next -= WARP) {
    const int turn = part.next + (int)threadIdx.x;
    if (at >= 0) atomicMin(part.owners + at % OWNERS, turn);
    __syncthreads();
    if (at >= 0 && part.owners[at % OWNERS] == turn) {
      part.sums[at] += value;
      at = -1;
    }
    __syncthreads();
  }
}

// What a bin chose: a pixel, or a sample, whose y and x argmax has one after the other.
struct Pixel {
  using Number = int;
  static constexpr int SETS = 1, AHEAD = 8;  // bins that a lane reads before it adds any
  int at;
  __device__ __forceinline__ void load(const int* argmax, Index) { at = __ldg(argmax); }
  __device__ __forceinline__ void add(const Params&, Part& part, bool chose, Sum grad) const {
    add_in_order(part, chose, at, grad);
  }
};

struct Sample {
  using Number = Sum;
  static constexpr int SETS = 2, AHEAD = 4;
  Sum y, x;
  __device__ __forceinline__ void load(const Sum* argmax, Index to_x) {
    y = __ldg(argmax);
    x = __ldg(argmax + to_x);
  }
  __device__ __forceinline__ void add(const Params& p, Part& part, bool chose, Sum grad) const {
    const Cell<Sum> cell = locate_in_region(y, x, p.height, p.width, BORDER_CENTERS);
#pragma unroll 1
    for (int k = 0; k < 4; ++k) {
      const bool exists = chose && corner_exists(cell, k, p.height, p.width);
      add_in_order(part, exists, corner_pixel(cell, k, p.height, p.width), corner_weight(cell.ly, cell.lx, k) * grad);
    }
  }
};

// Where the values of a region of those that touch a part are: from their numbers to the first set of argmax, and back to
// the gradients.
struct Touching {
  Index argmax, back;
};

// grad_input = the grad_values of the bins that chose each pixel: a warp has a part of the pixels of a channel of an
// image, and adds to them what the regions of that image give, in their order and that of their bins.
template <class Chosen>
__device__ __forceinline__ void spread(const Scalar* __restrict__ grad_values,
                                       const typename Chosen::Number* __restrict__ argmax,
                                       const Sum* __restrict__ boxes, Scalar* __restrict__ grad_input,
                                       const Params& p) {
  SHARED(Sum, sums, [PART]);
  SHARED(int, owners, [OWNERS]);
  SHARED(Touching, touching, [WARP]);
  const int lane = threadIdx.x, bins = p.bins, regions = quotient(p.rows, p.bins);
  const int plane = quotient((int)blockIdx.x, p.parts), number = (int)blockIdx.x - plane * p.parts;
  const int image = quotient(plane, p.channels), channel = plane - image * p.channels;
  const int pixels = p.height * p.width, size = (pixels - 1) / p.parts + 1;
  Part part = {number * size, min(size, pixels - number * size), sums, owners, 0};
  const int top = quotient(part.first, p.width), bottom = quotient(part.first + part.count - 1, p.width);
  constexpr int AHEAD = Chosen::AHEAD;
  const Index of_region = (Index)p.channels * bins;
  for (int i = lane; i < part.count; i += WARP) sums[i] = Sum(0);
  for (int i = lane; i < OWNERS; i += WARP) owners[i] = WARP;
  for (int start = 0; start < regions; start += WARP) {
    const int region = start + lane;
    const bool touches = region < regions && touches_lines(p, boxes + 5LL * region, image, top, bottom);
    const unsigned those = __ballot_sync(ALL, touches);
    const int place = __popc(those & ((1u << lane) - 1u));
    if (touches) {
      const Index back = (Chosen::SETS - 1) * region * of_region;
      touching[place] = {region * of_region + (channel - place) * bins + back, back};
    }
    __syncwarp(ALL);
    const int values = __popc(those) * bins;
    for (int begin = lane; begin - lane < values; begin += AHEAD * WARP) {
      Chosen chosen[AHEAD];
      Sum grad[AHEAD];
      // Nothing waits for what is read before all is asked for; behind the last value that is read again.
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        const int value = min(begin + i * WARP, values - 1);
        const Touching from = touching[quotient(value, p.bins)];
        chosen[i].load(argmax + (from.argmax + value), of_region);
        grad[i] = read(grad_values + (from.argmax + value - from.back));
      }
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) chosen[i].add(p, part, begin + i * WARP < values, grad[i]);
    }
    __syncwarp(ALL);
  }
  Scalar* out = grad_input + ((Index)plane * pixels + part.first);
  for (int i = lane; i < part.count; i += WARP) narrow(out[i], sums[i]);
}

extern "C" __global__ void __launch_bounds__(WARP)
    spread_pixels(const Scalar* __restrict__ grad_values, const int* __restrict__ argmax,
                  const Sum* __restrict__ boxes, Scalar* __restrict__ grad_input, const Params p) {
  spread<Pixel>(grad_values, argmax, boxes, grad_input, p);
}

extern "C" __global__ void __launch_bounds__(WARP)
    spread_samples(const Scalar* __restrict__ grad_values, const Sum* __restrict__ argmax,
                   const Sum* __restrict__ boxes, Scalar* __restrict__ grad_input, const Params p) {
  spread<Sample>(grad_values, argmax, boxes, grad_input, p);
}
