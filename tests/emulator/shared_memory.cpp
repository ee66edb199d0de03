// Shared memory: poisoned for each block, between guard bytes, and no more of it than a block may use.
#include <cstring>
#include <vector>

#include "runtime.h"

namespace emulator {
namespace {

constexpr size_t kDynamicAlignment = 128;

uint64_t launch_serial;
uint64_t block_serial;
size_t limit;
size_t used;                         // static and dynamic, of this launch
std::vector<SharedArray*> entered;   // the static arrays of this launch
std::vector<unsigned char> storage;  // of the dynamic array and its guards
SharedArray dynamic;

void check_guard(const unsigned char* guard, const char* name) {
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (guard[i] != kGuardByte) stop(nullptr, "out of bounds: write outside of shared memory `%s`", name);
  }
}

void check_guards(const SharedArray& array) {
  check_guard(array.front_guard, array.name);
  check_guard(array.back_guard, array.name);
}

}  // namespace

void shared_begin_launch(const Launch& launch) {
  ++launch_serial;
  limit = launch.shared_limit;
  used = launch.shared_bytes;
  entered.clear();
  storage.assign(launch.shared_bytes + 2 * kGuardBytes + kDynamicAlignment, kGuardByte);
  const uintptr_t first = reinterpret_cast<uintptr_t>(storage.data()) + kGuardBytes;
  unsigned char* data = storage.data() + kGuardBytes + (-first & (kDynamicAlignment - 1));
  dynamic = {"dynamic", data,         launch.shared_bytes, data - kGuardBytes, data + launch.shared_bytes,
             0,         launch_serial};
  if (dynamic.bytes) checker_add_shared(dynamic.name, dynamic.data, dynamic.bytes);
}

void shared_begin_block() {
  ++block_serial;
  memset(dynamic.data, kPoisonByte, dynamic.bytes);
}

// The checker sees a write outside at once; this is for launches without it.
void shared_check_guards() {
  for (const SharedArray* array : entered) check_guards(*array);
  check_guards(dynamic);
}

void enter_shared(SharedArray& array) {
  if (array.block == block_serial) return;
  array.block = block_serial;
  memset(array.data, kPoisonByte, array.bytes);
  if (array.launch == launch_serial) return;
  array.launch = launch_serial;
  memset(array.front_guard, kGuardByte, kGuardBytes);
  memset(array.back_guard, kGuardByte, kGuardBytes);
  entered.push_back(&array);
  used += array.bytes;
  if (used > limit)
    stop(nullptr, "%zu bytes of shared memory, more than the %zu a block may use", used, limit);
  checker_add_shared(array.name, array.data, array.bytes);
}

void* dynamic_shared_memory() {
  if (dynamic.bytes == 0) stop(nullptr, "dynamic shared memory is used, but the launch gives none");
  return dynamic.data;
}

}  // namespace emulator
