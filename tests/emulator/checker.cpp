// The checker. Kernels are compiled with -fsanitize=thread and -fsanitize=undefined, whose hooks are defined
// here and not taken from libtsan and libubsan. An access looks up its region (an array argument or a shared
// array) and the shadow cells of the bytes it touches. A cell remembers the last write and up to two reads.
//
// What orders two accesses of one block: a __syncthreads between them (the phase counts those), or a chain of
// __syncwarp (each thread knows how far it has seen the lanes of its warp). Nothing orders two blocks.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "runtime.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, __bss_start;  // by the linker

namespace emulator {
namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kCoarsest = 4;  // log2 of the bytes of a cell before a narrower access splits it

struct Access {
  uint32_t phase;  // 0: never
  uint32_t thread : 10;
  uint32_t several : 1;  // atomics of several threads in this phase
  uint32_t clock : 20;
  uint32_t pc : 28;
  uint32_t atomic : 4;  // which
};

struct Cell {
  Access write;
  Access read;
  Access other_read;  // by a thread unordered with `read`, of another warp if there was one
};

struct Region {
  uintptr_t begin;
  size_t bytes;
  Cell* cells;
  int granule;  // log2 of the bytes of a cell
  int argument;
  bool writable;
  const char* shared_name;  // nullptr for an array argument
  uintptr_t aligned_begin() const { return begin >> kCoarsest << kCoarsest; }
  size_t cell_count() const { return ((begin + bytes - 1 - aligned_begin()) >> granule) + 1; }
};

bool enabled;
std::vector<Region> regions;
constexpr size_t kRecent = 256;
uint32_t recent_region[kRecent];  // by instruction: most touch one array only

uint32_t phase;              // counts block barriers and blocks; never goes back
uint32_t first_block_phase;  // of the running block
uint32_t clocks[kMaxThreads];
uint32_t seen[kMaxThreads][kWarpSize];  // up to which clock of each lane of its warp a thread is ordered
bool clocks_used;

// -- regions --------------------------------------------------------------------------------------

Cell* new_cells(size_t count) {
  void* memory = calloc(count, sizeof(Cell));
  if (!memory) abort();
  return static_cast<Cell*>(memory);
}

void add_region(Region region) {
  region.granule = kCoarsest;
  region.cells = new_cells(region.cell_count());
  regions.push_back(region);
}

// Arguments that share bytes (in-place kernels, a workspace and its slice) share one region.
void add_array(const Array& array) {
  Region added = {};
  added.begin = reinterpret_cast<uintptr_t>(array.data);
  added.bytes = array.bytes;
  added.argument = array.argument;
  added.writable = array.writable != 0;
  for (size_t i = 0; i < regions.size(); ++i) {
    const Region& old = regions[i];
    if (old.begin >= added.begin + added.bytes || added.begin >= old.begin + old.bytes) continue;
    const uintptr_t end = std::max(old.begin + old.bytes, added.begin + added.bytes);
    added.begin = std::min(old.begin, added.begin);
    added.bytes = end - added.begin;
    added.writable |= old.writable;
    free(old.cells);
    regions.erase(regions.begin() + i);
    i = size_t(-1);  // the larger region may touch ones already passed
  }
  add_region(added);
}

// Splits every cell. What held for the whole holds for the parts: no access is forgotten or invented.
void split_cells(Region& region, int granule) {
  Region fine = region;
  fine.granule = granule;
  fine.cells = new_cells(fine.cell_count());
  for (size_t i = 0; i < fine.cell_count(); ++i)
    fine.cells[i] = region.cells[i >> (region.granule - granule)];
  free(region.cells);
  region = fine;
}

[[noreturn]] void stop_out_of_bounds(uintptr_t address, size_t bytes, bool write, const void* pc) {
  const char* verb = write ? "write" : "read";
  if (address < 4096) stop(pc, "out of bounds: %s of %zu bytes through a null pointer", verb, bytes);
  const Region* nearest = nullptr;
  size_t best = size_t(-1);
  for (const Region& region : regions) {
    const size_t end = region.begin + region.bytes;
    const size_t distance = address < end ? region.begin - address : address - end;
    if (distance < best) nearest = &region;
    best = std::min(best, distance);
  }
  if (!nearest) stop(pc, "out of bounds: %s of %zu bytes, and the kernel has no arrays", verb, bytes);
  const long long offset = (long long)(address - nearest->begin);
  if (nearest->shared_name) {
    stop(pc, "out of bounds: %s of %zu bytes at byte %lld of shared memory `%s` of %zu bytes", verb, bytes,
         offset, nearest->shared_name, nearest->bytes);
  }
  stop(pc, "out of bounds: %s of %zu bytes at byte %lld of argument %d of %zu bytes", verb, bytes, offset,
       nearest->argument, nearest->bytes);
}

// A region's index, or -1 for tables of constants, which live in the initialised part of the unit's image.
int find_region(uintptr_t address, size_t bytes, bool write, const void* pc) {
  uint32_t& recent = recent_region[reinterpret_cast<uintptr_t>(pc) % kRecent];
  if (recent < regions.size() && address - regions[recent].begin < regions[recent].bytes) return int(recent);
  for (uint32_t i = 0; i < regions.size(); ++i) {
    if (address - regions[i].begin < regions[i].bytes) return int(recent = i);
  }
  const uintptr_t image = reinterpret_cast<uintptr_t>(&__ehdr_start);
  const uintptr_t image_end = reinterpret_cast<uintptr_t>(&__bss_start);
  if (!write && address >= image && address < image_end) return -1;
  stop_out_of_bounds(address, bytes, write, pc);
}

// -- order ----------------------------------------------------------------------------------------

bool happened_before(const Access& earlier, const Region& region) {
  if (earlier.phase == 0) return true;
  if (earlier.phase < first_block_phase) return region.shared_name != nullptr;  // another block's
  if (earlier.phase < phase) return true;
  if (earlier.several) return false;
  const int me = running_thread;
  const int other = int(earlier.thread);
  if (other == me) return true;
  return other / kWarpSize == me / kWarpSize && seen[me][other % kWarpSize] >= earlier.clock;
}

[[noreturn]] void stop_race_between(const Access& earlier, const Region& region, const void* pc,
                                    const char* kind) {
  char what[200];
  char where[80];
  char who[60];
  if (region.shared_name) snprintf(where, sizeof where, "shared memory `%s`", region.shared_name);
  if (!region.shared_name) snprintf(where, sizeof where, "argument %d", region.argument);
  snprintf(who, sizeof who, "thread %d of the block", int(earlier.thread));
  if (earlier.several) snprintf(who, sizeof who, "several threads of the block");
  if (earlier.phase < first_block_phase) snprintf(who, sizeof who, "another block");
  snprintf(what, sizeof what, "race: %s on %s, the other access by %s", kind, where, who);
  stop_race(pc, earlier.pc, what);
}

Access this_access(const void* pc, Atomic atomic) {
  const uintptr_t image = reinterpret_cast<uintptr_t>(&__ehdr_start);
  Access access;
  access.phase = phase;
  access.thread = uint32_t(running_thread);
  access.atomic = uint32_t(atomic);
  access.several = false;
  access.clock = clocks[running_thread];
  access.pc = uint32_t(reinterpret_cast<uintptr_t>(pc) - image);
  return access;
}

void remember_read(Cell& cell, const Access& access, const Region& region) {
  // A read that happened before this one is implied by it: what races with the old one races with this one.
  if (happened_before(cell.read, region)) {
    cell.read = access;
    return;
  }
  const bool warps_differ = cell.other_read.thread / kWarpSize != cell.read.thread / kWarpSize;
  const bool keep = cell.other_read.phase == phase && warps_differ && cell.other_read.thread != access.thread;
  if (!keep) cell.other_read = access;
}

void remember_write(Cell& cell, const Access& access, bool concurrent_atomics) {
  cell.read.phase = 0;
  cell.other_read.phase = 0;
  if (!concurrent_atomics) {
    cell.write = access;
  } else if (cell.write.phase == phase) {
    cell.write.several = true;
  }
  // Else another block's atomic stays: any plain access from now on races with it.
}

void check_cell(Cell& cell, const Region& region, bool write, const Access& access, const void* pc) {
  const bool atomic = access.atomic != uint32_t(Atomic::none);
  const bool reads = !write || atomic;
  if (reads && region.shared_name && cell.write.phase < first_block_phase) {
    stop(pc, "uninitialised read of shared memory `%s`", region.shared_name);
  }
  const bool after_write = happened_before(cell.write, region);
  const bool concurrent_atomics = !after_write && atomic && cell.write.atomic != uint32_t(Atomic::none);
  if (concurrent_atomics &&
      (access.atomic != cell.write.atomic || access.atomic == uint32_t(Atomic::ordered))) {
    stop_race_between(cell.write, region, pc, "atomics whose result depends on their order");
  }
  if (!after_write && !concurrent_atomics) {
    stop_race_between(cell.write, region, pc, write ? "write after write" : "read after write");
  }
  if (!write) {
    remember_read(cell, access, region);
    return;
  }
  if (!happened_before(cell.read, region)) stop_race_between(cell.read, region, pc, "write after read");
  if (!happened_before(cell.other_read, region))
    stop_race_between(cell.other_read, region, pc, "write after read");
  remember_write(cell, access, concurrent_atomics);
}

void check_region(uintptr_t address, size_t bytes, bool write, Atomic atomic, const void* pc) {
  const int index = find_region(address, bytes, write, pc);
  if (index < 0) return;
  Region& region = regions[index];
  if (address + bytes > region.begin + region.bytes) stop_out_of_bounds(address, bytes, write, pc);
  const bool is_atomic = atomic != Atomic::none;
  count_access(region.shared_name, region.begin, address - region.begin, bytes, write, is_atomic, pc);
  if (write && !region.writable) stop(pc, "write into argument %d, which is read-only", region.argument);
  const int alignment = __builtin_ctzll(address | bytes | (1ull << kCoarsest));
  if (alignment < region.granule) split_cells(region, alignment);
  const Access access = this_access(pc, atomic);
  const size_t first = (address - region.aligned_begin()) >> region.granule;
  const size_t last = (address + bytes - 1 - region.aligned_begin()) >> region.granule;
  for (size_t i = first; i <= last; ++i) check_cell(region.cells[i], region, write, access, pc);
}

inline void check(void* address, size_t bytes, bool write, const void* pc, Atomic atomic = Atomic::none) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(address);
  if (a - stacks_begin < stacks_bytes) return;  // a local variable
  if (enabled && bytes) check_region(a, bytes, write, atomic, pc);
}

}  // namespace

