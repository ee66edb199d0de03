// Runs a grid on one host thread: blocks one after the other, the threads of a block as fibers that switch where a
// GPU could: at barriers and warp collectives. The order of blocks and threads is the launch's to choose.
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
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start;  // by the linker: where the unit's image starts

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
constexpr size_t kDynamicAlignment = 128;

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

uint64_t launch_serial;
uint64_t block_serial;
std::vector<SharedArray*> shared_arrays;  // entered by this launch
size_t shared_bytes;                      // static and dynamic, of this launch
std::vector<unsigned char> dynamic_storage;
unsigned char* dynamic_data;

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

// -- failures ------------------------------------------------------------------------------------------------------

uintptr_t image_offset(const void* pc) {
  return pc ? reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(&__ehdr_start) : 0;
}

void record_failure(const void* pc, uintptr_t other_pc, const char* format, va_list values) {
  Failure& failure = launch->failure;
  failure.failed = 1;
  vsnprintf(failure.what, sizeof failure.what, format, values);
  failure.pc = image_offset(pc);
  failure.other_pc = other_pc;
  memcpy(failure.block, &blockIdx, sizeof failure.block);
  memcpy(failure.thread, &threadIdx, sizeof failure.thread);
}

[[noreturn]] void leave_block() {
  switch_context(current->context, scheduler);
  abort();
}

// -- the turn goes round -------------------------------------------------------------------------------------------

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

void switch_to(Thread& from, Thread& to) {
  if (to.state == State::fresh) {
    to.stack = free_stacks.back();
    free_stacks.pop_back();
    to.state = State::ready;
    prepare(to.context, to.stack, kStackBytes, thread_loop);
  }
  make_current(to);
  switch_context(from.context, to.context);
}

[[noreturn]] void stop_deadlock() {
  const Thread* barrier = nullptr;
  const Thread* warp = nullptr;
  for (const Thread& thread : threads) {
    if (thread.state == State::at_barrier) barrier = &thread;
    if (thread.state == State::in_warp) warp = &thread;
  }
  if (!barrier) {
    stop(nullptr, "divergent warp collective: deadlock, lanes wait at %s:%d (mask %08x) for lanes that never come",
         warp->site.file, warp->site.line, warp->mask);
  }
  stop(nullptr, "divergent warp collective: deadlock, %d threads wait at the barrier %s:%d, thread %d at %s:%d (mask %08x)",
       at_barrier, barrier->site.file, barrier->site.line, warp->id, warp->site.file, warp->site.line, warp->mask);
}

// Runs the others until it is `me`'s turn again.
void wait(Thread& me) {
  check_stack(me);
  Thread* next = next_runnable();
  if (!next) stop_deadlock();
  if (next != &me) switch_to(me, *next);
}

void check_barrier_is_complete() {
  if (at_barrier == 0 || at_barrier < live) return;
  if (live == int(threads.size())) return;
  for (const Thread& thread : threads) {
    if (thread.state != State::at_barrier) continue;
    stop(nullptr, "divergent barrier: %d threads wait at %s:%d, the other %d of the block have exited", at_barrier,
         thread.site.file, thread.site.line, int(threads.size()) - live);
  }
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
      stop(nullptr, "divergent warp collective: the thread exits, but %s:%d names its lane (mask %08x)", other.site.file,
           other.site.line, other.mask);
    }
  }
}

// The bottom of every stack. A thread that never waits hands its stack straight to the next one.
void thread_loop() {
  for (;;) {
    body(body_call);
    finish(*current);
    Thread* next = next_runnable();
    if (!next && live == 0) leave_block();
    if (!next) stop_deadlock();
    unsigned char* stack = current->stack;
    if (next->state == State::fresh) {
      next->stack = stack;
      next->state = State::ready;
      make_current(*next);
    } else {
      free_stacks.push_back(stack);
      switch_to(*current, *next);
    }
  }
}

// -- a block, a grid -----------------------------------------------------------------------------------------------

void allocate_stacks() {
  stacks_bytes = kStackBytes * kMaxThreads;
  void* memory = mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
    uint64_t* end = reinterpret_cast<uint64_t*>(stacks + kStackBytes * i);
    *end = kStackEnd;
  }
}

void check_guards(const unsigned char* guard, size_t bytes, const char* name) {
  for (size_t i = 0; i < bytes; ++i) {
    if (guard[i] != kGuardByte) stop(nullptr, "write outside the bounds of shared memory `%s`", name);
  }
}

void run_block() {
  ++block_serial;
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
  if (launch->shared_bytes) memset(dynamic_data, kPoisonByte, launch->shared_bytes);
  checker_begin_block(live);

  Thread outside = {};  // stands in for this function, so that switch_to can start the first thread
  current = nullptr;
  switch_to(outside, *next_runnable());
}

void allocate_dynamic_shared() {
  dynamic_storage.assign(launch->shared_bytes + 2 * kGuardBytes + kDynamicAlignment, kGuardByte);
  const uintptr_t first = reinterpret_cast<uintptr_t>(dynamic_storage.data()) + kGuardBytes;
  dynamic_data = dynamic_storage.data() + kGuardBytes + (-first & (kDynamicAlignment - 1));
  shared_bytes = launch->shared_bytes;
  if (launch->shared_bytes) checker_add_shared("dynamic", dynamic_data, launch->shared_bytes);
}

}  // namespace
