// Runs a grid on one host thread: blocks one after the other, the threads of a block as fibers that switch
// where a GPU could: at barriers and warp collectives. The order of blocks and threads is the launch's to
// choose.
#include "runtime.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <sys/mman.h>

#include "fiber.h"

// The kernels see these four as constants (shim.h): within one thread they are.
emulator::Dim threadIdx, blockIdx, blockDim, gridDim;
extern "C"
    __attribute__((visibility("hidden"))) char __ehdr_start;  // by the linker: where the unit's image starts

namespace emulator {

int running_thread;
uintptr_t stacks_begin;
size_t stacks_bytes;

namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
// An odd number of cache lines: with a power of two the tops of all stacks would share a few cache sets.
constexpr size_t kStackBytes = 64 * 1024 + 5 * 64;
constexpr uint64_t kStackEnd = 0x5AFE57ACC0DEull;  // lowest word of a stack; gone when it overflowed

enum class State : uint8_t { fresh, ready, at_barrier, in_warp, done };

struct Thread {
  Context context;
  unsigned char* stack;  // from the first instruction to the last; reused by threads that start later
  Dim index;
  int id;
  State state;
  // what it waits for
  Site site;
  Vote vote;
  int predicate;
  unsigned mask;
  const void* in;
  void* out;
  Combine combine;
};

struct Warp {
  unsigned present;  // lanes that exist: the last warp of a block may be partial
  unsigned waiting;
  unsigned exited;
};

Launch* launch;
Body body;
void* body_call;
Context scheduler;

std::vector<Thread> threads;
std::vector<Warp> warps;
Thread* current;
int live;
int at_barrier;

std::vector<int> turn;  // the order in which threads get their turn in this round
size_t next_turn;
uint64_t random_state;

unsigned char* stacks;
std::vector<unsigned char*> free_stacks;

uint64_t next_random() {  // xorshift
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

template <class T>
void arrange(std::vector<T>& items) {
  for (size_t i = 0; i < items.size(); ++i) {
    items[i] = T(launch->order == kDescending ? items.size() - 1 - i : i);
  }
}

template <class T>
void shuffle(std::vector<T>& items) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next_random() % i]);
}

// -- failures -------------------------------------------------------------------------------------

uintptr_t image_offset(const void* pc) {
  return pc ? reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(&__ehdr_start) : 0;
}

void record_failure(const void* pc, const char* format, va_list values) {
  Failure& failure = launch->failure;
  failure.failed = 1;
  vsnprintf(failure.what, sizeof failure.what, format, values);
  failure.pc = image_offset(pc);
  memcpy(failure.block, &blockIdx, sizeof failure.block);
  memcpy(failure.thread, &threadIdx, sizeof failure.thread);
}

[[noreturn]] void leave_block() {
  switch_context(current->context, scheduler);
  abort();
}

// -- the turn goes round --------------------------------------------------------------------------

Thread* next_runnable() {
  for (int round = 0; round < 2; ++round) {
    while (next_turn < turn.size()) {
      Thread& thread = threads[turn[next_turn++]];
      if (thread.state == State::fresh || thread.state == State::ready) return &thread;
    }
    next_turn = 0;
    if (launch->order == kRandom) shuffle(turn);
  }
  return nullptr;
}

void check_stack(const Thread& thread) {
  uint64_t end;
  memcpy(&end, thread.stack, sizeof end);
  if (end != kStackEnd) stop(nullptr, "the thread overflowed its stack of %zu bytes", kStackBytes);
}

void make_current(Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
  running_thread = thread.id;
}

void thread_loop();

void switch_to(Context& from, Thread& to) {
  if (to.state == State::fresh) {
    to.stack = free_stacks.back();
    free_stacks.pop_back();
    memcpy(to.stack, &kStackEnd, sizeof kStackEnd);
    to.state = State::ready;
    prepare(to.context, to.stack, kStackBytes, thread_loop);
  }
  make_current(to);
  switch_context(from, to.context);
}

