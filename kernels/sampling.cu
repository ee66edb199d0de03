// Sampling points of an output grid: columns of samples, and their transposes.
//
// A point is (output pixel, offset group, tap), numbered in this order within a chunk. A chunk is `images` whole
// images, or `chunk_pixels` pixels of one image. Columns are [pixel][block][tap][block_channels], where the blocks
// divide the channels [first_channel, first_channel + channels) of this launch.
//
// SCALAR: storage type; OFFSET: that of offsets, which may be float beside 16 bits; VEC: channels a thread moves at
// once; INDEX: integer that counts elements of an array.
#include "gather.cuh"

using Scalar = SCALAR;
using Offset = OFFSET;
using Sum = SumOf<Scalar>::type;
using Index = INDEX;
using Channels = Pack<Scalar, VEC>;

struct Params {
  int height, input_channels;
  Divisor width, out_width, chunk_pixels, kernel_width, taps, offset_groups, block_channels;
  int first_pixel, images;
  int stride_y, stride_x, origin_y, origin_x, dilation_y, dilation_x;
  int border;
  int plain;  // no offsets: every point is a pixel
  int group_channels;
  int first_channel, channels, blocks;
  int even;       // one block, and as many channels for every point
  int points;     // of this launch
  int tile;       // of them, whose geometry a block keeps in shared memory: up to THREADS
  int lane_bits;  // 2^lane_bits threads share one point; of a gather see Gatherer
  int accumulate;
  long long offset_image, offset_channel, offset_pixel;
  long long mask_image, mask_channel, mask_pixel;
};

// From the host: THREADS, GATHER_THREADS of a block that gathers, and the most LANES that share a point where its corners
// are read.
constexpr int BLOCKS = 4;  // at once on a multiprocessor, at least: leaves a thread 64 registers
constexpr int GATHER_BLOCKS = 12;  // of GATHER_THREADS: leaves a thread 80

struct Point {
  int pixel, group, tap;  // pixel: within the chunk
};

__device__ __forceinline__ Point point_of(const Params& p, int number) {
  const int rest = quotient(number, p.taps);
  const int pixel = quotient(rest, p.offset_groups);
  return {pixel, rest - pixel * p.offset_groups, number - rest * p.taps};
}

// Where a point's offset and mask are, and the point itself in the image.
struct Place {
  int image;
  Index offset, mask;  // offset: of the y component; x is one channel further
  Cell<Sum> cell;
};

__device__ __forceinline__ Place place_of(const Params& p, const Point& point, const Offset* __restrict__ offset) {
  Place place;
  place.image = quotient(point.pixel, p.chunk_pixels);
  const int pixel = p.first_pixel + point.pixel - place.image * p.chunk_pixels;
  const Index image = place.image;
  const Index channel = point.group * p.taps + point.tap;
  place.offset = image * (Index)p.offset_image + 2 * channel * (Index)p.offset_channel + pixel * (Index)p.offset_pixel;
  place.mask = image * (Index)p.mask_image + channel * (Index)p.mask_channel + pixel * (Index)p.mask_pixel;
  const int i = quotient(pixel, p.out_width), j = pixel - i * p.out_width;
  const int a = quotient(point.tap, p.kernel_width), b = point.tap - a * p.kernel_width;
  const int y = i * p.stride_y + p.origin_y + a * p.dilation_y;
  const int x = j * p.stride_x + p.origin_x + b * p.dilation_x;
  const Sum offset_y = !p.plain ? read(offset + place.offset) : Sum(0);
  const Sum offset_x = !p.plain ? read(offset + (place.offset + (Index)p.offset_channel)) : Sum(0);
  place.cell = locate(y, x, offset_y, offset_x, p.height, p.width, p.border);
  return place;
}

// The channels of an offset group that this launch works on.
struct Span {
  int begin, end;
};

__device__ __forceinline__ Span span_of(const Params& p, int group) {
  const int begin = group * p.group_channels;
  return {max(begin, p.first_channel), min(begin + p.group_channels, p.first_channel + p.channels)};
}

template <int BYTES>
struct Padding {
  char unused[BYTES];
};
template <>
struct Padding<0> {};

// The geometry of one point, computed once for all its channels. Its bytes are an odd multiple of 16, so that those of
// neighbouring points lie in different banks.
struct alignas(16) Footprint : Padding<sizeof(Sum) == sizeof(Index) ? 0 : 16> {
  Index corner[4];  // where the first of the channels is in each corner's pixel
  Sum weight[4];    // with the mask folded in
  Index row;        // where that channel's samples would be if its block were block 0
  int channels;     // to read: none for a point outside
  int first;
};
static_assert(sizeof(Footprint) / 16 % 2 == 1, "neighbours have banks in common");

__device__ __forceinline__ Index row_of(const Params& p, const Point& point) {
  return ((Index)point.pixel * (p.blocks * p.taps) + point.tap) * p.block_channels;
}

// How far a channel's block is from block 0, less its channels before it.
__device__ __forceinline__ Index block_of(const Params& p, int channel) {
  const int block = quotient(channel - p.first_channel, p.block_channels);
  return (Index)block * ((p.taps - 1) * p.block_channels);
}

// Where a channel's samples are, from the row of a point.
__device__ __forceinline__ Index column_of(const Params& p, int channel) {
  return channel - p.first_channel + block_of(p, channel);
}

