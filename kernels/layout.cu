// Moving arrays between layouts and storage types: several in one launch, because a launch has its price too.
//
// SOURCE, TARGET: storage types; INDEX: integer that counts elements of an array.
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
  int wide_source;         // whether vectors of the source may be read, see the host
  int wide_target;         // and those of the target be written
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

// From the host: THREADS, the side of a TILE, JOBS, and the most elements of a VECTOR, which has up to 16 bytes.
constexpr int ACROSS = VECTOR * sizeof(Source) > 16 ? 16 / sizeof(Source) : VECTOR;
constexpr int DOWN = VECTOR * sizeof(Target) > 16 ? 16 / sizeof(Target) : VECTOR;
// Blocks at once on a multiprocessor, at least: leaves a thread 64 registers, or 80 where it counts with 64 bits.
constexpr int BLOCKS = sizeof(Index) == 8 ? 3 : 4;
constexpr int BANKS = 128;  // bytes of shared memory that are moved at once

template <class From, class To>
__device__ __forceinline__ void convert(From value, To& result) {
  narrow(result, widen(value));
}
template <class Same>
__device__ __forceinline__ void convert(Same value, Same& result) {
  result = value;
}

// Rows of a column of a tile, as one instruction may move them.
struct alignas(16) Words {
  Target lane[16 / sizeof(Target)];
};

// Where an element is in a tile, whose columns lie one after the other. Neighbouring packs of A columns exchange packs
// of D rows, each pair in another way, so that those that a warp writes at once are in different banks.
template <int D, int A>
__device__ __forceinline__ int place_in_tile(int column, int row) {
  constexpr int unit = D * sizeof(Target) < 4 ? 4 / sizeof(Target) : D;
  return column * TILE + (row ^ column / A * unit % (BANKS / (int)sizeof(Target)));
}

// target[column][row] = source[row][column] for the tile at (row, column) of a matrix: packs of A columns are read, and
// packs of D rows written. All is read before anything waits for it.
template <int D, int A>
__device__ __forceinline__ void transpose_tile(const Job& p, const Source* __restrict__ from, Target* __restrict__ to,
                                               int row, int column, Target* tile) {
  constexpr int READERS = TILE / A, READ_STEP = THREADS / READERS * D;
  constexpr int WRITERS = TILE / D, WRITE_STEP = THREADS / WRITERS;
  {
    const int x = threadIdx.x % READERS * A, y = threadIdx.x / READERS * D;
    const int rows = column + x < p.columns ? p.rows - row - y : 0;
    const Source* line = from + ((Index)(row + y) * p.source_pitch + column + x);
    Pack<Source, A> read[TILE / READ_STEP][D];
#pragma unroll
    for (int i = 0; i < TILE / READ_STEP; ++i) {
#pragma unroll
      for (int d = 0; d < D; ++d, line += p.source_pitch) {
        if (i * READ_STEP < rows) read[i][d].load(line);
      }
      line += (Index)(READ_STEP - D) * p.source_pitch;
    }
#pragma unroll
    for (int i = 0; i < TILE / READ_STEP; ++i) {
      if (i * READ_STEP >= rows) break;
#pragma unroll
      for (int a = 0; a < A; ++a) {
        Pack<Target, D> pack;
#pragma unroll
        for (int d = 0; d < D; ++d) convert(read[i][d].lane[a], pack.lane[d]);
        pack.store(tile + place_in_tile<D, A>(x + a, y + i * READ_STEP));
      }
    }
  }
  __syncthreads();
  const int y = threadIdx.x % WRITERS * D, x = threadIdx.x / WRITERS;
  const int columns = row + y < p.rows ? p.columns - column - x : 0;
  Target* line = to + ((Index)(column + x) * p.target_pitch + row + y);
  Pack<Target, D> packs[TILE / WRITE_STEP];
#pragma unroll
  for (int i = 0; i < TILE / WRITE_STEP; ++i) {
    if (i * WRITE_STEP < columns) packs[i].load_written(tile + place_in_tile<D, A>(x + i * WRITE_STEP, y));
  }
#pragma unroll
  for (int i = 0; i < TILE / WRITE_STEP; ++i, line += (Index)WRITE_STEP * p.target_pitch) {
    if (i * WRITE_STEP < columns) packs[i].store(line);
  }
}

// target[matrix][column][row] = source[matrix][row][column]
__device__ __forceinline__ void transpose(const Job& p, const Source* __restrict__ source,
                                          Target* __restrict__ target, int block, Target* tile) {
  const int down = quotient(block, p.tiles_across), across = block - down * p.tiles_across;
  const int matrix = quotient(down, p.tiles_down);
  const int row = (down - matrix * p.tiles_down) * TILE, column = across * TILE;
  const int step = quotient(matrix, p.groups), group = matrix - step * p.groups;
  const Source* from = source + (step * p.source_step + group * p.source_group);
  Target* to = target + (step * p.target_step + group * p.target_group);
  if (p.wide_source && p.wide_target) {
    transpose_tile<DOWN, ACROSS>(p, from, to, row, column, tile);
  } else if (p.wide_source) {
    transpose_tile<1, ACROSS>(p, from, to, row, column, tile);
  } else if (p.wide_target) {
    transpose_tile<DOWN, 1>(p, from, to, row, column, tile);
  } else {
    transpose_tile<1, 1>(p, from, to, row, column, tile);
  }
}

// target[i] = source[i / inner % channels]: a bias over an array, or for inner = 1 and channels = count a copy; without
// a source, 1. A thread has a pack of the target, and of the source where that is wide.
__device__ __forceinline__ void fill(const Job& p, const Source* __restrict__ source, Target* __restrict__ target,
                                     int block) {
  constexpr int PACK = 16 / (sizeof(Source) < sizeof(Target) ? sizeof(Source) : sizeof(Target));
  const Index step = (Index)p.blocks * (THREADS * PACK);
  for (Index first = ((Index)block * THREADS + threadIdx.x) * PACK; first < p.count; first += step) {
    const auto place = [&](Index i) {
      const Index number = quotient(i, p.inner);
      return number - quotient(number, p.channels) * p.channels;
    };
    const bool whole = first + PACK <= p.count;
    Pack<Target, PACK> pack;
    if (!source) {
#pragma unroll
      for (int i = 0; i < PACK; ++i) narrow(pack.lane[i], 1);
    } else if (p.inner.value % PACK == 0) {
      convert(source[place(first)], pack.lane[0]);
#pragma unroll
      for (int i = 1; i < PACK; ++i) pack.lane[i] = pack.lane[0];
    } else if (p.wide_source && whole) {
      Pack<Source, PACK> read;
      read.load(source + place(first));
#pragma unroll
      for (int i = 0; i < PACK; ++i) convert(read.lane[i], pack.lane[i]);
    } else {
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        if (first + i < p.count) convert(source[place(first + i)], pack.lane[i]);
      }
    }
    if (p.wide_target && whole) {
      pack.store(target + first);
    } else {
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        if (first + i < p.count) target[first + i] = pack.lane[i];
      }
    }
  }
}

#define ARRAYS(n) const Source *__restrict__ source##n, Target *__restrict__ target##n

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    arrange(ARRAYS(0), ARRAYS(1), ARRAYS(2), ARRAYS(3), ARRAYS(4), const Params p) {
  static_assert(JOBS == 5, "a pair of arrays for each job");
  SHARED(Words, tile, [TILE * TILE * sizeof(Target) / sizeof(Words)]);
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
    transpose(job, source, target, block - job.first_block, tile->lane);
  }
}
