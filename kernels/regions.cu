// Pooling of regions of interest and its transposes: a group of lanes takes a row, each lane some of its channels.
//
// Images of the input are [image][pixel][channels], or where VEC is 1 they may be planes, as the caller has them; results
// are planes always, see regions.cuh. Gradients of the values of rows are [row][channels], beside planes planes as well.
//
// SCALAR: storage type; VEC: channels a thread moves at once; INDEX: integer that counts elements of an array.
#include "region_tasks.cuh"
#include "region_tiles.cuh"

using Scalar = SCALAR;
using Sum = SumOf<Scalar>::type;
using Index = INDEX;
using Channels = Pack<Scalar, VEC>;

// From the host: THREADS, the SHARERS of one channel, and the pixels of a PATCH.
// Blocks at once on a multiprocessor, at least: leaves a thread 64 registers, or 128.
constexpr int BLOCKS = sizeof(Sum) == 8 ? 2 : 4;

constexpr int MAX_BLOCKS = 2;  // of the kernels that keep an index of every channel
constexpr int GATHER_BLOCKS = 2;
constexpr int AT_ONCE_ROWS = 2;  // of a gather, whose gradients are on their way together

__device__ __forceinline__ bool are_planes(const Params& p) { return VEC == 1 && p.planes; }

// Threads that share one channel of a row: what they read together are neighbours in a plane, and one access.
constexpr int EACH_CHANNEL = VEC == 1 ? SHARERS : 1;

// Elements from a pixel of an image to the next, from a channel to the next, and to the image's first.
__device__ __forceinline__ int pixel_step(const Params& p) { return are_planes(p) ? 1 : p.channels; }
__device__ __forceinline__ Index channel_step(const Params& p) {
  return are_planes(p) ? plane_step<Index>(p) : 1;
}
__device__ __forceinline__ Index first_of_image(const Params& p, int image) {
  if (are_planes(p)) return plane_of<Index>(p, image);
  return (Index)image * p.height * p.width * p.channels;
}

// Where the gradient of a channel of a row is.
__device__ __forceinline__ Index grad_index(const Params& p, int row, int channel) {
  return are_planes(p) ? value_of_plane<Index>(p, row, channel) : (Index)row * p.channels + channel;
}

__device__ __forceinline__ Index first_pixel(const Params& p, const Row<Sum>& row) {
  return (Index)row.y * p.width + (Index)row.x;
}

// A channel of the image of a row.
__device__ __forceinline__ const Scalar* channel_of(const Params& p, const Scalar* input, const Row<Sum>& row, int c) {
  return input + (first_of_image(p, row.image) + c * channel_step(p));
}

__device__ __forceinline__ Index corner_of(const Params& p, const Cell<Sum>& cell, int k) {
  if (p.reads == READS_CORNERS) k &= (cell.flat_y ? 1 : 3) & (cell.flat_x ? 2 : 3);  // floor and ceil are one pixel
  return (Index)corner_pixel(cell, k, p.height, p.width) * pixel_step(p);
}

// Values of the rows of a block before they are written, with a gap after each row for another bank.
constexpr int GAP_BYTES = 16;
template <class T>
constexpr int STAGED = THREADS * (VEC + GAP_BYTES / (int)sizeof(T));

// values = what each thread has for its channels of its row, from the channel `slice` on. Every thread of the block must
// come here: neighbours write the same channel of neighbouring bins. EACH threads have the same channels; a region has so
// many SETS of values.
template <int EACH, int SETS, class T>
__device__ __forceinline__ void write_values(const Params& p, const Task<Sum>& task, int slice, const Pack<T, VEC>& own,
                                             T* staged, T* __restrict__ values) {
  const int rows = THREADS >> p.lane_bits, width = task.lanes / EACH * VEC;
  const int pitch = width + GAP_BYTES / (int)sizeof(T), pack = task.lane / EACH;
  if (task.lane % EACH == 0) own.store(staged + ((threadIdx.x >> p.lane_bits) * pitch + pack * VEC));
  __syncthreads();
  const int row = threadIdx.x & (rows - 1), first = threadIdx.x >> (__ffs(rows) - 1);
  const int number = blockIdx.x * rows + row;
  if (number < p.rows) {
    T* to = values + value_of_plane<Index>(p, number, slice + first);
    if (SETS > 1) to += (Index)quotient(number, p.bins) * ((SETS - 1) * p.channels) * p.bins.value;
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      const int c = first + v * task.lanes;
      if (c < width && slice + c < p.channels) to[(Index)(v * task.lanes) * p.bins.value] = staged[row * pitch + c];
    }
  }
  __syncthreads();
}