[[noreturn]] void stop_deadlock() {
  const Thread* barrier = nullptr;
  const Thread* warp = nullptr;
  for (const Thread& thread : threads) {
    if (thread.state == State::at_barrier) barrier = &thread;
    if (thread.state == State::in_warp) warp = &thread;
  }
  if (!barrier) {
    stop(nullptr,
         "divergent warp collective: deadlock, lanes wait at %s:%d (mask %08x) for lanes that never come",
         warp->site.file, warp->site.line, warp->mask);
  }
  stop(nullptr,
       "divergent warp collective: deadlock, %d threads wait at the barrier %s:%d, thread %d at %s:%d (mask "
       "%08x)",
       at_barrier, barrier->site.file, barrier->site.line, warp->id, warp->site.file, warp->site.line,
       warp->mask);
}

// Runs the others until it is `me`'s turn again.
void wait(Thread& me) {
  check_stack(me);
  Thread* next = next_runnable();
  if (!next) stop_deadlock();
  if (next != &me) switch_to(me.context, *next);
}

void check_barrier_is_complete() {
  if (at_barrier == 0 || at_barrier < live) return;
  if (live == int(threads.size())) return;
  for (const Thread& thread : threads) {
    if (thread.state != State::at_barrier) continue;
    stop(nullptr, "divergent barrier: %d threads wait at %s:%d, the other %d of the block have exited",
         at_barrier, thread.site.file, thread.site.line, int(threads.size()) - live);
  }
}

bool same_site(Site a, Site b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

void release_barrier(const Thread& me) {
  int votes = 0;
  for (const Thread& thread : threads) {
    votes += thread.predicate;
    if (thread.vote == me.vote && same_site(thread.site, me.site)) continue;
    stop(nullptr, "divergent barrier: thread %d waits at %s:%d, thread %d at %s:%d", me.id, me.site.file,
         me.site.line, thread.id, thread.site.file, thread.site.line);
  }
  const int all = int(threads.size());
  const int result = me.vote == Vote::count ? votes : me.vote == Vote::all ? votes == all : votes != 0;
  for (Thread& thread : threads) {
    thread.predicate = result;
    thread.state = State::ready;
  }
  at_barrier = 0;
  checker_block_barrier();
}

void release_warp(int warp, unsigned needed, const Thread& me) {
  const void* in[kWarpSize] = {};
  void* out[kWarpSize] = {};
  for (unsigned lanes = needed; lanes; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    Thread& thread = threads[warp * kWarpSize + lane];
    const bool same_call = thread.combine == me.combine && same_site(thread.site, me.site);
    if (!same_call || thread.mask != me.mask) {
      stop(nullptr,
           "divergent warp collective: thread %d at %s:%d with mask %08x, thread %d at %s:%d with mask %08x",
           me.id, me.site.file, me.site.line, me.mask, thread.id, thread.site.file, thread.site.line,
           thread.mask);
    }
    in[lane] = thread.in;
    out[lane] = thread.out;
    thread.state = State::ready;
  }
  warps[warp].waiting &= ~needed;
  if (me.combine) me.combine(in, out, needed);
  if (!me.combine) checker_warp_barrier(warp, needed);
}

void finish(Thread& me) {
  check_stack(me);
  me.state = State::done;
  --live;
  check_barrier_is_complete();
  Warp& warp = warps[me.id / kWarpSize];
  const unsigned bit = 1u << me.id % kWarpSize;
  warp.exited |= bit;
  for (unsigned waiting = warp.waiting; waiting; waiting &= waiting - 1) {
    const Thread& other = threads[me.id / kWarpSize * kWarpSize + __builtin_ctz(waiting)];
    if (other.mask & bit) {
      stop(nullptr, "divergent warp collective: the thread exits, but %s:%d names its lane (mask %08x)",
           other.site.file, other.site.line, other.mask);
    }
  }
}

// The bottom of every stack. A thread that never waits hands its stack straight to the next one.
void thread_loop() {
  for (;;) {
    body(body_call);
    finish(*current);
    Thread* next = next_runnable();
    if (live == 0) {
      shared_check_guards();
      leave_block();
    }
    if (!next) stop_deadlock();
    unsigned char* stack = current->stack;
    if (next->state == State::fresh) {
      next->stack = stack;
      next->state = State::ready;
      make_current(*next);
    } else {
      free_stacks.push_back(stack);
      switch_to(current->context, *next);
    }
  }
}

// -- a block, a grid ------------------------------------------------------------------------------

void allocate_stacks() {
  stacks_bytes = kStackBytes * kMaxThreads;
  void* memory =
      mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  stacks = static_cast<unsigned char*>(memory);
  stacks_begin = reinterpret_cast<uintptr_t>(stacks);
}

void reset_stacks(int count) {
  free_stacks.clear();
  for (int i = count - 1; i >= 0; --i) free_stacks.push_back(stacks + kStackBytes * i);
}

void begin_threads(unsigned count) {
  const Dim size = blockDim;
  threads.resize(count);
  turn.resize(count);
  warps.resize((count + kWarpSize - 1) / kWarpSize);
  for (unsigned i = 0; i < count; ++i) {
    threads[i].id = int(i);
    threads[i].index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
  }
}

void run_block() {
  live = int(threads.size());
  at_barrier = 0;
  for (Thread& thread : threads) thread.state = State::fresh;
  for (size_t i = 0; i < warps.size(); ++i) {
    const int lanes = std::min(kWarpSize, live - int(i) * kWarpSize);
    warps[i] = {lanes == kWarpSize ? ~0u : (1u << lanes) - 1, 0, 0};
  }
  arrange(turn);
  if (launch->order == kRandom) shuffle(turn);
  next_turn = 0;
  reset_stacks(live);
  shared_begin_block();
  checker_begin_block(live);
  switch_to(scheduler, *next_runnable());
}

}  // namespace

