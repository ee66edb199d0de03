// Columns of samples at the points of an output grid, and their transposes.
#include "points.cuh"

// From the host: THREADS, GATHER_THREADS of a block that gathers, and the most LANES that share a point where its corners
// are read.
constexpr int BLOCKS = 4;  // at once on a multiprocessor, at least: leaves a thread 64 registers
constexpr int GATHER_BLOCKS = 12;  // of GATHER_THREADS: leaves a thread 80

constexpr int STEP = LANES * VEC;                // channels from one pack of a lane to its next
constexpr int PACKS = sizeof(Sum) == 8 ? 1 : 2;  // that a lane has at a time: as the registers suffice

// What a lane reads for a point at a time: a pack of its channels, and the one a STEP further if there are `two`.
struct Pair {
  Channels corner[2][4];
  __device__ __forceinline__ void load(const Scalar* from, const Footprint& f, bool two) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Scalar* at = from + f.corner[k];
      corner[0][k].load(at);
      if (two) corner[1][k].load(at + STEP);
    }
  }
};

// Where the samples of a point are, from a channel counted from its first on. EVEN: all channels are in one block.
template <bool EVEN, class T>
__device__ __forceinline__ T* samples_of(const Params& p, const Footprint& f, T* columns, int channel) {
  return columns + (f.row + (EVEN ? 0 : block_of(p, f.first + channel)));
}

__device__ __forceinline__ void blend(const Channels (&corner)[4], const Sum (&weight)[4], Scalar* to) {
  Channels out;
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
    Sum sum = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += weight[k] * widen(corner[k].lane[v]);
    narrow(out.lane[v], sum);
  }
  out.store(to);
}

// Samples of the points of a tile: a lane's pack that begins with channel c, and at MOST two the one a STEP further.
template <bool EVEN, int MOST>
__device__ __forceinline__ void sample_packs(const Params& p, const Footprint* tile, int count, int c,
                                             const Scalar* __restrict__ input, Scalar* __restrict__ columns) {
  const Scalar* from = whole_address(input + c);
  Scalar* to = whole_address(columns + c);
#pragma unroll 1
  for (int i = threadIdx.x >> p.lane_bits; i < count; i += THREADS >> p.lane_bits) {
    const Footprint& f = tile[i];
    if (EVEN ? f.channels == 0 : c >= f.channels) continue;
    const bool two = MOST == 2 && (EVEN || c + STEP < f.channels);
    Pair pair;
    pair.load(from, f, two);
    const Sum weight[4] = {f.weight[0], f.weight[1], f.weight[2], f.weight[3]};
    blend(pair.corner[0], weight, samples_of<EVEN>(p, f, to, c));
    if (two) blend(pair.corner[1], weight, samples_of<EVEN>(p, f, to, c + STEP) + STEP);
  }
}

// All points, then the next channels: what does not depend on the point is computed once.
template <bool EVEN>
__device__ __forceinline__ void sample_tile(const Params& p, const Footprint* tile, int count,
                                            const Scalar* __restrict__ input, Scalar* __restrict__ columns) {
  const int most = min(p.group_channels, p.channels);
  int c = (threadIdx.x & ((1 << p.lane_bits) - 1)) * VEC;
  const int whole = EVEN ? (PACKS - 1) * STEP : 0;  // from c on, if all packs are there
  for (; c + whole < most; c += PACKS * STEP) sample_packs<EVEN, PACKS>(p, tile, count, c, input, columns);
  if (EVEN && c < most) sample_packs<EVEN, 1>(p, tile, count, c, input, columns);
}

// A warp fills the columns of those of its points that are outside.
__device__ __forceinline__ void fill_outside(const Params& p, const Footprint* tile, unsigned outside,
                                             Scalar* __restrict__ columns) {
  const int lane = threadIdx.x & 31;
#pragma unroll 1
  for (; outside; outside &= outside - 1) {
    const Footprint& f = tile[threadIdx.x - lane + __ffs(outside) - 1];
    Channels out;
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(out.lane[v], f.weight[0]);
#pragma unroll 1
    for (int c = lane * VEC; c < f.corner[0]; c += 32 * VEC) {
      out.store(columns + (f.row + c + block_of(p, f.first + c)));
    }
  }
}