// Of a thread that has one channel, whose samples without a pixel add 0.
constexpr int AT_ONCE = VEC == 1 ? 4 : 1;

struct alignas(16) Footprint {
  Index corner[4];  // first element of each corner's pixel in the image; the first is negative outside
  Sum weight[4];
};

__device__ __forceinline__ Footprint footprint_of(const Params& p, const Cell<Sum>& cell) {
  Footprint f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    f.corner[k] = corner_of(p, cell, k);
    f.weight[k] = corner_weight(cell.ly, cell.lx, k);
  }
  if (!cell.inside) f.corner[0] = -1;
  return f;
}

// values = scaled sums of the samples of each row
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    pool(const Scalar* __restrict__ input, const Row<Sum>* __restrict__ rows, Scalar* __restrict__ values,
         const Params p) {
  SHARED(Footprint, notes, [THREADS]);
  SHARED(Scalar, staged, [STAGED<Scalar>]);
  const Task<Sum> task = task_of(p, rows);
  const Walk walk = walk_of(task);
  const int side = task.lane % EACH_CHANNEL;
  for (int slice = 0; slice < p.channels; slice += task.lanes / EACH_CHANNEL * VEC) {
    const int c = slice + task.lane / EACH_CHANNEL * VEC;
    const bool active = task.present && c < p.channels;
    const Scalar* from = channel_of(p, input, task.row, active ? c : 0);
    Sum sum[VEC] = {};
    each_sample<AT_ONCE>(
        task, walk, active, notes, [&](int a, int b) { return footprint_of(p, cell_of(p, task.row, a, b)); },
        [&](const Footprint& f) {
          const bool inside = f.corner[0] >= 0;
          if (VEC == 1) {
#pragma unroll
            for (int k = 0; k < 4; k += EACH_CHANNEL) {
              const Sum value = read(from + max(f.corner[k + side], Index(0)));
              sum[0] += f.weight[k + side] * (inside ? value : Sum(0));
            }
            return;
          }
          if (!inside) return;
          Channels corner[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) corner[k].load(from + f.corner[k]);
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[v] += f.weight[k] * widen(corner[k].lane[v]);
          }
        });
    if (EACH_CHANNEL > 1) group_sums(sum, EACH_CHANNEL);
    Channels out;
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(out.lane[v], task.row.scale * sum[v]);
    write_values<EACH_CHANNEL, 1>(p, task, slice, out, staged, values);
  }
}

struct alignas(16) Spot {
  Footprint footprint;
  Sum y, x;
};

