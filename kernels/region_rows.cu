// What is computed once for each bin of a region and for each sample of it, for all channels: where it is, and the
// gradients of the offset and the mask that move it.
//
// SCALAR: storage type; OFFSET: that of offsets, which may be float beside 16 bits.
#include "regions.cuh"

using Scalar = SCALAR;
using Offset = OFFSET;
using Sum = SumOf<Scalar>::type;

// From the host: THREADS.
constexpr int BLOCKS = 2;  // at once on a multiprocessor, at least: leaves a thread 128 registers

// Rows from boxes (regions, 5) and the offset; their scale has the mask in it if there is one. counts: samples of each
// row, or null
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    locate_rows(const Sum* __restrict__ boxes, const Offset* __restrict__ offset, const Scalar* __restrict__ mask,
                Row<Sum>* __restrict__ rows, int* __restrict__ counts, const Params p) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  if (number >= p.rows) return;
  const Place at = place_of(p, number);
  const Sum* box = boxes + 5LL * at.region;
  const Extent<Sum> across = extent_of(p, __ldg(box + 1), __ldg(box + 3));
  const Extent<Sum> down = extent_of(p, __ldg(box + 2), __ldg(box + 4));
  const int group = quotient(at.i * p.groups_y, p.bins_y) * p.groups_x + quotient(at.j * p.groups_x, p.bins_x);
  Row<Sum> row = {};
  row.image = ((int)__ldg(box) * p.classes + at.label) * (p.groups_y * p.groups_x) + group;
  if (across.finite && down.finite) {
    Sum shift_y = 0, shift_x = 0;
    if (offset) {
      const long long index = offset_index(p, at);
      shift_x = (Sum)p.offset_scale * across.size * read(offset + index);
      shift_y = (Sum)p.offset_scale * down.size * read(offset + index + p.part_y * p.part_x);
    }
    const Grid<Sum> y = grid_of(p, down, at.i, p.bins_y, shift_y, p.height);
    const Grid<Sum> x = grid_of(p, across, at.j, p.bins_x, shift_x, p.width);
    const Sum divisor = p.largest ? Sum(1) : max(y.divisor * x.divisor, Sum(1));
    row = {y.first, x.first, y.step, x.step, Sum(1) / divisor, y.count, x.count, row.image};
    if (mask) row.scale *= read(mask + mask_index(p, at));
  }
  rows[number] = row;
  if (counts) counts[number] = row.ny * row.nx;
}

// Rows of one sample each in images of one channel: the largest of a bin of p.classes channels, which argmax has as
// (regions, 2, channels, bins): y, then x
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    locate_chosen(const Sum* __restrict__ boxes, const Sum* __restrict__ argmax, Row<Sum>* __restrict__ rows,
                  const Params p) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  if (number >= p.rows) return;
  const int per_region = p.classes * p.bins_y * p.bins_x;
  const int region = quotient(number, per_region), channel = quotient(number - region * per_region, p.bins_y * p.bins_x);
  const Sum* from = argmax + ((long long)number + (long long)region * per_region);
  const int image = (int)__ldg(boxes + 5LL * region) * p.classes + channel;
  rows[number] = {__ldg(from), __ldg(from + per_region), Sum(0), Sum(0), Sum(1), 1, 1, image};
}

// The key and the fractions of every sample of some rows. starts: a row's first sample; null: each row has the same
// number of places, and those that it does not need get the key that nobody wants
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    sample_keys(const Row<Sum>* __restrict__ rows, const int* __restrict__ starts, int* __restrict__ keys,
                Fraction<Sum>* __restrict__ fractions, const Params p) {
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1);
  const int task = blockIdx.x * (THREADS >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  if (task >= p.rows) return;
  const Row<Sum> row = rows[p.first_row + task];
  const int image = row.image - p.first_image, count = row.ny * row.nx;
  const int places = starts ? count : p.samples * p.samples;
  const int first = starts ? __ldg(starts + task) : task * places;
  for (int sample = lane; sample < places; sample += lanes) {
    Cell<Sum> cell = {};
    if (sample < count && image >= 0 && image < p.images) {
      const int a = quotient(sample, row.nx);
      cell = cell_of(p, row, a, sample - a * row.nx);
    }
    keys[first + sample] = key_of(cell, image, p.height, p.width, p.images);
    fractions[first + sample] = {cell.ly, cell.lx, row.scale, (unsigned)(p.first_row + task)};
  }
}

// Gradients of offset and mask from those of the rows that an element moves: (along y, along x, of the mask, unused)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    offset_gradients(const Sum* __restrict__ boxes, const Scalar* __restrict__ mask, const Sum* __restrict__ row_sums,
                   Offset* __restrict__ grad_offset, Scalar* __restrict__ grad_mask, const Params p) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  const int line = quotient(number, p.part_x), pair = quotient(line, p.part_y);  // a class of a region
  const int bins = p.bins_y * p.bins_x;
  if (pair >= quotient(p.rows, bins)) return;
  Place at = {quotient(pair, p.classes), 0, 0, 0, line - pair * p.part_y, number - line * p.part_x};
  at.label = pair - at.region * p.classes;
  Sum along_y = 0, along_x = 0, value = 0;
  const int end_i = quotient((at.part_y + 1) * p.bins_y + p.part_y - 1, p.part_y);
  const int end_j = quotient((at.part_x + 1) * p.bins_x + p.part_x - 1, p.part_x);
  for (int i = quotient(at.part_y * p.bins_y + p.part_y - 1, p.part_y); i < end_i; ++i) {
    for (int j = quotient(at.part_x * p.bins_x + p.part_x - 1, p.part_x); j < end_j; ++j) {
      Pack<Sum, 4> sums;
      sums.load(row_sums + 4LL * (pair * bins + i * p.bins_x + j));
      along_y += sums.lane[0];
      along_x += sums.lane[1];
      value += sums.lane[2];
    }
  }
  const long long index = mask_index(p, at);
  if (grad_mask) narrow(grad_mask[index], value);
  if (!grad_offset) return;
  const Sum* box = boxes + 5LL * at.region;
  const Extent<Sum> across = extent_of(p, __ldg(box + 1), __ldg(box + 3));
  const Extent<Sum> down = extent_of(p, __ldg(box + 2), __ldg(box + 4));
  const Sum scale = (Sum)p.offset_scale * (mask ? read(mask + index) : Sum(1));
  const bool finite = across.finite && down.finite;
  Offset* out = grad_offset + offset_index(p, at);
  narrow(out[0], finite ? scale * across.size * along_x : Sum(0));
  narrow(out[p.part_y * p.part_x], finite ? scale * down.size * along_y : Sum(0));
}
