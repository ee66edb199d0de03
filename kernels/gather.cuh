// The transpose of sampling: a pixel collects from the points that touched it, in a fixed order.
//
// A point has one key, that of its cell, and each cell a bucket, in which points are in order. A pixel is a corner of
// four cells, which are two runs of neighbouring buckets; it walks them in order. No atomics, no zero fill, and the
// order of the sum never depends on how threads are scheduled.
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
  unsigned source;  // which row of values it has
};

// Two runs of neighbouring buckets, one after the other, and their points counted through from 0. Of the points before
// a middle a pixel is on the right.
struct Runs {
  int above, above_middle, above_count;  // of the cells of which it is a lower corner: where they begin
  int own, own_middle, count;            // of the others: where they would begin if the first run were in front of them
  int most;                              // points of any pixel of the warp
};

// Those of pixel (y, x) of `image`. Where all points are `on_pixels` only those of its own cell touch it, and only they
// may: 0 * NaN is not 0.
__device__ __forceinline__ Runs runs_of(const int* __restrict__ starts, int image, int y, int x, int image_height,
                                        int image_width, bool on_pixels) {
  const int* own = starts + (image * cells_of(image_height, image_width) + (y + 1) * (image_width + 1) + x);
  const int* above = own - (image_width + 1);
  const int middle = __ldg(own + 1), end = __ldg(own + 2);
  if (on_pixels) return {0, 0, 0, middle, 0, end - middle, 0};
  const int first = __ldg(own), above_first = __ldg(above), above_count = __ldg(above + 2) - above_first;
  const int own_first = first - above_count;
  return {above_first, __ldg(above + 1) - above_first, above_count, own_first, middle - own_first, end - own_first, 0};
}

// What a thread gathers. Some lanes share the channels of a task, which is a pixel, of one offset group. Where tasks are
// few the work is SPLIT: 2^part_bits such groups of lanes, neighbours in a warp, have some of the points each, and in
// other warps are those of other slices of the channels.
struct Gatherer {
  int lanes, lane;
  int part_bits, part;
  int slice;
  int task;  // its number; there may be none
};

// bits: the logarithm of the lanes; where the work is SPLIT those of parts and slices are 8 and 16 bits further.
template <bool SPLIT>
__device__ __forceinline__ Gatherer gatherer_of(int bits) {
  const int lane_bits = SPLIT ? bits & 255 : bits;
  const int slice_bits = SPLIT ? bits >> 16 : 0;
  Gatherer me;
  me.part_bits = SPLIT ? bits >> 8 & 255 : 0;
  const int team_bits = lane_bits + me.part_bits;
  const int team = blockIdx.x * (GATHER_THREADS >> team_bits) + (threadIdx.x >> team_bits);
  me.lanes = 1 << lane_bits;
  me.lane = threadIdx.x & (me.lanes - 1);
  me.part = threadIdx.x >> lane_bits & ((1 << me.part_bits) - 1);
  me.slice = team & ((1 << slice_bits) - 1);
  me.task = team >> slice_bits;
  return me;
}

// The points of one part of 2^bits: half of them, half of a half and so on, under every schedule the same.
__device__ __forceinline__ Runs part_of(const Runs& runs, int part, int bits) {
  const int length = (runs.count + (1 << bits) - 1) >> bits, first = min(part * length, runs.count);
  Runs own = runs;
  own.above += first;
  own.above_middle -= first;
  own.above_count -= first;
  own.own += first;
  own.own_middle -= first;
  own.count = min(length, runs.count - first);
  return own;
}

constexpr int HELD = 2;  // points that a lane fetches at a time for all lanes of its pixel

// What a pixel adds of a point: a row of values, so many times.
template <class S>
struct alignas(2 * sizeof(S)) Share {
  S weight;
  int line;
};

// Makes all pixels of the warp come to its barriers equally often. Every thread of the warp must come here.
__device__ __forceinline__ void find_most(Runs& runs) {
  runs.most = runs.count;
  for (int step = 16; step > 0; step /= 2) runs.most = max(runs.most, __shfl_xor_sync(0xffffffffu, runs.most, step));
}

// Adds up the points of a pixel's runs. Each of its lanes fetches some of them for all, and does so while the rows of
// those before are on their way: no load of global memory waits for another. Every thread of the warp must come here.
//
// active: whether the lane has channels to add; shares: room for HELD in each thread of the block; line_of(fraction) is
// where a point's values are, load(line) reads them, add(values, weight) adds them.
template <class S, class LineOf, class Load, class Add>
__device__ __forceinline__ void gather(const Runs& runs, bool active, const Fraction<S>* __restrict__ fractions,
                                       int lanes, Share<S>* shares, LineOf line_of, Load load, Add add) {
  const int lane = threadIdx.x & (lanes - 1);
  Share<S>* const shared = shares + HELD * (threadIdx.x - lane);
  Fraction<S> fetched[HELD] = {};
  const auto fetch = [&](int first) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      const int i = first + k * lanes + lane;
      const int place = i + (i < runs.above_count ? runs.above : runs.own);
      if (i < runs.count) fetched[k] = fractions[place];
    }
  };
  fetch(0);
#pragma unroll 1
  for (int first = 0; first < runs.most; first += HELD * lanes) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      const Fraction<S>& f = fetched[k];
      const int i = first + k * lanes + lane;
      const bool down = i < runs.above_count;
      const bool right = i < (down ? runs.above_middle : runs.own_middle);
      shared[k * lanes + lane] = {side_weight(f.ly, down) * side_weight(f.lx, right) * f.scale, line_of(f)};
    }
    fetch(first + HELD * lanes);
    __syncwarp(0xffffffffu);
    const int ready = active ? min(runs.count - first, HELD * lanes) : 0;
#pragma unroll 4
    for (int i = 0; i < ready; ++i) {
      const Share<S> share = shared[i];
      add(load(share.line), share.weight);
    }
    __syncwarp(0xffffffffu);
  }
}