// values = the largest sample of each row, the first that is, or the first NaN; places = [region][2][channels][bin], its
// y and its x, -2 where it is outside or there is none
extern "C" __global__ void __launch_bounds__(THREADS, MAX_BLOCKS)
    pool_largest(const Scalar* __restrict__ input, const Row<Sum>* __restrict__ rows, Scalar* __restrict__ values,
                 Sum* __restrict__ places, const Params p) {
  SHARED(Spot, notes, [THREADS]);
  SHARED(Scalar, staged, [STAGED<Scalar>]);
  SHARED(Sum, staged_places, [STAGED<Sum>]);
  const Task<Sum> task = task_of(p, rows);
  const Walk walk = walk_of(task);
  const auto make = [&](int a, int b) {
    const Cell<Sum> cell = cell_of(p, task.row, a, b);
    const Sum y = position(task.row.y, task.row.step_y, a), x = position(task.row.x, task.row.step_x, b);
    return Spot{footprint_of(p, cell), cell.inside ? y : Sum(-2), cell.inside ? x : Sum(-2)};
  };
  for (int slice = 0; slice < p.channels; slice += task.lanes * VEC) {
    const int c = slice + task.lane * VEC;
    const bool active = task.present && c < p.channels;
    const Scalar* from = channel_of(p, input, task.row, active ? c : 0);
    Sum best[VEC];
    Pack<Sum, VEC> y, x;
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      best[v] = Sum(0);
      y.lane[v] = x.lane[v] = Sum(-2);
    }
    bool first = true;
    each_sample<AT_ONCE>(task, walk, active, notes, make, [&](const Spot& spot) {
      Sum sample[VEC] = {};
      if (spot.footprint.corner[0] >= 0) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          Channels corner;
          corner.load(from + spot.footprint.corner[k]);
#pragma unroll
          for (int v = 0; v < VEC; ++v) sample[v] += spot.footprint.weight[k] * widen(corner.lane[v]);
        }
      }
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        if (first || (!(sample[v] <= best[v]) && best[v] == best[v])) {
          best[v] = sample[v];
          y.lane[v] = spot.y;
          x.lane[v] = spot.x;
        }
      }
      first = false;
    });
    // The scale of a row without samples, read again: to keep it through the loops takes sixteen registers.
    Sum missing = Sum(0);
    if (first && task.present) missing *= *(const volatile Sum*)&rows[task.number].scale;
    Channels out;
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(out.lane[v], first ? missing : best[v]);
    write_values<1, 1>(p, task, slice, out, staged, values);
    write_values<1, 2>(p, task, slice, y, staged_places, places);
    write_values<1, 2>(p, task, slice, x, staged_places, places + (Index)p.channels * p.bins.value);
  }
}

struct alignas(16) Touch {
  Index corner[4];  // as in a footprint
  Cell<Sum> cell;
};

// row_sums[row] = gradients (of a shift along y, along x, of the mask, 0) of a row without its mask
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    row_gradients(const Scalar* __restrict__ input, const Row<Sum>* __restrict__ rows,
                  const Scalar* __restrict__ grad_values, Sum* __restrict__ row_sums, const Params p) {
  SHARED(Touch, notes, [THREADS]);
  const Task<Sum> task = task_of(p, rows);
  const Walk walk = walk_of(task);
  Sum sums[3] = {};
  for (int slice = 0; slice < p.channels; slice += task.lanes * VEC) {
    const int c = slice + task.lane * VEC;
    const bool active = task.present && c < p.channels;
    const Scalar* from = channel_of(p, input, task.row, active ? c : 0);
    Channels grad;
    grad.clear();
    if (active) grad.load(grad_values + grad_index(p, task.number, c));
    const auto make = [&](int a, int b) {
      Touch touch;
      touch.cell = cell_of(p, task.row, a, b);
#pragma unroll
      for (int k = 0; k < 4; ++k) touch.corner[k] = corner_of(p, touch.cell, k);
      return touch;
    };
    each_sample<AT_ONCE>(task, walk, active, notes, make, [&](const Touch& touch) {
      const Cell<Sum>& cell = touch.cell;
      if (VEC > 1 && !cell.inside) return;
      Channels corner[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) corner[k].load(from + touch.corner[k]);
      Sum dot[4] = {}, along_y, along_x;
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
#pragma unroll
        for (int k = 0; k < 4; ++k) dot[k] += widen(grad.lane[v]) * widen(corner[k].lane[v]);
      }
#pragma unroll
      for (int k = 0; VEC == 1 && k < 4; ++k) dot[k] = cell.inside ? dot[k] : Sum(0);
      slopes(cell, dot, along_y, along_x);
      sums[0] += along_y;
      sums[1] += along_x;
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[2] += corner_weight(cell.ly, cell.lx, k) * dot[k];
    });
  }
  group_sums(sums, task.lanes);
  if (task.lane == 0 && task.present) {
    Pack<Sum, 4> out;
    out.clear();
#pragma unroll
    for (int i = 0; i < 3; ++i) out.lane[i] = task.row.scale * sums[i];
    out.store(row_sums + 4 * (Index)task.number);
  }
}

constexpr int TOGETHER = 4;  // pixels that are on their way at once

