// The transpose of sampling: a pixel collects from the points that touched it, in a fixed order.
//
// A point has one key, that of its cell. The points are sorted by key, stably, and `starts` says where each key
// begins. A pixel is a corner of four cells, which are two runs of neighbouring keys; it walks them in order. No
// atomics, no zero fill, and the order of the sum never depends on how threads are scheduled.
#pragma once
#include "sampling.cuh"

// Cells of an image: their upper left pixel goes from -1 to height - 1 and from -1 to width - 1.
__device__ __forceinline__ int cells_of(int height, int width) { return (height + 1) * (width + 1); }

template <class S>
__device__ __forceinline__ int key_of(const Cell<S>& cell, int image, int height, int width, int images) {
  if (!cell.inside) return images * cells_of(height, width);  // sorts last; no pixel looks there
  return image * cells_of(height, width) + (cell.y + 1) * (width + 1) + cell.x + 1;
}

// What a pixel needs to know of a point besides its key.
template <class S>
struct alignas(16) Fraction {
  S ly, lx, scale, unused;
};

// Calls add(row, weight) for every point that touches pixel (y, x) of `image`, the same on all threads of a group of
// `width` threads. `row_of` turns a point into what `add` needs of it, once for the whole group.
template <class S, class RowOf, class Add>
__device__ __forceinline__ void gather(const int* __restrict__ starts, const int* __restrict__ order,
                                       const Fraction<S>* __restrict__ fractions, int image, int y, int x,
                                       int image_height, int image_width, int width, RowOf row_of, Add add) {
  const unsigned mask = group_mask(width);
  const int lane = threadIdx.x & (width - 1);
  const int above = image * cells_of(image_height, image_width) + y * (image_width + 1) + x;
  for (int down = 1; down >= 0; --down) {  // first the cells above the pixel, of which it is a lower corner
    const int* run = starts + above + (1 - down) * (image_width + 1);
    const int begin = __ldg(run), middle = __ldg(run + 1), end = __ldg(run + 2);
    for (int base = begin; base < end; base += width) {
      const int i = base + lane;
      decltype(row_of(0)) row = 0;
      S weight = S(0);
      if (i < end) {
        const int point = __ldg(order + i);
        const Fraction<S> f = fractions[point];
        weight = corner_weight(f.ly, f.lx, 2 * down + (i < middle)) * f.scale;
        row = row_of(point);
      }
      const int count = min(width, end - base);
      for (int j = 0; j < count; ++j) {
        add(__shfl_sync(mask, row, j, width), __shfl_sync(mask, weight, j, width));
      }
    }
  }
}
