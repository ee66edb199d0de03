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
  int height, width, input_channels;
  int out_width, first_pixel, chunk_pixels, images;
  int kernel_width, taps;
  int stride_y, stride_x, origin_y, origin_x, dilation_y, dilation_x;
  int border;
  int plain;  // no offsets: every point is a pixel
  int offset_groups, group_channels;
  int first_channel, channels, block_channels, blocks;
  float blocks_per_channel;
  int lane_bits;  // 2^lane_bits threads share one point
  int accumulate;
  long long offset_image, offset_channel, offset_pixel;
  long long mask_image, mask_channel, mask_pixel;
};

// From the host: THREADS, GATHER_THREADS of a block that gathers, and TILE points whose geometry a block keeps in shared
// memory.
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

__device__ __forceinline__ int point_count(const Params& p) {
  return p.images * p.chunk_pixels * p.offset_groups * p.taps;
}

// Where a point's offset and mask are, and the point itself in the image.
struct Place {
  int image;
  long long offset, mask;  // offset: of the y component; x is one channel further
  Cell<Sum> cell;
};

__device__ __forceinline__ Place place_of(const Params& p, const Point& point, const Offset* __restrict__ offset) {
  Place place;
  place.image = quotient(point.pixel, p.chunk_pixels);
  const int pixel = p.first_pixel + point.pixel - place.image * p.chunk_pixels;
  const int channel = point.group * p.taps + point.tap;
  place.offset = place.image * p.offset_image + 2 * channel * p.offset_channel + pixel * p.offset_pixel;
  place.mask = place.image * p.mask_image + channel * p.mask_channel + pixel * p.mask_pixel;
  const int i = quotient(pixel, p.out_width), j = pixel - i * p.out_width;
  const int a = quotient(point.tap, p.kernel_width), b = point.tap - a * p.kernel_width;
  const int y = i * p.stride_y + p.origin_y + a * p.dilation_y;
  const int x = j * p.stride_x + p.origin_x + b * p.dilation_x;
  const Sum offset_y = offset ? read(offset + place.offset) : Sum(0);
  const Sum offset_x = offset ? read(offset + place.offset + p.offset_channel) : Sum(0);
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

// The geometry of one point, computed once for all its channels.
struct alignas(16) Footprint {
  Index corner[4];  // first element of each corner's pixel
  Sum weight[4];    // with the mask folded in
  Index row;        // first element of the point's column, in block 0
  Span span;
  int inside;
};

__device__ __forceinline__ Index row_of(const Params& p, const Point& point) {
  return ((Index)point.pixel * (p.blocks * p.taps) + point.tap) * p.block_channels;
}

// Where a channel's samples are, from the row of a point. The product is the quotient channel / block_channels, exact
// below 2^21 channels, and a tenth of its instructions.
__device__ __forceinline__ Index column_of(const Params& p, int channel) {
  const int local = channel - p.first_channel;
  const int block = (int)(((float)local + 0.5f) * p.blocks_per_channel);
  return local + (Index)block * ((p.taps - 1) * p.block_channels);
}

__device__ __forceinline__ Footprint footprint_of(const Params& p, int number, const Offset* __restrict__ offset,
                                                  const Scalar* __restrict__ mask) {
  const Point point = point_of(p, number);
  const Place place = place_of(p, point, offset);
  const Cell<Sum>& cell = place.cell;
  const Sum scale = mask ? read(mask + place.mask) : Sum(1);
  Footprint f;
  f.row = row_of(p, point);
  f.span = span_of(p, point.group);
  f.inside = cell.inside;
  const Index image = (Index)place.image * p.height * p.width;
  Sum along_y[2], along_x[2];
  read_weights(cell.y, cell.ly, p.height, p.border, along_y);
  read_weights(cell.x, cell.lx, p.width, p.border, along_x);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    // A plain convolution reads one pixel: four quarters of it, so that nothing of a neighbour's NaN gets in.
    const int corner = p.plain ? 0 : k;
    const Sum weight = p.plain ? Sum(0.25) : along_y[k >> 1] * along_x[k & 1];
    f.weight[k] = (cell.inside ? weight : Sum(0)) * scale;
    f.corner[k] = (image + corner_pixel(cell, corner, p.height, p.width)) * p.input_channels;
  }
  return f;
}

