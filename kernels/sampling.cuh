// Bilinear sampling: where a point lies, the four pixels around it, their weights, and the derivatives.
// The only bilinear code on the device.
#pragma once
#include "prelude.cuh"

enum Border { BORDER_ZEROS = 0, BORDER_CLAMP = 1 };
enum RegionBorder { BORDER_CENTERS = 0, BORDER_CORNERS = 1 };  // those of samples in regions of interest

// The pixel up and left of a point (it may lie one row or column outside the image) and the way from there.
template <class S>
struct Cell {
  int y, x;
  S ly, lx;
  bool inside;          // false: the point reads nothing
  bool flat_y, flat_x;  // the sample does not change along this axis here
};

// One axis of a cell, at a whole coordinate plus an offset: false outside, and where the offset is NaN. Only the offset
// is split into a whole number and a fraction, so that no bit of it is lost where the image is large.
template <class S>
__device__ __forceinline__ bool displace(int base, S offset, int size, int border, int& pixel, S& fraction,
                                         bool& flat) {
  const int whole = floor_to_int(offset);
  fraction = offset - (S)whole;
  // The sum wraps around only from a point outside to another: base + size is below 2^31.
  pixel = (int)((unsigned)base + (unsigned)whole);
  // One comparison for both ends: as a number without a sign a pixel below the first is large. A point between the
  // border and the first pixel still reads that.
  const unsigned between = border == BORDER_ZEROS && fraction > S(0) ? 1 : 0;
  const bool inside = fraction >= S(0) && (unsigned)pixel + between < (unsigned)size + between;
  flat = border == BORDER_CLAMP && pixel >= size - 1;
  fraction = flat ? S(0) : fraction;
  return inside;
}

// The cell of a point at whole coordinates and an offset from there.
template <class S>
__device__ __forceinline__ Cell<S> locate(int base_y, int base_x, S offset_y, S offset_x, int height, int width,
                                          int border) {
  Cell<S> cell;
  const bool inside_y = displace(base_y, offset_y, height, border, cell.y, cell.ly, cell.flat_y);
  const bool inside_x = displace(base_x, offset_x, width, border, cell.x, cell.lx, cell.flat_x);
  cell.inside = inside_y & inside_x;
  cell.y = cell.inside ? cell.y : 0;
  cell.x = cell.inside ? cell.x : 0;
  cell.ly = cell.inside ? cell.ly : S(0);
  cell.lx = cell.inside ? cell.lx : S(0);
  return cell;
}

// One axis of a cell by the rules of regions of interest: false outside.
template <class S>
__device__ __forceinline__ bool settle(S at, int size, int border, int& pixel, S& fraction, bool& flat) {
  const S margin = border == BORDER_CENTERS ? S(1) : S(0.5);
  if (!(at >= -margin && at <= S(size - 1) + margin)) return false;
  const S inside = min(max(at, S(0)), S(size - 1)), floored = floor(inside);
  pixel = (int)floored;
  fraction = inside - floored;
  // Where floor and ceil are the corners both are one pixel at a whole coordinate.
  flat = border == BORDER_CENTERS ? at < S(0) || pixel >= size - 1 : fraction == S(0);
  return true;
}

// The cell of a point that a region of interest reads: one a little outside the image is moved to its edge.
template <class S>
__device__ __forceinline__ Cell<S> locate_in_region(S y, S x, int height, int width, int border) {
  Cell<S> cell = {0, 0, S(0), S(0), false, false, false};
  cell.inside = settle(y, height, border, cell.y, cell.ly, cell.flat_y) &&
                settle(x, width, border, cell.x, cell.lx, cell.flat_x);
  return cell;
}

// The weight along one axis of the pixels at the far end of a cell, or at the near one.
template <class S>
__device__ __forceinline__ S side_weight(S fraction, bool far) {
  return far ? fraction : S(1) - fraction;
}

// Corner k of a cell is one row down if k & 2, one column right if k & 1.
template <class S>
__device__ __forceinline__ S corner_weight(S ly, S lx, int k) {
  return side_weight(ly, k & 2) * side_weight(lx, k & 1);
}

// The weights along one axis of the near and the far corners, as a sample is read. One outside the image stands for its
// neighbour inside, see corner_pixel, and both have half: with a weight of 0 an infinite pixel would be NaN. Where the
// border is "clamp" the neighbour is the corner, as in the libraries that have it. The half is put into `share`.
template <class S>
__device__ __forceinline__ void read_weights(int pixel, S fraction, int size, int border, S (&weight)[2], S& share) {
  const bool below = pixel < 0;
  const bool above = border == BORDER_ZEROS && pixel >= size - 1;
  weight[0] = side_weight(fraction, below);
  weight[1] = side_weight(fraction, !above);
  share *= below || above ? S(0.5) : S(1);
}

template <class S>
__device__ __forceinline__ bool corner_exists(const Cell<S>& cell, int k, int height, int width) {
  const int y = cell.y + (k >> 1), x = cell.x + (k & 1);
  return cell.inside && y >= 0 && y < height && x >= 0 && x < width;
}

// The pixel to read for a corner: the corner itself, or for one outside the nearest pixel of the image.
template <class S>
__device__ __forceinline__ int corner_pixel(const Cell<S>& cell, int k, int height, int width) {
  const int y = min(max(cell.y + (k >> 1), 0), height - 1);
  const int x = min(max(cell.x + (k & 1), 0), width - 1);
  return y * width + x;
}

// Derivatives of a sample along y and x from its four corner values.
template <class S>
__device__ __forceinline__ void slopes(const Cell<S>& cell, const S (&v)[4], S& along_y, S& along_x) {
  along_y = cell.flat_y ? S(0) : (S(1) - cell.lx) * (v[2] - v[0]) + cell.lx * (v[3] - v[1]);
  along_x = cell.flat_x ? S(0) : (S(1) - cell.ly) * (v[1] - v[0]) + cell.ly * (v[3] - v[2]);
}
