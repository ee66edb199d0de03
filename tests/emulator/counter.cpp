// Counts what a launch moves. Threads of a warp run one after the other here and together on a GPU: the accesses that
// the lanes of a warp make at one place of the code, each for the same time in its block, are one request, and it moves
// the 32-byte sectors that they touch.
#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime.h"

namespace emulator {
namespace {

constexpr int kSectorBits = 5;
constexpr int kWarpSize = 32;

// A place of the code, and what each thread of the block did there.
struct Place {
  uint32_t number;
  std::vector<uint32_t> times;  // by thread
};

using Touch = std::pair<uint64_t, uint64_t>;  // request, sector

Work* work;
std::unordered_map<const void*, Place> places;
std::vector<Touch> touched[2];  // by reads, by writes

uint64_t distinct(std::vector<Touch>& touches) {
  std::sort(touches.begin(), touches.end());
  const auto end = std::unique(touches.begin(), touches.end());
  const uint64_t count = uint64_t(end - touches.begin());
  touches.clear();
  return count;
}

// Places x warps x times: 2^20 of them, 32 and 2^32 at most.
uint64_t request(const void* pc) {
  Place& place = places.try_emplace(pc, Place{uint32_t(places.size()), {}}).first->second;
  if (place.times.size() <= size_t(running_thread)) place.times.resize(size_t(running_thread) + 1);
  const uint64_t time = place.times[size_t(running_thread)]++;
  return uint64_t(place.number) << 37 | uint64_t(running_thread / kWarpSize) << 32 | time;
}

}  // namespace

void counter_begin_launch(Launch& launch) {
  work = launch.count ? &launch.work : nullptr;
  if (work) *work = {};
  places.clear();
}

void counter_end_block() {
  if (!work) return;
  work->read_sectors += distinct(touched[0]);
  work->written_sectors += distinct(touched[1]);
  for (auto& place : places) place.second.times.clear();
}

void count_access(bool shared, uintptr_t array, size_t offset, size_t bytes, bool write, bool atomic,
                  const void* pc) {
  if (!work) return;
  ++work->accesses;
  if (atomic) {
    ++(shared ? work->shared_atomics : work->atomics);
    if (shared) return;
  }
  if (shared) {
    (write ? work->shared_written_bytes : work->shared_read_bytes) += bytes;
    return;
  }
  (write ? work->written_bytes : work->read_bytes) += bytes;
  work->wide_reads += !write && bytes == 16;
  // Arrays begin on a sector, whatever the host's allocator does: counts are the same on every run.
  const uint64_t made = request(pc), base = array >> kSectorBits;
  const uint64_t first = base + (offset >> kSectorBits), last = base + ((offset + bytes - 1) >> kSectorBits);
  for (uint64_t sector = first; sector <= last; ++sector) touched[write].push_back({made, sector});
}

}  // namespace emulator