// Fills the block's tile of footprints; the number of points in it.
__device__ __forceinline__ int load_tile(const Params& p, Footprint* tile, const Offset* __restrict__ offset,
                                         const Scalar* __restrict__ mask) {
  const int first = blockIdx.x * TILE;
  const int count = min(TILE, point_count(p) - first);
  if ((int)threadIdx.x < count) tile[threadIdx.x] = footprint_of(p, first + threadIdx.x, offset, mask);
  __syncthreads();
  return count;
}

// columns = samples of the input
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    sample(const Scalar* __restrict__ input, const Offset* __restrict__ offset, const Scalar* __restrict__ mask,
           Scalar* __restrict__ columns, const Params p) {
  SHARED(Footprint, tile, [TILE]);
  const int count = load_tile(p, tile, offset, mask);
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1);
  for (int i = threadIdx.x >> p.lane_bits; i < count; i += THREADS >> p.lane_bits) {
    const Footprint f = tile[i];
    for (int c = f.span.begin + lane * VEC; c < f.span.end; c += lanes * VEC) {
      Channels corner[4], out;
#pragma unroll
      for (int k = 0; k < 4; ++k) corner[k].load(input + (f.corner[k] + c));
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        Sum sum = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) sum += f.weight[k] * widen(corner[k].lane[v]);
        narrow(out.lane[v], f.inside ? sum : f.weight[0]);  // outside not 0 * pixel, which may be infinite
      }
      out.store(columns + (f.row + column_of(p, c)));
    }
  }
}

// dots[point][corner] = sum over channels of grad_columns x corner pixel
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    corner_dots(const Scalar* __restrict__ input, const Offset* __restrict__ offset,
                const Scalar* __restrict__ grad_columns, Sum* __restrict__ dots, const Params p) {
  SHARED(Footprint, tile, [TILE]);
  const int count = load_tile(p, tile, offset, nullptr);
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1);
  for (int first = 0; first < count; first += THREADS >> p.lane_bits) {
    const int i = first + (threadIdx.x >> p.lane_bits);
    Pack<Sum, 4> dot;
    dot.clear();
    if (i < count && tile[i].inside) {
      const Footprint f = tile[i];
      for (int c = f.span.begin + lane * VEC; c < f.span.end; c += lanes * VEC) {
        Channels grad, corner[4];
        grad.load(grad_columns + (f.row + column_of(p, c)));
#pragma unroll
        for (int k = 0; k < 4; ++k) corner[k].load(input + (f.corner[k] + c));
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
#pragma unroll
          for (int k = 0; k < 4; ++k) dot.lane[k] += widen(grad.lane[v]) * widen(corner[k].lane[v]);
        }
      }
    }
    group_sums(dot.lane, lanes);
    if (lane == 0 && i < count) {
      Sum* out = dots + 4 * (Index)(blockIdx.x * TILE + i);
      if (p.accumulate) {
        Pack<Sum, 4> before;
        before.load_written(out);
#pragma unroll
        for (int k = 0; k < 4; ++k) dot.lane[k] = before.lane[k] + dot.lane[k];
      }
      dot.store(out);
    }
  }
}

// Gradients of offset and mask from the corner dots
extern "C" __global__ void __launch_bounds__(THREADS)
    point_gradients(const Offset* __restrict__ offset, const Scalar* __restrict__ mask,
                    const Sum* __restrict__ dots, Offset* __restrict__ grad_offset,
                    Scalar* __restrict__ grad_mask, const Params p) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  const int count = point_count(p);
  if (number >= count) return;
  Point point;
  if (p.offset_pixel == 1) {  // neighbouring threads write neighbouring pixels
    const int pixels = p.images * p.chunk_pixels;
    const int channel = quotient(number, pixels), group = quotient(channel, p.taps);
    point = {number - channel * pixels, group, channel - group * p.taps};
  } else {
    point = point_of(p, number);
  }
  const Place place = place_of(p, point, offset);
  const Sum* from = dots + 4 * (Index)((point.pixel * p.offset_groups + point.group) * p.taps + point.tap);
  Sum dot[4], along_y, along_x, value = Sum(0);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    dot[k] = corner_exists(place.cell, k, p.height, p.width) ? __ldg(from + k) : Sum(0);
    value += corner_weight(place.cell.ly, place.cell.lx, k) * dot[k];
  }
  slopes(place.cell, dot, along_y, along_x);
  const Sum scale = mask ? read(mask + place.mask) : Sum(1);
  if (grad_offset) {
    narrow(grad_offset[place.offset], place.cell.inside ? scale * along_y : Sum(0));
    narrow(grad_offset[place.offset + p.offset_channel], place.cell.inside ? scale * along_x : Sum(0));
  }
  if (grad_mask) narrow(grad_mask[place.mask], value);
}

