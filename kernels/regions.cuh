// Regions of interest as rows. A row is a bin of one class in one region: a grid of samples, or of whole pixels, in one
// image of the input. Rows are numbered (region, class, bin); the images of the input are (image, class, group), pixels
// by channels, so that position-sensitive pooling only reads another image.
#pragma once
#include "sampling.cuh"

enum Reads { READS_CENTERS = 0, READS_CORNERS = 1, READS_PIXELS = 2 };

struct Params {
  double scale, origin, least;  // of a region: see extent_of
  double offset_scale;
  int round_box, round_scaled, box_more, scaled_more;
  int reads, samples;  // samples: along each axis; 0: as the bins are large
  int largest;         // not the mean of what is read
  int unread;          // rows and columns at the far edges that READS_PIXELS leaves out
  int height, width, channels;  // of an image of the input
  int classes, groups_y, groups_x, bins_y, bins_x, part_y, part_x;
  Divisor bins;             // of a class of a region
  int planes;               // 1: arrays are as the caller has them
  int parts;                // of the pixels of a plane, each with a warp of its own
  int rows;                 // of this launch
  int lane_bits;            // 2^lane_bits threads share a row, or a patch of pixels
  int accumulate;
  int tile_y, tile_x;    // lines and columns of a tile, of which an image has
  int tiles_y, tiles_x;  // so many along each axis
  int batch;             // images, as boxes number them
};

template <class S>
struct alignas(16) Row {
  S y, x, step_y, step_x;  // first sample, and the way to the next
  S scale;                 // of the sum of the samples; NaN, and no samples, of an image that does not exist
  int ny, nx;
  int image;
};
static_assert(sizeof(Row<float>) == 32 && sizeof(Row<double>) == 64, "8 elements, which is what the host allocates");

struct Place {
  int region, label, i, j;
  int part_y, part_x;
};

__device__ __forceinline__ Place place_of(const Params& p, int row) {
  const int line = quotient(row, p.bins_x), bin = quotient(line, p.bins_y);
  Place place;
  place.j = row - line * p.bins_x;
  place.i = line - bin * p.bins_y;
  place.region = quotient(bin, p.classes);
  place.label = bin - place.region * p.classes;
  place.part_y = quotient(place.i * p.part_y, p.bins_y);
  place.part_x = quotient(place.j * p.part_x, p.bins_x);
  return place;
}

// Where the mask of a part is.
__device__ __forceinline__ long long mask_index(const Params& p, const Place& at) {
  return ((long long)at.region * p.classes + at.label) * p.part_y * p.part_x + at.part_y * p.part_x + at.part_x;
}

// Where the offset of a part along x is; that along y is one plane further.
__device__ __forceinline__ long long offset_index(const Params& p, const Place& at) {
  return 2 * mask_index(p, at) - (at.part_y * p.part_x + at.part_x);
}

template <class S>
__device__ __forceinline__ bool is_finite(S value) {
  return value - value == S(0);
}

// Which image of the batch a box is of; -1 if there is no such image, whatever the number is.
template <class S>
__device__ __forceinline__ int image_of(const Params& p, const S* box) {
  const S index = __ldg(box);
  if (!(index >= S(0) && index < (S)p.batch)) return -1;  // also NaN, and what no int can be
  const int image = (int)index;
  return (S)image == index ? image : -1;
}

// A region along one axis.
template <class S>
struct Extent {
  S start, size;
  bool finite;
};

template <class S>
__device__ __forceinline__ Extent<S> extent_of(const Params& p, S low, S high) {
  if (p.round_box) {
    low = round(low);
    high = round(high);
  }
  S start = low * (S)p.scale, end = (high + (S)p.box_more) * (S)p.scale;
  if (p.round_scaled) {
    start = round(start);
    end = round(end);
  }
  start -= (S)p.origin;
  end += (S)p.scaled_more - (S)p.origin;
  const S size = max(end - start, (S)p.least);
  return {start, size, is_finite(start) && is_finite(end) && is_finite(size)};
}

// The samples of a bin along one axis.
template <class S>
struct Grid {
  S first, step;
  int count;
  S divisor;  // samples that count: also those that are too far outside to be visited
};

