// Gradients of the input of a pooling in planes, which is how the caller has it: neighbouring threads have neighbouring
// pixels. Values of rows are [region][class][channel][bin], the input is [image][class][channel][group][pixel].
//
// SCALAR: storage type; INDEX: integer that counts elements of an array.
#include "regions.cuh"

using Scalar = SCALAR;
using Sum = SumOf<Scalar>::type;
using Index = INDEX;

// From the host: GATHER_THREADS of a block that gathers, at most PLANES channels of a pixel for each, and the pixels of
// a PART that a warp keeps the sums of.
constexpr int GATHER_BLOCKS = 10;  // at once on a multiprocessor, at least: leaves a thread 96 registers
constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr int AHEAD = 8;     // bins that a lane reads before it adds any
constexpr int OWNERS = 512;  // pixels so far apart have one owner together, who adds before others do

// grad_input = every pixel's share of the grad_values of the rows that touched it: a thread has some channels of a pixel
template <class Target>
__device__ __forceinline__ void gather_channels(const Scalar* __restrict__ grad_values, const int* __restrict__ starts,
                                                const Fraction<Sum>* __restrict__ fractions,
                                                Target* __restrict__ grad_input, const Params& p) {
  const int slices = (p.channels + PLANES - 1) / PLANES, width = (p.channels + slices - 1) / slices;
  const int block = quotient((int)blockIdx.x, slices), first = ((int)blockIdx.x - block * slices) * width;
  const int channels = min(width, p.channels - first);
  const int task = block * GATHER_THREADS + threadIdx.x;  // (image, y, x)
  const int line = quotient(task, p.width), image = quotient(line, p.height);
  if (image >= p.images) return;
  const int y = line - image * p.height, x = task - line * p.width;
  const Index step = plane_step<Index>(p);
  const Runs runs = runs_of(starts, image, y, x, p.height, p.width, p.reads == READS_PIXELS);
  Target* out = grad_input + (plane_of<Index>(p, image) + first * step + (y * p.width + x));
  Sum sum[PLANES] = {};
  if (p.accumulate) {
#pragma unroll
    for (int c = 0; c < PLANES; ++c) {
      if (c < channels) sum[c] = widen(out[c * step]);
    }
  }
#pragma unroll 2
  for (int i = 0; i < runs.count; ++i) {
    const bool down = i < runs.above_count, right = i < (down ? runs.above_middle : runs.own_middle);
    const Fraction<Sum> f = fractions[i + (down ? runs.above : runs.own)];
    const Sum weight = side_weight(f.ly, down) * side_weight(f.lx, right) * f.scale;
    const Scalar* from = grad_values + value_of_plane<Index>(p, (int)f.source, first);
#pragma unroll
    for (int c = 0; c < PLANES; ++c) {
      if (c < channels) sum[c] += weight * read(from + c * p.bins.value);
    }
  }
#pragma unroll
  for (int c = 0; c < PLANES; ++c) {
    if (c < channels) narrow(out[c * step], sum[c]);
  }
}

extern "C" __global__ void __launch_bounds__(GATHER_THREADS, GATHER_BLOCKS)
    gather_planes(const Scalar* __restrict__ grad_values, const int* __restrict__ starts,
                  const Fraction<Sum>* __restrict__ fractions, Scalar* __restrict__ grad_input, const Params p) {
  gather_channels(grad_values, starts, fractions, grad_input, p);
}

extern "C" __global__ void __launch_bounds__(GATHER_THREADS, GATHER_BLOCKS)
    gather_planes_sums(const Scalar* __restrict__ grad_values, const int* __restrict__ starts,
                       const Fraction<Sum>* __restrict__ fractions, Sum* __restrict__ grad_input, const Params p) {
  gather_channels(grad_values, starts, fractions, grad_input, p);
}

// Whether a region has pixels of an image in these lines of it.
__device__ __forceinline__ bool touches_lines(const Params& p, const Sum* __restrict__ box, int image, int top,
                                              int bottom) {
  if ((int)__ldg(box) != image) return false;
  const Extent<Sum> down = extent_of(p, __ldg(box + 2), __ldg(box + 4));
  if (!down.finite) return false;
  const Sum bin = down.size / (Sum)p.bins_y;
  const Grid<Sum> low = pixels_of(p, down, bin, 0, p.height);
  const Grid<Sum> high = pixels_of(p, down, bin, p.bins_y - 1, p.height);
  return (int)low.first <= bottom && (int)high.first + high.count > top;
}

// grad_input = the grad_values of the bins that chose each pixel: a warp has a part of the pixels of a channel of an
// image, and adds to them what the regions of that image give, in their order and that of their bins: of lanes that wait
// for the same owner the first is next.
extern "C" __global__ void __launch_bounds__(WARP)
    spread_largest(const Scalar* __restrict__ grad_values, const int* __restrict__ argmax,
                   const Sum* __restrict__ boxes, Scalar* __restrict__ grad_input, const Params p) {
  SHARED(Sum, sums, [PART]);
  SHARED(int, owners, [OWNERS]);    // which lane adds next to some of the pixels
  SHARED(Index, touching, [WARP]);  // for regions that have pixels in the part: from their values' numbers to the values
  const int lane = threadIdx.x, bins = p.bins, regions = quotient(p.rows, p.bins);
  const int plane = quotient((int)blockIdx.x, p.parts), part = (int)blockIdx.x - plane * p.parts;
  const int image = quotient(plane, p.channels), channel = plane - image * p.channels;
  const int pixels = p.height * p.width, size = (pixels - 1) / p.parts + 1;
  const int first = part * size, count = min(size, pixels - first);
  const int top = quotient(first, p.width), bottom = quotient(first + count - 1, p.width);
  for (int i = lane; i < count; i += WARP) sums[i] = Sum(0);
  for (int i = lane; i < OWNERS; i += WARP) owners[i] = WARP;
  int next = 0;  // less in each round, so that owners of rounds before do not count
  for (int start = 0; start < regions; start += WARP) {
    const bool touches = start + lane < regions && touches_lines(p, boxes + 5LL * (start + lane), image, top, bottom);
    const unsigned those = __ballot_sync(ALL, touches);
    const int place = __popc(those & ((1u << lane) - 1u));
    if (touches) touching[place] = ((Index)(start + lane) * p.channels + channel - place) * bins;
    __syncwarp(ALL);
    const int values = __popc(those) * bins;
    for (int begin = lane; begin - lane < values; begin += AHEAD * WARP) {
      int chosen[AHEAD];
      Sum grad[AHEAD];
      // Nothing waits for what is read before all is asked for; behind the last value that is read again.
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        const int value = min(begin + i * WARP, values - 1);
        const Index from = touching[quotient(value, p.bins)] + value;
        chosen[i] = __ldg(argmax + from);
        grad[i] = read(grad_values + from);
      }
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        int at = chosen[i] - first;
        if (begin + i * WARP >= values || at >= count) at = -1;
        for (; __any_sync(ALL, at >= 0); next -= WARP) {
          if (at >= 0) atomicMin(owners + at % OWNERS, next + lane);
          __syncthreads();
          if (at >= 0 && owners[at % OWNERS] == next + lane) {
            sums[at] += grad[i];
            at = -1;
          }
          __syncthreads();
        }
      }
    }
    __syncwarp(ALL);
  }
  Scalar* out = grad_input + ((Index)plane * pixels + first);
  for (int i = lane; i < count; i += WARP) narrow(out[i], sums[i]);
}
