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
  S ly, lx, scale;
  int pixel;  // of the output: where its row of values is
};

// Calls add(point, its fraction, weight) for every point that touches pixel (y, x) of `image`. All threads that share
// the pixel do the same: their loads are one, and cost less than handing the numbers around. Where all points are
// `on_pixels` only those of its own cell touch it, and only they may: 0 * NaN is not 0.
template <class S, class Add>
__device__ __forceinline__ void gather(const int* __restrict__ starts, const int* __restrict__ order,
                                       const Fraction<S>* __restrict__ fractions, int image, int y, int x,
                                       int image_height, int image_width, bool on_pixels, Add add) {
  const int above = image * cells_of(image_height, image_width) + y * (image_width + 1) + x;
  for (int down = on_pixels ? 0 : 1; down >= 0; --down) {  // first the cells of which it is a lower corner
    const int* run = starts + above + (1 - down) * (image_width + 1);
    const int middle = __ldg(run + 1), end = __ldg(run + 2);
#pragma unroll 4
    for (int i = on_pixels ? middle : __ldg(run); i < end; ++i) {
      const int point = __ldg(order + i);
      const Fraction<S> f = fractions[point];
      add(point, f, side_weight(f.ly, down) * side_weight(f.lx, i < middle) * f.scale);
    }
  }
}
