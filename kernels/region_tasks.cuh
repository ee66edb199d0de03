// Groups of lanes that have a row each, and how they share its samples.
#pragma once
#include "regions.cuh"

// From the host: THREADS.
// The row of a group of lanes, and this thread's place in the group.
template <class S>
struct Task {
  int lanes, lane;
  int number;  // of the row
  bool present;
  Row<S> row;
};

template <class S>
__device__ __forceinline__ Task<S> task_of(const Params& p, const Row<S>* __restrict__ rows) {
  Task<S> task;
  task.lanes = 1 << p.lane_bits;
  task.lane = threadIdx.x & (task.lanes - 1);
  task.number = blockIdx.x * (THREADS >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  task.present = task.number < p.rows;
  task.row = Row<S>{};
  if (task.present) task.row = rows[task.number];
  return task;
}

// How the lanes of a row share its samples: one each, then the next ones.
struct Walk {
  int count;   // samples of the row
  int rounds;  // the most of any row of the warp: all come to its barriers equally often
  int a, b;    // this lane's first sample
  int step_a, step_b;
};

template <class S>
__device__ __forceinline__ Walk walk_of(const Task<S>& task) {
  Walk walk;
  walk.count = task.row.ny * task.row.nx;
  const int nx = max(task.row.nx, 1);
  walk.a = quotient(task.lane, nx);
  walk.b = task.lane - walk.a * nx;
  walk.step_a = quotient(task.lanes, nx);
  walk.step_b = task.lanes - walk.step_a * nx;
  walk.rounds = walk.count;
  for (int step = 16; step > 0; step /= 2) {
    walk.rounds = max(walk.rounds, __shfl_xor_sync(0xffffffffu, walk.rounds, step));
  }
  return walk;
}

// Calls use(note) for each sample of the row in order, where note = make(a, b) was made by one lane for all: some AT_ONCE,
// so that what they read is on its way together.
template <int AT_ONCE, class S, class Note, class Make, class Use>
__device__ __forceinline__ void each_sample(const Task<S>& task, const Walk& walk, bool active, Note* notes, Make make,
                                            Use use) {
  Note* shared = notes + (threadIdx.x - task.lane);
  int a = walk.a, b = walk.b;
  for (int first = 0; first < walk.rounds; first += task.lanes) {
    if (first + task.lane < walk.count) shared[task.lane] = make(a, b);
    a += walk.step_a;
    b += walk.step_b;
    if (b >= task.row.nx) {
      b -= task.row.nx;
      ++a;
    }
    __syncwarp(0xffffffffu);
    const int here = active ? min(walk.count - first, task.lanes) : 0;
#pragma unroll AT_ONCE
    for (int i = 0; i < here; ++i) use(shared[i]);
    __syncwarp(0xffffffffu);
  }
}