// Fused on every machine: whether a sample counts and where it is are decided in different places.
template <class S>
__device__ __forceinline__ S position(S first, S step, int number) {
  return fma((S)number, step, first);
}

template <class S>
__device__ __forceinline__ Grid<S> centers_of(const Params& p, S at, S bin, int size) {
  const S samples = p.samples ? (S)p.samples : ceil(bin);
  if (!(samples >= S(1))) return {S(0), S(0), 0, S(0)};
  const S step = bin / samples;
  Grid<S> grid = {at + S(0.5) * step, step, p.samples, samples};
  if (p.samples) return grid;
  if (!is_finite(grid.first)) return {S(0), S(0), 0, samples};
  // A region may be millions of pixels wide: without the samples that cannot be inside, and with one to spare.
  const S per_pixel = samples / bin;
  // Where the largest counts, two: then one is outside wherever some are left out, as all of those are.
  const S spare = (S)p.largest;
  const S low = min(max(floor((S(-1) - grid.first) * per_pixel) - spare, S(0)), samples);
  const S high = min(max(ceil((S(size) - grid.first) * per_pixel) + S(1) + spare, low), samples);
  grid.first += low * step;
  grid.count = (int)(high - low);
  return grid;
}

template <class S>
__device__ __forceinline__ Grid<S> corners_of(const Params& p, S at, S bin, int size) {
  const S step = bin / (S)p.samples;
  int low = 0;
  while (low < p.samples && position(at, step, low) < S(-0.5)) ++low;
  const S first = position(at, step, low);
  int count = 0;
  while (low + count < p.samples && position(first, step, count) <= S(size) - S(0.5)) ++count;
  return {first, step, count, (S)count};
}

template <class S>
__device__ __forceinline__ Grid<S> pixels_of(const Params& p, const Extent<S>& e, S bin, int number, int size) {
  // Not fused on any machine: the product is rounded first, as in the libraries that have these operators.
  const S near = rounded_product((S)number, bin), far = rounded_product((S)(number + 1), bin);
  const S low = p.round_scaled ? floor(near) + e.start : floor(near + e.start);
  const S high = p.round_scaled ? ceil(far) + e.start : ceil(far + e.start);
  const S first = min(max(low, S(0)), S(size)), last = min(max(high, first), S(size));
  return {first, S(1), (int)(last - first), last - first};
}

template <class S>
__device__ __forceinline__ Grid<S> grid_of(const Params& p, const Extent<S>& e, int bin, int bins, S shift, int size) {
  const S bin_size = e.size / (S)bins;
  if (p.reads == READS_PIXELS) return pixels_of(p, e, bin_size, bin, size - p.unread);
  const S at = e.start + ((S)bin * e.size / (S)bins + shift);
  return p.reads == READS_CORNERS ? corners_of(p, at, bin_size, size) : centers_of(p, at, bin_size, size);
}

// Sample (a, b) of a row.
template <class S>
__device__ __forceinline__ Cell<S> cell_of(const Params& p, const Row<S>& row, int a, int b) {
  if (p.reads == READS_PIXELS) return {(int)row.y + a, (int)row.x + b, S(0), S(0), true, true, true};
  const int border = p.reads == READS_CENTERS ? BORDER_CENTERS : BORDER_CORNERS;
  return locate_in_region(position(row.y, row.step_y, a), position(row.x, row.step_x, b), p.height, p.width, border);
}

// Of arrays as a caller has them: the input is [image][class][channel][group][pixel], values [region][class][channel]
// [bin]. Elements from a channel of an image to the next, to the first of an image, to the value of a row.
template <class Index>
__device__ __forceinline__ Index plane_step(const Params& p) {
  return (Index)p.groups_y * p.groups_x * p.height * p.width;
}

template <class Index>
__device__ __forceinline__ Index plane_of(const Params& p, int image) {
  const int groups = p.groups_y * p.groups_x;
  return ((Index)quotient(image, groups) * (p.channels - 1) * groups + image) * (p.height * p.width);
}

template <class Index>
__device__ __forceinline__ Index value_of_plane(const Params& p, int row, int channel) {
  return row + ((Index)quotient(row, p.bins) * (p.channels - 1) + channel) * p.bins.value;
}
