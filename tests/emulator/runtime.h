// What the parts of the emulator know of each other: shim.h (compiled with the kernels), runtime.cpp and
// checker.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

// A place in the kernel's source. Default arguments fill it in at the call, so that it names the caller.
struct Site {
  const char* file;
  int line;
};
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// -- one launch; build.py mirrors these structs with ctypes ---------------------------------------
struct Array {
  void* data;
  size_t bytes;
  int argument;  // position in the kernel's signature
  int writable;
};

enum Order : int { kAscending, kDescending, kRandom };

struct Failure {
  int failed;
  char what[400];
  uintptr_t pc;        // offset in the unit's image of the access to blame; 0 if `what` names the line
  uintptr_t other_pc;  // the same for the other side of a race
  unsigned block[3];
  unsigned thread[3];
};

// What a launch moved, in global memory unless it says otherwise.
struct Work {
  uint64_t read_bytes, written_bytes;      // by threads, an element or vector each time
  uint64_t read_sectors, written_sectors;  // of 32 bytes, by the requests of warps
  uint64_t wide_reads;                     // of threads, of 16 bytes
  uint64_t atomics;                        // of threads; also among what is written
  uint64_t accesses;                       // of threads, also to shared memory, of any size
  uint64_t shared_read_bytes, shared_written_bytes;
  uint64_t shared_atomics;
};

struct Launch {
  unsigned grid[3];
  unsigned block[3];
  size_t shared_bytes;  // dynamic shared memory
  size_t shared_limit;  // static and dynamic together
  int order;
  int check;
  int count;  // fill in `work`; wants `check`
  uint64_t seed;
  const Array* arrays;
  int array_count;
  void* const* arguments;  // one pointer to each argument's value
  Failure failure;
  Work work;
};

struct Dim {
  unsigned x, y, z;
};

// -- runtime.cpp ----------------------------------------------------------------------------------
using Body = void (*)(void* call);
void run(Launch& launch, Body body, void* call);

// Reports against the running thread and gives the launch up: the thread is never resumed.
[[noreturn, gnu::format(printf, 2, 3)]] void stop(const void* pc, const char* format, ...);
[[noreturn]] void stop_race(const void* pc, uintptr_t other_pc, const char* what);

enum class Vote { none, count, all, any };
int block_barrier(Vote vote, int predicate, Site site);

// Lanes of a warp meet; the last one in computes every lane's output. `needed` are the lanes that take part.
using Combine = void (*)(const void* const* in, void* const* out, unsigned needed);
void warp_collective(unsigned mask, const void* in, void* out, Combine combine, Site site);
unsigned active_mask();
int lane();

// -- shared_memory.cpp ----------------------------------------------------------------------------
// A static shared array: a host static between guard bytes that belongs to one block at a time.
struct SharedArray {
  const char* name;
  void* data;
  size_t bytes;
  unsigned char* front_guard;
  unsigned char* back_guard;
  uint64_t block;   // serial number of the block that last entered it
  uint64_t launch;  // and of the launch
};
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuardByte = 0xA5;
constexpr unsigned char kPoisonByte = 0xFF;  // a NaN as float, half and bfloat16, -1 as an integer
void enter_shared(SharedArray& array);
void* dynamic_shared_memory();
void shared_begin_launch(const Launch& launch);
void shared_begin_block();
void shared_check_guards();

// -- checker.cpp ----------------------------------------------------------------------------------
extern int running_thread;  // index in the block of the thread that runs
extern uintptr_t stacks_begin;
extern size_t stacks_bytes;

void checker_begin_launch(const Launch& launch);
void checker_begin_block(int threads);
void checker_add_shared(const char* name, void* data, size_t bytes);
void checker_block_barrier();
void checker_warp_barrier(int warp, unsigned lanes);
void checker_end_launch();

// What an atomic does to its place. In any order several of one kind leave the same there, unless `ordered`: a sum of
// floats is rounded at each step, and of exchanges the last one stays.
enum class Atomic : uint32_t { none, sum, smallest, largest, bits_and, bits_or, bits_xor, ordered };
void check_atomic(void* address, size_t bytes, Atomic what, const void* pc);

// -- counter.cpp ----------------------------------------------------------------------------------
void counter_begin_launch(Launch& launch);
void counter_end_block();
void count_access(bool shared, uintptr_t array, size_t offset, size_t bytes, bool write, bool atomic,
                  const void* pc);

}  // namespace emulator