// -- what the runtime tells -----------------------------------------------------------------------

void checker_begin_launch(const Launch& launch) {
  enabled = launch.check;
  if (!enabled) return;
  for (int i = 0; i < launch.array_count; ++i) {
    if (launch.arrays[i].bytes) add_array(launch.arrays[i]);
  }
  memset(recent_region, 0, sizeof recent_region);
  memset(clocks, 0, sizeof clocks);
  clocks_used = true;
}

void checker_begin_block(int threads) {
  first_block_phase = ++phase;
  if (!clocks_used) return;
  clocks_used = false;
  std::fill(clocks, clocks + threads, 1u);
  memset(seen, 0, sizeof seen[0] * threads);
}

void checker_add_shared(const char* name, void* data, size_t bytes) {
  if (!enabled) return;
  add_region({reinterpret_cast<uintptr_t>(data), bytes, nullptr, 0, -1, true, name});
}

void checker_block_barrier() { ++phase; }

void checker_warp_barrier(int warp, unsigned lanes) {
  if (!enabled) return;
  constexpr uint32_t kLastClock = (1u << 20) - 1;
  uint32_t joined[kWarpSize] = {};
  clocks_used = true;
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const int thread = warp * kWarpSize + lane;
    for (int i = 0; i < kWarpSize; ++i) joined[i] = std::max(joined[i], seen[thread][i]);
    joined[lane] = std::max(joined[lane], clocks[thread]);
    if (clocks[thread]++ == kLastClock)
      stop(nullptr, "more __syncwarp in one block than the checker can count");
  }
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    memcpy(seen[warp * kWarpSize + __builtin_ctz(rest)], joined, sizeof joined);
  }
}

