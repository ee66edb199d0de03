// Gradients of the input of a pooling in planes, which is how the caller has it: neighbouring threads have neighbouring
// pixels. Values of rows are [region][class][channel][bin], the input is [image][class][channel][group][pixel].
//
// SCALAR: storage type; INDEX: integer that counts elements of an array.
#include "regions.cuh"

using Scalar = SCALAR;
using Sum = SumOf<Scalar>::type;
using Index = INDEX;

// From the host: GATHER_THREADS of a block that gathers, the channels of a pixel that a thread of PLANES gathers, and
// the pixels of a PART that a warp keeps the sums of.
#ifndef GATHER_BLOCKS
constexpr int GATHER_BLOCKS = 12;  // at once on a multiprocessor, at least: leaves a thread 80 registers
#endif
constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
#ifndef AHEAD
constexpr int AHEAD = 8;  // bins that a lane reads before it adds any
#endif

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

// Bins along an axis that may have pixels in common are at most so far apart. The products of `pixels_of` are rounded:
// only where a bin is no smaller than a pixel, and there are not too many, that changes nothing.
__device__ __forceinline__ int reach_of(Sum size, int bins) {
  const int pixels = (int)min(size, (Sum)bins);
  return pixels == bins && bins <= 1024 ? 1 : (bins - 1) / max(pixels, 1) + 2;
}

// A region that has pixels in a part of an image: its number, and how far apart its bins are that share some.
struct Touching {
  int region, reach;
};

// grad_input = the grad_values of the bins that chose each pixel: a warp has a part of the pixels of a channel of an
// image, and adds to them what the regions of that image give, in their order and that of their bins.
extern "C" __global__ void __launch_bounds__(WARP)
    spread_largest(const Scalar* __restrict__ grad_values, const int* __restrict__ argmax,
                   const Sum* __restrict__ boxes, Scalar* __restrict__ grad_input, const Params p) {
  SHARED(Sum, sums, [PART]);
  SHARED(Touching, touching, [WARP]);
  const int lane = threadIdx.x, bins = p.bins, regions = quotient(p.rows, p.bins), steps = (bins - 1) / WARP + 1;
  const int plane = quotient((int)blockIdx.x, p.parts), part = (int)blockIdx.x - plane * p.parts;
  const int image = quotient(plane, p.channels), channel = plane - image * p.channels;
  const int pixels = p.height * p.width, size = (pixels - 1) / p.parts + 1;
  const int first = part * size, count = min(size, pixels - first);
  const int top = quotient(first, p.width), bottom = quotient(first + count - 1, p.width);
  for (int i = lane; i < count; i += WARP) sums[i] = Sum(0);
  for (int start = 0; start < regions; start += WARP) {
    Touching own = {start + lane, 0};
    const Sum* box = boxes + 5LL * own.region;
    if (own.region < regions && (int)__ldg(box) == image) {
      const Extent<Sum> across = extent_of(p, __ldg(box + 1), __ldg(box + 3));
      const Extent<Sum> down = extent_of(p, __ldg(box + 2), __ldg(box + 4));
      const Sum bin = down.size / (Sum)p.bins_y;
      const Grid<Sum> low = pixels_of(p, down, bin, 0, p.height);
      const Grid<Sum> high = pixels_of(p, down, bin, p.bins_y - 1, p.height);
      if (across.finite && down.finite && (int)low.first <= bottom && (int)high.first + high.count > top) {
        const int lines = reach_of(down.size, p.bins_y);
        own.reach = min(min(lines, WARP) * min(p.bins_x, WARP) + reach_of(across.size, p.bins_x), WARP - 1);
      }
    }
    const unsigned those = __ballot_sync(ALL, own.reach > 0);
    if (own.reach > 0) touching[__popc(those & ((1u << lane) - 1u))] = own;
    __syncwarp(ALL);
    const int found = __popc(those);
    int entry = 0, step = 0;
    while (entry < found) {
      int chosen[AHEAD], reach[AHEAD];
      Sum grad[AHEAD];
      // Nothing waits for what is read before all is asked for: what does not exist is read from elsewhere.
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        const Touching its = touching[min(entry, found - 1)];
        const int bin = step * WARP + lane;
        const Index from = ((Index)its.region * p.channels + channel) * bins + min(bin, bins - 1);
        chosen[i] = __ldg(argmax + from);
        grad[i] = read(grad_values + from);
        reach[i] = entry < found && bin < bins ? its.reach : 0;
        step = step + 1 < steps ? step + 1 : 0;
        entry += step == 0;
      }
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        const int at = reach[i] > 0 ? chosen[i] - first : -1;
        const bool here = (unsigned)at < (unsigned)count;
        if (!__any_sync(ALL, here)) continue;
        int turn = 0;  // bins before this one that chose the same pixel
        const int most = __shfl_sync(ALL, reach[i], 0);
#pragma unroll 1
        for (int near = 0; near < most; near += 4) {
#pragma unroll
          for (int apart = near + 1; apart <= near + 4; ++apart) {
            turn += __shfl_up_sync(ALL, at, apart % WARP) == at && lane >= apart;
          }
        }
        for (int now = 0; __any_sync(ALL, here && turn >= now); ++now) {
          if (here && turn == now) sums[at] += grad[i];
          __syncwarp(ALL);
        }
      }
    }
    __syncwarp(ALL);
  }
  Scalar* out = grad_input + ((Index)plane * pixels + first);
  for (int i = lane; i < count; i += WARP) narrow(out[i], sums[i]);
}