__device__ __forceinline__ void find_corners(const Params& p, const Place& place, Sum scale, Footprint& f) {
  const Cell<Sum>& cell = place.cell;
  Sum along_y[2], along_x[2];
  // Without offsets a point reads one pixel: four quarters of it, so that nothing of a neighbour's NaN gets in.
  read_weights(cell.y, p.plain ? Sum(0.5) : cell.ly, p.height, p.border, along_y, scale);
  read_weights(cell.x, p.plain ? Sum(0.5) : cell.lx, p.width, p.border, along_x, scale);
  const int next = p.plain ? 0 : 1;
  const int y[2] = {max(cell.y, 0), min(cell.y + next, p.height - 1)};
  const int x[2] = {max(cell.x, 0), min(cell.x + next, p.width - 1)};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const Index line = ((Index)place.image * p.height + y[k >> 1]) * ((Index)p.width * p.input_channels) + f.first;
    f.corner[k] = line + (Index)x[k & 1] * p.input_channels;
    f.weight[k] = along_y[k >> 1] * along_x[k & 1] * scale;
  }
}

// A point's source is its pixel and, in so many bits, its tap.
__device__ __forceinline__ int tap_bits(const Params& p) { return 32 - __clz(p.taps - 1); }

// What the gather sorts points by, and what it knows of them.
__device__ __forceinline__ void write_key(const Params& p, int number, const Point& point, const Place& place,
                                          Sum scale, int* __restrict__ keys, Fraction<Sum>* __restrict__ fractions) {
  const int image = place.image * p.offset_groups + point.group;
  keys[number] = key_of(place.cell, image, p.height, p.width, p.images * p.offset_groups);
  fractions[number] = {place.cell.ly, place.cell.lx, scale, (unsigned)point.pixel << tap_bits(p) | point.tap};
}

// Fills the block's tile of footprints; the number of points in it. Sets a bit of `outside` for each point of the warp
// that reads nothing: instead of the first corner it has its number of channels, instead of the first weight its samples.
// Writes the keys if there is a place for them.
__device__ __forceinline__ int load_tile(const Params& p, Footprint* tile, const Offset* __restrict__ offset,
                                         const Scalar* __restrict__ mask, int* __restrict__ keys,
                                         Fraction<Sum>* __restrict__ fractions, unsigned& outside) {
  const int first = blockIdx.x * p.tile;
  const int count = min(p.tile, p.points - first);
  bool inside = true;
  if ((int)threadIdx.x < count) {
    const Point point = point_of(p, first + threadIdx.x);
    const Place place = place_of(p, point, offset);
    const Span span = span_of(p, point.group);
    const Sum scale = mask ? read(mask + place.mask) : Sum(1);
    if (keys) write_key(p, first + threadIdx.x, point, place, scale, keys, fractions);
    inside = place.cell.inside;
    Footprint& f = tile[threadIdx.x];
    f.row = row_of(p, point) - p.first_channel + span.begin;
    f.first = span.begin;
    f.channels = inside ? span.end - span.begin : 0;
    if (inside) {
      find_corners(p, place, scale, f);
    } else {
      f.corner[0] = span.end - span.begin;
      f.weight[0] = Sum(0) * scale;  // not 0: the mask may be NaN
    }
  }
  outside = __ballot_sync(0xffffffffu, !inside);
  __syncthreads();
  return count;
}

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

// The dots of the points of a tile with those of the blocks before. The last block leaves them in the tile, instead of
// weights, which nothing here reads.
template <bool EVEN>
__device__ __forceinline__ void dot_tile(const Params& p, Footprint* tile, int count,
                                         const Scalar* __restrict__ input, const Scalar* __restrict__ grad_columns,
                                         Sum* __restrict__ dots, bool last) {
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1);
  for (int first = 0; first < count; first += THREADS >> p.lane_bits) {
    const int i = first + (threadIdx.x >> p.lane_bits);
    Pack<Sum, 4> dot;
    dot.clear();
    if (i < count) {
      const Footprint& f = tile[i];
      for (int c = lane * VEC; c < f.channels; c += PACKS * STEP) {
        const bool two = PACKS == 2 && c + STEP < f.channels;
        Channels grad[2];
        Pair pair;
        const Scalar* from = whole_address(grad_columns + c);
        grad[0].load(samples_of<EVEN>(p, f, from, c));
        if (two) grad[1].load(samples_of<EVEN>(p, f, from, c + STEP) + STEP);
        pair.load(whole_address(input + c), f, two);
        add_dots(grad[0], pair.corner[0], dot.lane);
        if (two) add_dots(grad[1], pair.corner[1], dot.lane);
      }
    }
    group_sums(dot.lane, lanes);
    if (lane == 0 && i < count) {
      Sum* out = dots + 4 * (Index)(blockIdx.x * p.tile + i);
      if (p.accumulate) {
        Pack<Sum, 4> before;
        before.load_written(out);
#pragma unroll
        for (int k = 0; k < 4; ++k) dot.lane[k] = before.lane[k] + dot.lane[k];
      }
      dot.store(last ? tile[i].weight : out);
    }
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
  if (p.even) {
    dot_tile<true>(p, tile, count, input, grad_columns, dots, last);
  } else {
    dot_tile<false>(p, tile, count, input, grad_columns, dots, last);
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