// values = scaled sums of the pixels of each row
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    pool_mean(const Scalar* __restrict__ input, const Row<Sum>* __restrict__ rows, Scalar* __restrict__ values,
              const Params p) {
  SHARED(Scalar, staged, [STAGED<Scalar>]);
  const Task<Sum> task = task_of(p, rows);
  const int side = task.lane % EACH_CHANNEL;
  const int count = task.row.ny * task.row.nx, nx = max(task.row.nx, 1);
  const int start_a = quotient(side, nx), start_b = side - start_a * nx;
  const int step_a = quotient(EACH_CHANNEL, nx), step_b = EACH_CHANNEL - step_a * nx;
  for (int slice = 0; slice < p.channels; slice += task.lanes / EACH_CHANNEL * VEC) {
    const int c = slice + task.lane / EACH_CHANNEL * VEC;
    Sum sum[VEC] = {};
    if (task.present && c < p.channels) {
      const Scalar* from = channel_of(p, input, task.row, c) + first_pixel(p, task.row) * pixel_step(p);
      int a = start_a, b = start_b;
      for (int pixel = side; pixel < count; pixel += TOGETHER * EACH_CHANNEL) {
        Channels here[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
          here[i].clear();
          if (pixel + i * EACH_CHANNEL < count) here[i].load(from + (Index)(a * p.width + b) * pixel_step(p));
          a += step_a;
          b += step_b;
          if (b >= task.row.nx) {
            b -= task.row.nx;
            ++a;
          }
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
#pragma unroll
          for (int v = 0; v < VEC; ++v) sum[v] += widen(here[i].lane[v]);
        }
      }
    }
    if (EACH_CHANNEL > 1) group_sums(sum, EACH_CHANNEL);
    Channels out;
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(out.lane[v], task.row.scale * sum[v]);
    write_values<EACH_CHANNEL, 1>(p, task, slice, out, staged, values);
  }
}

// values = the largest pixel of each row, argmax = the first that is, or the first NaN; 0 (NaN without an image) and -1 if
// there is none
extern "C" __global__ void __launch_bounds__(THREADS, MAX_BLOCKS)
    pool_max(const Scalar* __restrict__ input, const Row<Sum>* __restrict__ rows, Scalar* __restrict__ values,
             int* __restrict__ argmax, const Params p) {
  SHARED(Scalar, staged, [STAGED<Scalar>]);
  SHARED(int, staged_pixels, [STAGED<int>]);
  const Task<Sum> task = task_of(p, rows);
  const bool empty = task.row.ny * task.row.nx == 0;
  const int first = (int)first_pixel(p, task.row);
  for (int slice = 0; slice < p.channels; slice += task.lanes * VEC) {
    const int c = slice + task.lane * VEC;
    Channels here;
    Sum best[VEC];
    Pack<int, VEC> chosen;
    here.clear();
    const bool active = task.present && c < p.channels && !empty;
    const Scalar* line = channel_of(p, input, task.row, active ? c : 0) + (Index)first * pixel_step(p);
    if (active) here.load(line);
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      best[v] = empty ? task.row.scale * Sum(0) : widen(here.lane[v]);
      chosen.lane[v] = empty ? -1 : first;
    }
    for (int a = 0; active && a < task.row.ny; ++a, line += (Index)p.width * pixel_step(p)) {
      const Scalar* pixel = line;
      for (int b = 0; b < task.row.nx; ++b, pixel += pixel_step(p)) {
        here.load(pixel);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
          const Sum value = widen(here.lane[v]);
          if (!(value <= best[v]) && best[v] == best[v]) {
            best[v] = value;
            chosen.lane[v] = first + a * p.width + b;
          }
        }
      }
    }
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(here.lane[v], best[v]);
    write_values<1, 1>(p, task, slice, here, staged, values);
    write_values<1, 1>(p, task, slice, chosen, staged_pixels, argmax);
  }
}