// A point's source is its pixel and, in so many bits, its tap.
__device__ __forceinline__ int tap_bits(const Params& p) { return 32 - __clz(p.taps - 1); }

// The key and the fractions of every point, for the gather
extern "C" __global__ void __launch_bounds__(THREADS)
    point_keys(const Offset* __restrict__ offset, const Scalar* __restrict__ mask, int* __restrict__ keys,
               Fraction<Sum>* __restrict__ fractions, const Params p) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  if (number >= point_count(p)) return;
  const Point point = point_of(p, number);
  const Place place = place_of(p, point, offset);
  const int image = place.image * p.offset_groups + point.group;
  keys[number] = key_of(place.cell, image, p.height, p.width, p.images * p.offset_groups);
  const Sum scale = mask ? read(mask + place.mask) : Sum(1);
  fractions[number] = {place.cell.ly, place.cell.lx, scale, (unsigned)point.pixel << tap_bits(p) | point.tap};
}

// grad_input = every pixel's share of the grad_columns that touched it
template <class Target>
__device__ __forceinline__ void gather_pixels(const Scalar* __restrict__ grad_columns, const int* __restrict__ starts,
                                              const Fraction<Sum>* __restrict__ fractions,
                                              Target* __restrict__ grad_input, const Params& p) {
  SHARED(Share<Sum>, shares, [HELD * GATHER_THREADS]);
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1);
  const int number = blockIdx.x * (GATHER_THREADS >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  const int pixels = p.height * p.width, bits = tap_bits(p);
  const bool exists = number < p.images * pixels * p.offset_groups;
  const int task = exists ? number : 0;  // (image, y, x, offset group)
  const int pixel = quotient(task, p.offset_groups), group = task - pixel * p.offset_groups;
  const int image = quotient(pixel, pixels), y = quotient(pixel - image * pixels, p.width);
  const int x = pixel - image * pixels - y * p.width;
  const Span span = span_of(p, group);
  Runs runs = runs_of(starts, image * p.offset_groups + group, y, x, p.height, p.width, p.plain);
  if (!exists || span.begin >= span.end) runs.count = 0;
  find_most(runs);
  const int most = min(p.group_channels, p.channels);
  for (int slice = 0; slice < most; slice += lanes * VEC) {
    const int c = span.begin + slice + lane * VEC;
    const bool active = exists && c < span.end;
    const Scalar* from = grad_columns + (active ? column_of(p, c) : 0);
    Target* out = grad_input + ((Index)pixel * p.input_channels + c);
    Sum sum[VEC] = {};
    Pack<Target, VEC> result;
    if (p.accumulate && active) {
      result.load_written(out);
#pragma unroll
      for (int v = 0; v < VEC; ++v) sum[v] = widen(result.lane[v]);
    }
    gather(
        runs, active, fractions, lanes, shares,
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
    if (active) {
#pragma unroll
      for (int v = 0; v < VEC; ++v) narrow(result.lane[v], sum[v]);
      result.store(out);
    }
  }
}

extern "C" __global__ void __launch_bounds__(GATHER_THREADS, GATHER_BLOCKS)
    gather_input(const Scalar* __restrict__ grad_columns, const int* __restrict__ starts,
                 const Fraction<Sum>* __restrict__ fractions, Scalar* __restrict__ grad_input, const Params p) {
  gather_pixels(grad_columns, starts, fractions, grad_input, p);
}

// The same into unrounded sums, for an image whose points come in several chunks
extern "C" __global__ void __launch_bounds__(GATHER_THREADS, GATHER_BLOCKS)
    gather_input_sums(const Scalar* __restrict__ grad_columns, const int* __restrict__ starts,
                      const Fraction<Sum>* __restrict__ fractions, Sum* __restrict__ grad_input, const Params p) {
  gather_pixels(grad_columns, starts, fractions, grad_input, p);
}