void checker_end_launch() {
  for (Region& region : regions) free(region.cells);
  regions.clear();
  enabled = false;
}

void check_atomic(void* address, size_t bytes, Atomic what, const void* pc) {
  check(address, bytes, true, pc, what);
}

}  // namespace emulator

// -- the compiler's hooks -------------------------------------------------------------------------

#define CALLER __builtin_return_address(0)

// "unaligned" means that the type promises no alignment (memcpy), not that the address has none.
#define ACCESS_HOOKS(bytes) \
  void __tsan_read##bytes(void* address) { emulator::check(address, bytes, false, CALLER); } \
  void __tsan_write##bytes(void* address) { emulator::check(address, bytes, true, CALLER); } \
  void __tsan_unaligned_read##bytes(void* address) { emulator::check(address, bytes, false, CALLER); } \
  void __tsan_unaligned_write##bytes(void* address) { emulator::check(address, bytes, true, CALLER); }

#define UNDEFINED_HOOK(name, what) \
  void __ubsan_handle_##name() { emulator::stop(CALLER, what); }

extern "C" {
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { emulator::check(address, bytes, false, CALLER); }
void __tsan_write_range(void* address, size_t bytes) { emulator::check(address, bytes, true, CALLER); }
void __tsan_init() {}

UNDEFINED_HOOK(type_mismatch_v1, "misaligned access")
UNDEFINED_HOOK(out_of_bounds, "out of bounds: index outside the array's type")
UNDEFINED_HOOK(float_cast_overflow, "conversion of a float that the integer type cannot hold")
UNDEFINED_HOOK(divrem_overflow, "integer division by zero, or overflow in a division")
UNDEFINED_HOOK(shift_out_of_bounds, "shift by a negative count or by the width or more")
UNDEFINED_HOOK(add_overflow, "signed integer overflow in an addition")
UNDEFINED_HOOK(sub_overflow, "signed integer overflow in a subtraction")
UNDEFINED_HOOK(mul_overflow, "signed integer overflow in a multiplication")
UNDEFINED_HOOK(negate_overflow, "signed integer overflow in a negation")
}