// columns = samples of the input
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    sample(const Scalar* __restrict__ input, const Offset* __restrict__ offset, const Scalar* __restrict__ mask,
           Scalar* __restrict__ columns, const Params p) {
  SHARED(Footprint, tile, [THREADS]);
  unsigned outside;
  const int count = load_tile(p, tile, offset, mask, nullptr, nullptr, outside);
  if (p.even) {
    sample_tile<true>(p, tile, count, input, columns);
  } else {
    sample_tile<false>(p, tile, count, input, columns);
  }
  fill_outside(p, tile, outside, columns);
}

__device__ __forceinline__ void add_dots(const Channels& grad, const Channels (&corner)[4], Sum (&dot)[4]) {
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
#pragma unroll
    for (int k = 0; k < 4; ++k) dot[k] += widen(grad.lane[v]) * widen(corner[k].lane[v]);
  }
}

// Where the dots of the points of a block go: to an array, with those of the blocks of channels before, or at last into
// the tile, instead of weights, which nothing here reads.
struct Dots {
  Sum* array;
  Footprint* tile;
  bool last;

  // Some of a point's, the first of N.
  template <int N>
  __device__ __forceinline__ void leave(const Params& p, const Sum (&dots)[4], int point, int first) const {
    Pack<Sum, N> sum;
    Sum* place = array + (4 * (Index)point + first);
#pragma unroll
    for (int k = 0; k < N; ++k) sum.lane[k] = dots[k];
    if (p.accumulate) {
      Pack<Sum, N> before;
      before.load_written(place);
#pragma unroll
      for (int k = 0; k < N; ++k) sum.lane[k] += before.lane[k];
    }
    if (last) {
      sum.store(tile[point].weight + first);
    } else {
      sum.store(place);
    }
  }
};

// Sums a point's dots over its lanes, in the order of group_sums. Of 4 and more each keeps only some while they are made:
// a third of the shuffles. Every thread of the warp must come here.
template <bool FEW>
__device__ __forceinline__ void sum_dots(const Params& p, Sum (&dots)[4], int lanes, int point, bool exists,
                                         const Dots& to) {
  const int lane = threadIdx.x & (lanes - 1);
  if (FEW) {
    group_sums(dots, lanes);
    if (exists && lane == 0) to.leave<4>(p, dots, point, 0);
    return;
  }
  const bool far = lane & (lanes / 2), odd = lane & (lanes / 4);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const Sum kept = far ? dots[k + 2] : dots[k], given = far ? dots[k] : dots[k + 2];
    dots[k] = kept + __shfl_xor_sync(0xffffffffu, given, lanes / 2);
  }
  const Sum kept = odd ? dots[1] : dots[0], given = odd ? dots[0] : dots[1];
  dots[0] = kept + __shfl_xor_sync(0xffffffffu, given, lanes / 4);
  if (lanes == 8) dots[0] += __shfl_xor_sync(0xffffffffu, dots[0], 1);
  if (exists && (lanes == 4 || lane % 2 == 0)) to.leave<1>(p, dots, point, lanes == 4 ? lane : lane / 2);
}

