// The transpose of pooling: the rows that touch a tile of pixels, and the share that each line and column has of them.
//
// The samples of a row are a grid, so the weight of a pixel is a share along y times one along x. A block goes through all
// regions in order, lists those that touch its tile, and then the rows of these; no sum depends on how threads are
// scheduled, and none on how pixels are cut into tiles.
#pragma once
#include "regions.cuh"

constexpr unsigned ALL = 0xffffffffu;
constexpr int BATCH = 32;  // rows whose shares a block has at a time

// What the rows of a region read along each axis, at most; bottom is less than top if there is nothing.
template <class S>
struct alignas(16) Bounds {
  S top, bottom, left, right;
  int image, unused[3];  // image: of the batch
};
static_assert(sizeof(Bounds<float>) <= 32 && sizeof(Bounds<double>) <= 64, "8 elements, as a row");

// From the host: THREADS, and SIDES: lines and columns of a tile, at most.
template <class S>
struct alignas(16) Listed {
  S shares[BATCH * SIDES];  // of each row: of the columns, then of the lines
  S scales[BATCH];
  int regions[2 * THREADS], rows[2 * THREADS];
  int counts[THREADS / 32];
};

struct Tile {
  int image, top, left;  // image: of a row
};

__device__ __forceinline__ Tile tile_of(const Params& p, int number) {
  const int line = quotient(number, p.tiles_x), image = quotient(line, p.tiles_y);
  return {image, (line - image * p.tiles_y) * p.tile_y, (number - line * p.tiles_x) * p.tile_x};
}

// What a row reads along one axis.
template <class S>
__device__ __forceinline__ void include(S first, S step, int count, S& low, S& high) {
  const S last = position(first, step, count - 1);
  low = min(low, min(first, last));
  high = max(high, max(first, last));
}

template <class S>
__device__ __forceinline__ void include(const Row<S>& row, Bounds<S>& bounds) {
  if (row.ny * row.nx == 0) return;
  include(row.y, row.step_y, row.ny, bounds.top, bounds.bottom);
  include(row.x, row.step_x, row.nx, bounds.left, bounds.right);
}

template <class S>
__device__ __forceinline__ Bounds<S> no_bounds() {
  const S most = sizeof(S) == 4 ? S(3.4e38) : S(1.7e308);
  return {most, -most, most, -most, 0, {0, 0, 0}};
}

// Whether a sample there may have a corner in the tile: those outside the image are at most a pixel away.
template <class S>
__device__ __forceinline__ bool touches(const Params& p, const Bounds<S>& b, const Tile& tile) {
  return b.bottom >= (S)(tile.top - 1) && b.top <= (S)(tile.top + p.tile_y) && b.right >= (S)(tile.left - 1) &&
         b.left <= (S)(tile.left + p.tile_x);
}

// The weights of a pixel in the samples of a row along one axis; less than 0 if it is no corner of any.
template <class S>
__device__ __forceinline__ S share_of(const Params& p, S first, S step, int count, int pixel, int size) {
  if (p.reads == READS_PIXELS) return (S)pixel >= first && (S)pixel < first + (S)count ? S(1) : S(-1);
  const int border = p.reads == READS_CENTERS ? BORDER_CENTERS : BORDER_CORNERS;
  int sample = 0;
  if (step > S(0)) {  // those before cannot have the corner: about so many, and then exactly
    sample = (int)min(max((S(pixel - 1) - first) / step, S(0)), (S)(count - 1));
    while (sample > 0 && position(first, step, sample - 1) >= S(pixel - 1)) --sample;
  }
  S share = S(0);
  bool any = false;
  for (; sample < count; ++sample) {
    const S at = position(first, step, sample);
    if (step > S(0) && at > S(pixel + 1)) break;
    int near;
    S fraction;
    bool flat;
    if (!settle(at, size, border, near, fraction, flat) || (near != pixel && near + 1 != pixel)) continue;
    share += side_weight(fraction, near != pixel);
    any = true;
  }
  return any ? share : S(-1);
}