// grad_input = every pixel's share of the grad_values of the rows that touch it: a block has a tile of pixels, a group of
// its lanes PATCH of them, side by side
template <class Target>
__device__ __forceinline__ void gather_patches(const Bounds<Sum>* __restrict__ bounds, const Row<Sum>* __restrict__ rows,
                                               const Scalar* __restrict__ grad_values, Target* __restrict__ grad_input,
                                               const Params& p) {
  SHARED(Listed<Sum>, shared, [1]);
  Listed<Sum>& listed = shared[0];
  const int lanes = 1 << p.lane_bits, lane = threadIdx.x & (lanes - 1), patch = threadIdx.x >> p.lane_bits;
  const int slices = (p.channels - 1) / (lanes * VEC) + 1, number = quotient((int)blockIdx.x, slices);
  const Tile tile = tile_of(p, number);
  const int c = ((int)blockIdx.x - number * slices) * lanes * VEC + lane * VEC;
  const int patches = quotient(p.tile_x, PATCH), line = quotient(patch, patches);
  const int column = (patch - line * patches) * PATCH, y = tile.top + line, x = tile.left + column;
  const bool active = c < p.channels && y < p.height;
  Target* out = grad_input + ((((Index)tile.image * p.height + y) * p.width + x) * p.channels + c);
  Sum sum[PATCH][VEC] = {};
  Pack<Target, VEC> result;
#pragma unroll
  for (int i = 0; i < PATCH; ++i) {
    if (!p.accumulate || !active || x + i >= p.width) continue;
    result.load_written(out + (Index)i * p.channels);
#pragma unroll
    for (int v = 0; v < VEC; ++v) sum[i][v] = widen(result.lane[v]);
  }
  each_batch(p, tile, bounds, rows, listed, [&](const int* numbers, int count) {
    for (int first = 0; first < count; first += AT_ONCE_ROWS) {
      Channels grad[AT_ONCE_ROWS];
      Pack<Sum, PATCH> across[AT_ONCE_ROWS];
      Sum down[AT_ONCE_ROWS], scale[AT_ONCE_ROWS];
      // All that is read is on its way before any is added.
#pragma unroll
      for (int k = 0; k < AT_ONCE_ROWS; ++k) {
        const int place = min(first + k, count - 1);
        const Sum* shares = listed.shares + place * (p.tile_y + p.tile_x);
        across[k].load_written(shares + column);
        down[k] = shares[p.tile_x + line];
        scale[k] = listed.scales[place];
        if (first + k >= count || !active) down[k] = Sum(-1);
        bool any = false;
#pragma unroll
        for (int i = 0; i < PATCH; ++i) any |= across[k].lane[i] >= Sum(0);
        grad[k].clear();
        if (any && down[k] >= Sum(0)) grad[k].load(grad_values + ((Index)numbers[place] * p.channels + c));
      }
#pragma unroll
      for (int k = 0; k < AT_ONCE_ROWS; ++k) {
        if (!(down[k] >= Sum(0))) continue;
#pragma unroll
        for (int i = 0; i < PATCH; ++i) {
          if (!(across[k].lane[i] >= Sum(0))) continue;  // 0 * NaN is not 0
          const Sum weight = down[k] * across[k].lane[i] * scale[k];
#pragma unroll
          for (int v = 0; v < VEC; ++v) sum[i][v] += weight * widen(grad[k].lane[v]);
        }
      }
    }
  });
#pragma unroll
  for (int i = 0; i < PATCH; ++i) {
    if (!active || x + i >= p.width) continue;
#pragma unroll
    for (int v = 0; v < VEC; ++v) narrow(result.lane[v], sum[i][v]);
    result.store(out + (Index)i * p.channels);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, GATHER_BLOCKS)
    gather_rows(const Bounds<Sum>* __restrict__ bounds, const Row<Sum>* __restrict__ rows,
                const Scalar* __restrict__ grad_values, Scalar* __restrict__ grad_input, const Params p) {
  gather_patches(bounds, rows, grad_values, grad_input, p);
}

// The same into unrounded sums, for regions that come in several launches
extern "C" __global__ void __launch_bounds__(THREADS, GATHER_BLOCKS)
    gather_rows_sums(const Bounds<Sum>* __restrict__ bounds, const Row<Sum>* __restrict__ rows,
                     const Scalar* __restrict__ grad_values, Sum* __restrict__ grad_input, const Params p) {
  gather_patches(bounds, rows, grad_values, grad_input, p);
}
