// The points of a launch of sampling.cu: where each reads, and its geometry for all threads of a block.
//
// A point is (output pixel, offset group, tap), numbered in this order within a chunk. A chunk is `images` whole
// images, or `chunk_pixels` pixels of one image. Columns are [pixel][block][tap][block_channels], where the blocks
// divide the channels [first_channel, first_channel + channels) of this launch.
//
// SCALAR: storage type; OFFSET: that of offsets, which may be float beside 16 bits; VEC: channels a thread moves at
// once; INDEX: integer that counts elements of an array.
#pragma once
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
