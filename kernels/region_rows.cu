// What is computed once for each bin of a region, for all channels: where it is, and the gradients of the offset and the
// mask that move it.
//
// SCALAR: storage type; OFFSET: that of offsets, which may be float beside 16 bits.
#include "region_tiles.cuh"

using Scalar = SCALAR;
using Offset = OFFSET;
using Sum = SumOf<Scalar>::type;

// From the host: THREADS.
constexpr int BLOCKS = 2;  // at once on a multiprocessor, at least: leaves a thread 128 registers

// Rows from boxes (regions, 5) and the offset; their scale has the mask in it if there is one.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    locate_rows(const Sum* __restrict__ boxes, const Offset* __restrict__ offset, const Scalar* __restrict__ mask,
                Row<Sum>* __restrict__ rows, const Params p) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  if (number >= p.rows) return;
  const Place at = place_of(p, number);
  const Sum* box = boxes + 5LL * at.region;
  const Extent<Sum> across = extent_of(p, __ldg(box + 1), __ldg(box + 3));
  const Extent<Sum> down = extent_of(p, __ldg(box + 2), __ldg(box + 4));
  const int group = quotient(at.i * p.groups_y, p.bins_y) * p.groups_x + quotient(at.j * p.groups_x, p.bins_x);
  Row<Sum> row = {};
  const int image = image_of(p, box);
  row.image = (max(image, 0) * p.classes + at.label) * (p.groups_y * p.groups_x) + group;
  if (image < 0) {
    row.scale = Sum(0) / Sum(0);
  } else if (across.finite && down.finite) {
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
}

// What the rows of each region read together: a warp has a region.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    bound_regions(const Row<Sum>* __restrict__ rows, Bounds<Sum>* __restrict__ bounds, const Params p) {
  const int region = (blockIdx.x * THREADS + threadIdx.x) >> 5, per_region = p.classes * p.bins.value;
  if (region >= quotient(p.rows, per_region)) return;
  Bounds<Sum> found = no_bounds<Sum>();
  for (int row = threadIdx.x & 31; row < per_region; row += 32) include(rows[region * per_region + row], found);
  for (int step = 16; step > 0; step /= 2) {
    found.top = min(found.top, __shfl_xor_sync(ALL, found.top, step));
    found.bottom = max(found.bottom, __shfl_xor_sync(ALL, found.bottom, step));
    found.left = min(found.left, __shfl_xor_sync(ALL, found.left, step));
    found.right = max(found.right, __shfl_xor_sync(ALL, found.right, step));
  }
  found.image = quotient(rows[region * per_region].image, p.classes * p.groups_y * p.groups_x);
  if ((threadIdx.x & 31) == 0) bounds[region] = found;
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
  const Sum* box = boxes + 5LL * at.region;
  const bool exists = image_of(p, box) >= 0;
  if (grad_mask) narrow(grad_mask[index], exists ? value : Sum(0));
  if (!grad_offset) return;
  const Extent<Sum> across = extent_of(p, __ldg(box + 1), __ldg(box + 3));
  const Extent<Sum> down = extent_of(p, __ldg(box + 2), __ldg(box + 4));
  const Sum scale = (Sum)p.offset_scale * (mask ? read(mask + index) : Sum(1));
  const bool finite = exists && across.finite && down.finite;
  Offset* out = grad_offset + offset_index(p, at);
  narrow(out[0], finite ? scale * across.size * along_x : Sum(0));
  narrow(out[p.part_y * p.part_x], finite ? scale * down.size * along_y : Sum(0));
}