// -- what the kernels call ------------------------------------------------------------------------

void stop(const void* pc, const char* format, ...) {
  va_list values;
  va_start(values, format);
  record_failure(pc, format, values);
  va_end(values);
  leave_block();
}

void stop_race(const void* pc, uintptr_t other_pc, const char* what) {
  Failure& failure = launch->failure;
  failure.other_pc = other_pc;
  stop(pc, "%s", what);
}

int block_barrier(Vote vote, int predicate, Site site) {
  Thread& me = *current;
  me.state = State::at_barrier;
  me.site = site;
  me.vote = vote;
  me.predicate = predicate != 0;
  ++at_barrier;
  check_barrier_is_complete();
  const bool released = at_barrier == int(threads.size());
  if (released) release_barrier(me);
  if (!released || launch->order != kAscending) wait(me);
  return me.predicate;
}

void warp_collective(unsigned mask, const void* in, void* out, Combine combine, Site site) {
  Thread& me = *current;
  Warp& warp = warps[me.id / kWarpSize];
  const unsigned bit = 1u << me.id % kWarpSize;
  if (!(mask & bit)) {
    stop(nullptr, "divergent warp collective: %s:%d, mask %08x lacks the caller's lane", site.file, site.line,
         mask);
  }
  if (mask & warp.exited) {
    stop(nullptr, "divergent warp collective: %s:%d, mask %08x names lanes that have exited (%08x)",
         site.file, site.line, mask, mask & warp.exited);
  }
  me.state = State::in_warp;
  me.site = site;
  me.mask = mask;
  me.in = in;
  me.out = out;
  me.combine = combine;
  warp.waiting |= bit;
  const unsigned needed = mask & warp.present;
  const bool complete = (warp.waiting & needed) == needed;
  if (complete) release_warp(me.id / kWarpSize, needed, me);
  if (!complete || launch->order != kAscending) wait(me);
}

unsigned active_mask() {
  const Warp& warp = warps[current->id / kWarpSize];
  return warp.present & ~warp.exited;
}

int lane() { return current->id % kWarpSize; }

void run(Launch& the_launch, Body the_body, void* call) {
  launch = &the_launch;
  body = the_body;
  body_call = call;
  random_state = launch->seed * 2654435761u + 88172645463325252ull;
  memcpy(&gridDim, launch->grid, sizeof gridDim);
  memcpy(&blockDim, launch->block, sizeof blockDim);
  if (!stacks) allocate_stacks();
  begin_threads(blockDim.x * blockDim.y * blockDim.z);
  checker_begin_launch(*launch);
  counter_begin_launch(*launch);
  shared_begin_launch(*launch);
  std::vector<uint32_t> blocks(size_t(gridDim.x) * gridDim.y * gridDim.z);
  arrange(blocks);
  if (launch->order == kRandom) shuffle(blocks);
  for (size_t i = 0; i < blocks.size() && !launch->failure.failed; ++i) {
    const uint32_t block = blocks[i];
    blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
    run_block();
    counter_end_block();
  }
  checker_end_launch();
}

}  // namespace emulator
