// Moving arrays between layouts and storage types: several in one launch, because a launch has its price too.
//
// SOURCE, TARGET: storage types, or both int; INDEX: integer that counts elements of an array.
#include "prelude.cuh"

using Source = SOURCE;
using Target = TARGET;
using Index = INDEX;

// What is done to one pair of arrays: a transposition of matrices, or where `count` is not 0 a fill.
struct Job {
  int first_block, blocks;
  int rows, columns;       // of one matrix
  Divisor tiles_down, tiles_across;
  Divisor groups;          // matrices side by side in one step
  int source_pitch;        // elements from one row of a matrix to the next
  int target_pitch;
  Divisor channels, inner;  // fill: target[i] = source[i / inner % channels]
  long long source_step;   // elements from one step of the source to the next
  long long target_step;
  long long source_group;  // elements from one matrix of a step to the next
  long long target_group;
  long long count;         // elements to fill
};

struct Params {
  Job jobs[JOBS];
};

// From the host: THREADS, the side of a TILE, and JOBS.
constexpr int ROWS = THREADS / TILE;  // rows of a tile that move at once

__device__ __forceinline__ int widen(int x) { return x; }
__device__ __forceinline__ void narrow(int& x, int value) { x = value; }

__device__ __forceinline__ Target convert(Source value) {
  Target result;
  narrow(result, widen(value));
  return result;
}

// target[matrix][column][row] = source[matrix][row][column]
__device__ __forceinline__ void transpose(const Job& p, const Source* __restrict__ source,
                                          Target* __restrict__ target, int block, Target (&tile)[TILE][TILE + 1]) {
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

// target[i] = source[i / inner % channels]: a bias over an array, or for inner = 1 and channels = count a copy; without
// a source, 1
__device__ __forceinline__ void fill(const Job& p, const Source* __restrict__ source, Target* __restrict__ target,
                                     int block) {
  const Index step = (Index)p.blocks * THREADS;
  Target one;
  narrow(one, 1);
  for (Index i = (Index)block * THREADS + threadIdx.x; i < p.count; i += step) {
    const Index number = quotient(i, p.inner);
    target[i] = source ? convert(source[number - quotient(number, p.channels) * p.channels]) : one;
  }
}

#define ARRAYS(n) const Source *__restrict__ source##n, Target *__restrict__ target##n

extern "C" __global__ void __launch_bounds__(THREADS)
    arrange(ARRAYS(0), ARRAYS(1), ARRAYS(2), ARRAYS(3), ARRAYS(4), const Params p) {
  static_assert(JOBS == 5, "a pair of arrays for each job");
  SHARED(Target, tile, [TILE][TILE + 1]);
  const int block = blockIdx.x;
  const Source* source = source0;
  Target* target = target0;
  int number = 0;
#define TAKE(n) \
  if (block >= p.jobs[n].first_block) { \
    number = n; \
    source = source##n; \
    target = target##n; \
  }
  TAKE(1)
  TAKE(2)
  TAKE(3)
  TAKE(4)
  const Job& job = p.jobs[number];
  if (job.count > 0) {
    fill(job, source, target, block - job.first_block);
  } else {
    transpose(job, source, target, block - job.first_block, tile);
  }
}