// The dots of the points of a tile. FEW: lanes are fewer than 4.
template <bool EVEN, bool FEW>
__device__ __forceinline__ void dot_tile(const Params& p, const Footprint* tile, int count,
                                         const Scalar* __restrict__ input, const Scalar* __restrict__ grad_columns,
                                         const Dots& to) {
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1);
#pragma unroll 1
  for (int first = 0; first < count; first += THREADS >> p.lane_bits) {
    const int i = first + (threadIdx.x >> p.lane_bits);
    Sum dot[4] = {};
    if (i < count) {
      const Footprint& f = tile[i];
#pragma unroll 1
      for (int c = lane * VEC; c < f.channels; c += STEP) {
        const Scalar* from = whole_address(input + c);
        Channels grad, corner[4];
        grad.load(samples_of<EVEN>(p, f, whole_address(grad_columns + c), c));
#pragma unroll
        for (int k = 0; k < 4; ++k) corner[k].load(from + f.corner[k]);
        add_dots(grad, corner, dot);
      }
    }
    sum_dots<FEW>(p, dot, lanes, i, i < count, to);
  }
}

// The gradients of a point's offset and mask from its dots.
__device__ __forceinline__ void write_gradients(const Params& p, int number, const Sum (&dots)[4],
                                                const Offset* __restrict__ offset, const Scalar* __restrict__ mask,
                                                Offset* __restrict__ grad_offset, Scalar* __restrict__ grad_mask) {
  const Place place = place_of(p, point_of(p, number), offset);
  Sum dot[4], along_y, along_x, value = Sum(0);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    dot[k] = corner_exists(place.cell, k, p.height, p.width) ? dots[k] : Sum(0);
    value += corner_weight(place.cell.ly, place.cell.lx, k) * dot[k];
  }
  slopes(place.cell, dot, along_y, along_x);
  const Sum scale = mask ? read(mask + place.mask) : Sum(1);
  if (grad_offset) {
    narrow(grad_offset[place.offset], place.cell.inside ? scale * along_y : Sum(0));
    narrow(grad_offset[place.offset + (Index)p.offset_channel], place.cell.inside ? scale * along_x : Sum(0));
  }
  if (grad_mask) narrow(grad_mask[place.mask], value);
}

// dots[point][corner] = sum over channels of grad_columns x corner pixel, for one block of channels after the other. The
// first may have keys to write; the last has a gradient, of the offset or the mask, and writes that instead of the dots.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    corner_dots(const Scalar* __restrict__ input, const Offset* __restrict__ offset, const Scalar* __restrict__ mask,
                const Scalar* __restrict__ grad_columns, Sum* __restrict__ dots, int* __restrict__ keys,
                Fraction<Sum>* __restrict__ fractions, Offset* __restrict__ grad_offset,
                Scalar* __restrict__ grad_mask, const Params p) {
  SHARED(Footprint, tile, [THREADS]);
  unsigned outside;
  const bool last = grad_offset || grad_mask;
  const int count = load_tile(p, tile, offset, mask, keys, fractions, outside);
  const Dots to = {dots + 4 * (Index)(blockIdx.x * p.tile), tile, last};
  if (p.lane_bits < 2) {
    dot_tile<false, true>(p, tile, count, input, grad_columns, to);
  } else if (p.even) {
    dot_tile<true, false>(p, tile, count, input, grad_columns, to);
  } else {
    dot_tile<false, false>(p, tile, count, input, grad_columns, to);
  }
  if (!last) return;
  __syncthreads();
  const int i = threadIdx.x;
  if (i < count) {
    write_gradients(p, blockIdx.x * p.tile + i, tile[i].weight, offset, mask, grad_offset, grad_mask);
  }
}

// The key and the fractions of every point, for the gather
extern "C" __global__ void __launch_bounds__(THREADS)
    point_keys(const Offset* __restrict__ offset, const Scalar* __restrict__ mask, int* __restrict__ keys,
               Fraction<Sum>* __restrict__ fractions, const Params p) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  if (number >= p.points) return;
  const Point point = point_of(p, number);
  const Place place = place_of(p, point, offset);
  write_key(p, number, point, place, mask ? read(mask + place.mask) : Sum(1), keys, fractions);
}

