// Moving arrays between layouts and storage types.
//
// SOURCE, TARGET: storage types, or both int; INDEX: integer that counts elements of an array.
#include "prelude.cuh"

using Source = SOURCE;
using Target = TARGET;
using Index = INDEX;

struct Params {
  int rows, columns;       // of one matrix
  Divisor tiles_down, tiles_across;
  Divisor groups;          // matrices side by side in one step
  long long source_step;   // elements from one step of the source to the next
  long long target_step;
  long long source_group;  // elements from one matrix of a step to the next
  long long target_group;
  int source_pitch;        // elements from one row of a matrix to the next
  int target_pitch;
  long long count;         // elements to fill
  Divisor channels, inner;  // fill: target[i] = source[i / inner % channels]
};

// From the host: THREADS, and the side of a TILE.
constexpr int ROWS = THREADS / TILE;  // rows of a tile that move at once

__device__ __forceinline__ int widen(int x) { return x; }
__device__ __forceinline__ void narrow(int& x, int value) { x = value; }

__device__ __forceinline__ Target convert(Source value) {
  Target result;
  narrow(result, widen(value));
  return result;
}

// target[matrix][column][row] = source[matrix][row][column]
extern "C" __global__ void __launch_bounds__(THREADS)
    transpose(const Source* __restrict__ source, Target* __restrict__ target, const Params p) {
  SHARED(Target, tile, [TILE][TILE + 1]);
  const int block = blockIdx.x;
  const int down = quotient(block, p.tiles_across), across = block - down * p.tiles_across;
  const int matrix = quotient(down, p.tiles_down);
  const int row = (down - matrix * p.tiles_down) * TILE, column = across * TILE;
  const int x = threadIdx.x % TILE;
  const int step = quotient(matrix, p.groups), group = matrix - step * p.groups;
  const Source* from = source + (step * p.source_step + group * p.source_group);
  Target* to = target + (step * p.target_step + group * p.target_group);
  for (int y = threadIdx.x / TILE; y < TILE; y += ROWS) {
    if (row + y < p.rows && column + x < p.columns) {
      tile[y][x] = convert(from[(Index)(row + y) * p.source_pitch + column + x]);
    }
  }
  __syncthreads();
  for (int y = threadIdx.x / TILE; y < TILE; y += ROWS) {
    if (column + y < p.columns && row + x < p.rows) {
      to[(Index)(column + y) * p.target_pitch + row + x] = tile[x][y];
    }
  }
}

// target[i] = source[i / inner % channels]: a bias or a constant over an array; inner = 1 and channels = count copies
extern "C" __global__ void __launch_bounds__(THREADS)
    fill(const Source* __restrict__ source, Target* __restrict__ target, const Params p) {
  const Index step = (Index)gridDim.x * THREADS;
  for (Index i = (Index)blockIdx.x * THREADS + threadIdx.x; i < p.count; i += step) {
    const Index number = quotient(i, p.inner);
    target[i] = convert(source[number - quotient(number, p.channels) * p.channels]);
  }
}