// This thread's place among those of the block for which `wanted` holds, in their order; total: how many they are. Every
// thread must come here, and to a barrier before it comes again.
__device__ __forceinline__ int place_in_block(bool wanted, int* counts, int& total) {
  const unsigned those = __ballot_sync(ALL, wanted);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (lane == 0) counts[warp] = __popc(those);
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < THREADS / 32; ++w) {
    if (w == warp) before = total;
    total += counts[w];
  }
  return before + __popc(those & ((1u << lane) - 1u));
}

// The rows of a region that read one image: of a class, and the bins of a group.
struct RowsOfImage {
  int label, first_i, first_j, lines, columns;
};

__device__ __forceinline__ RowsOfImage rows_of(const Params& p, int image) {
  const int line = quotient(image, p.groups_x), of_class = quotient(line, p.groups_y);
  const int group_x = image - line * p.groups_x, group_y = line - of_class * p.groups_y;
  const int first_i = quotient(group_y * p.bins_y + p.groups_y - 1, p.groups_y);
  const int first_j = quotient(group_x * p.bins_x + p.groups_x - 1, p.groups_x);
  const int end_i = quotient((group_y + 1) * p.bins_y + p.groups_y - 1, p.groups_y);
  const int end_j = quotient((group_x + 1) * p.bins_x + p.groups_x - 1, p.groups_x);
  return {of_class - quotient(of_class, p.classes) * p.classes, first_i, first_j, end_i - first_i, end_j - first_j};
}

// Calls use(rows, count) for the rows that touch a tile, in order, up to BATCH at a time, with their shares and scales in `listed`.
// Every thread of the block must come here.
template <class S, class Use>
__device__ __forceinline__ void each_batch(const Params& p, const Tile& tile, const Bounds<S>* __restrict__ bounds,
                                           const Row<S>* __restrict__ rows, Listed<S>& listed, Use use) {
  const RowsOfImage own = rows_of(p, tile.image);
  const int per_region = own.lines * own.columns, sides = p.tile_y + p.tile_x;
  const int regions = quotient(p.rows, p.classes * p.bins.value);
  const int image = quotient(tile.image, p.classes * p.groups_y * p.groups_x);  // of the batch
  for (int start = 0; start < regions;) {
    int found = 0, here;
    do {
      const int region = start + threadIdx.x;
      const bool wanted = region < regions && bounds[region].image == image && touches(p, bounds[region], tile);
      const int place = place_in_block(wanted, listed.counts, here);
      if (wanted) listed.regions[found + place] = region;
      found += here;
      start += THREADS;
      __syncthreads();
    } while (start < regions && found <= THREADS);
    for (int begin = 0; begin < found * per_region;) {
      int total = 0;
      do {
        const int candidate = begin + threadIdx.x;
        int number = 0;
        bool wanted = candidate < found * per_region;
        if (wanted) {
          const int which = quotient(candidate, per_region), bin = candidate - which * per_region;
          const int line = quotient(bin, own.columns);
          number = (listed.regions[which] * p.classes + own.label) * p.bins.value +
                   (own.first_i + line) * p.bins_x + own.first_j + bin - line * own.columns;
          Bounds<S> of_row = no_bounds<S>();
          include(rows[number], of_row);
          wanted = touches(p, of_row, tile);
        }
        const int place = place_in_block(wanted, listed.counts, here);
        if (wanted) listed.rows[total + place] = number;
        total += here;
        begin += THREADS;
        __syncthreads();
      } while (begin < found * per_region && total <= THREADS);
      for (int first = 0; first < total; first += BATCH) {
        const int count = min(BATCH, total - first);
        for (int i = threadIdx.x; i < count * sides; i += THREADS) {
          const int which = quotient(i, sides), side = i - which * sides;
          const Row<S>& row = rows[listed.rows[first + which]];
          if (side < p.tile_x) {
            listed.shares[i] = share_of(p, row.x, row.step_x, row.nx, tile.left + side, p.width);
          } else {
            listed.shares[i] = share_of(p, row.y, row.step_y, row.ny, tile.top + side - p.tile_x, p.height);
          }
          if (side == 0) listed.scales[which] = row.scale;
        }
        __syncthreads();
        use(listed.rows + first, count);
        __syncthreads();
      }
    }
  }
}