// grad_input = every pixel's share of the grad_columns that touched it
template <bool SPLIT, class Target>
__device__ __forceinline__ void gather_pixels(const Scalar* __restrict__ grad_columns, const int* __restrict__ starts,
                                              const Fraction<Sum>* __restrict__ fractions,
                                              Target* __restrict__ grad_input, const Params& p) {
  SHARED(Share<Sum>, shares, [HELD * GATHER_THREADS]);
  const Gatherer me = gatherer_of<SPLIT>(p.lane_bits);
  const int pixels = p.height * p.width, bits = tap_bits(p);
  const bool exists = me.task < p.images * pixels * p.offset_groups;
  const int task = exists ? me.task : 0;  // (image, y, x, offset group)
  const int pixel = quotient(task, p.offset_groups), group = task - pixel * p.offset_groups;
  const int image = quotient(pixel, pixels), y = quotient(pixel - image * pixels, p.width);
  const int x = pixel - image * pixels - y * p.width;
  const Span span = span_of(p, group);
  Runs runs = runs_of(starts, image * p.offset_groups + group, y, x, p.height, p.width, p.plain);
  if (!exists || span.begin >= span.end) runs.count = 0;
  if (SPLIT) runs = part_of(runs, me.part, me.part_bits);
  find_most(runs);
  const int most = min(p.group_channels, p.channels);
  for (int first = me.slice * me.lanes * VEC; first < most; first += me.lanes * VEC) {
    const int c = span.begin + first + me.lane * VEC;
    const bool active = exists && c < span.end;
    const Scalar* from = grad_columns + (active ? column_of(p, c) : 0);
    Target* out = grad_input + ((Index)pixel * p.input_channels + c);
    Sum sum[VEC] = {};
    Pack<Target, VEC> result;
    if (p.accumulate && active && me.part == 0) {
      result.load_written(out);
#pragma unroll
      for (int v = 0; v < VEC; ++v) sum[v] = widen(result.lane[v]);
    }
    gather(
        runs, active, fractions, me.lanes, shares,
        [&](const Fraction<Sum>& f) {
          const int tap = f.source & ((1u << bits) - 1u);
          return (int)(f.source >> bits) * (p.blocks * p.taps) + tap;
        },
        [&](int line) {
          Channels grad;
          grad.load(from + (Index)line * p.block_channels);
          return grad;
        },
        [&](const Channels& grad, Sum weight) {
#pragma unroll
          for (int v = 0; v < VEC; ++v) sum[v] += weight * widen(grad.lane[v]);
        });
    if (SPLIT) group_sums(sum, me.lanes << me.part_bits, me.lanes);
    if (active && me.part == 0) {
#pragma unroll
      for (int v = 0; v < VEC; ++v) narrow(result.lane[v], sum[v]);
      result.store(out);
    }
    if (SPLIT) break;  // other slices have other warps
  }
}

extern "C" __global__ void __launch_bounds__(GATHER_THREADS, GATHER_BLOCKS)
    gather_input(const Scalar* __restrict__ grad_columns, const int* __restrict__ starts,
                 const Fraction<Sum>* __restrict__ fractions, Scalar* __restrict__ grad_input, const Params p) {
  gather_pixels<false>(grad_columns, starts, fractions, grad_input, p);
}

// The same of few pixels
extern "C" __global__ void __launch_bounds__(GATHER_THREADS, GATHER_BLOCKS)
    gather_input_split(const Scalar* __restrict__ grad_columns, const int* __restrict__ starts,
                       const Fraction<Sum>* __restrict__ fractions, Scalar* __restrict__ grad_input, const Params p) {
  gather_pixels<true>(grad_columns, starts, fractions, grad_input, p);
}

// The same into unrounded sums, for an image whose points come in several chunks
extern "C" __global__ void __launch_bounds__(GATHER_THREADS, GATHER_BLOCKS)
    gather_input_sums(const Scalar* __restrict__ grad_columns, const int* __restrict__ starts,
                      const Fraction<Sum>* __restrict__ fractions, Sum* __restrict__ grad_input, const Params p) {
  gather_pixels<false>(grad_columns, starts, fractions, grad_input, p);
}
