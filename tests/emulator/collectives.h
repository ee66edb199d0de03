// Barriers, shuffles and votes: functions that threads of a block or lanes of a warp call together.
#pragma once

// -- the block ------------------------------------------------------------------------------------
inline void __syncthreads(emulator::Site site = emulator::here()) {
  emulator::block_barrier(emulator::Vote::none, 0, site);
}
inline int __syncthreads_count(int predicate, emulator::Site site = emulator::here()) {
  return emulator::block_barrier(emulator::Vote::count, predicate, site);
}
inline int __syncthreads_and(int predicate, emulator::Site site = emulator::here()) {
  return emulator::block_barrier(emulator::Vote::all, predicate, site);
}
inline int __syncthreads_or(int predicate, emulator::Site site = emulator::here()) {
  return emulator::block_barrier(emulator::Vote::any, predicate, site);
}

// -- the warp -------------------------------------------------------------------------------------
// Only __syncwarp orders memory; a shuffle or a vote does not.
inline void __syncwarp(unsigned mask = ~0u, emulator::Site site = emulator::here()) {
  emulator::warp_collective(mask, nullptr, nullptr, nullptr, site);
}
inline unsigned __activemask() { return emulator::active_mask(); }

namespace emulator {

template <class T>
struct Offer {
  T value;
  int source;  // the lane to take a value from
};

template <class T>
EMULATOR_INTERNAL void combine_shuffle(const void* const* in, void* const* out, unsigned needed) {
  for (unsigned rest = needed; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const int source = static_cast<const Offer<T>*>(in[lane])->source;
    const bool takes_part = needed >> source & 1;
    // The value of a lane that does not take part is undefined on a GPU.
    if (takes_part) memcpy(out[lane], &static_cast<const Offer<T>*>(in[source])->value, sizeof(T));
    if (!takes_part) memset(out[lane], kPoisonByte, sizeof(T));
  }
}

template <class T>
EMULATOR_INTERNAL T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 32 and 64 bits");
  Offer<T> offer = {value, source};
  T result;
  warp_collective(mask, &offer, &result, combine_shuffle<T>, site);
  return result;
}

// Every lane gets Fold::apply over the values of all lanes.
template <class T, class Fold>
EMULATOR_INTERNAL void combine_fold(const void* const* in, void* const* out, unsigned needed) {
  T result = *static_cast<const T*>(in[__builtin_ctz(needed)]);
  for (unsigned rest = needed & (needed - 1); rest; rest &= rest - 1) {
    result = Fold::apply(result, *static_cast<const T*>(in[__builtin_ctz(rest)]));
  }
  for (unsigned rest = needed; rest; rest &= rest - 1) *static_cast<T*>(out[__builtin_ctz(rest)]) = result;
}

template <class Fold, class T>
EMULATOR_INTERNAL T fold(unsigned mask, T value, Site site) {
  T result;
  warp_collective(mask, &value, &result, combine_fold<T, Fold>, site);
  return result;
}

template <class T>
EMULATOR_INTERNAL void combine_match(const void* const* in, void* const* out, unsigned needed) {
  for (unsigned rest = needed; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    unsigned same = 0;
    for (unsigned others = needed; others; others &= others - 1) {
      const int other = __builtin_ctz(others);
      if (!memcmp(in[lane], in[other], sizeof(T))) same |= 1u << other;
    }
    *static_cast<unsigned*>(out[lane]) = same;
  }
}

struct Sum {
  template <class T>
  EMULATOR_INTERNAL static T apply(T a, T b) {
    return a + b;
  }
};
struct Smallest {
  template <class T>
  EMULATOR_INTERNAL static T apply(T a, T b) {
    return b < a ? b : a;
  }
};
struct Largest {
  template <class T>
  EMULATOR_INTERNAL static T apply(T a, T b) {
    return a < b ? b : a;
  }
};
struct BitAnd {
  EMULATOR_INTERNAL static unsigned apply(unsigned a, unsigned b) { return a & b; }
};
struct BitOr {
  EMULATOR_INTERNAL static unsigned apply(unsigned a, unsigned b) { return a | b; }
};
struct BitXor {
  EMULATOR_INTERNAL static unsigned apply(unsigned a, unsigned b) { return a ^ b; }
};

}  // namespace emulator

// `width` cuts the warp into segments; a lane whose source lies outside its segment gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Site site = emulator::here()) {
  const int first = emulator::lane() & ~(width - 1);
  return emulator::shuffle(mask, value, first | (source & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulator::Site site = emulator::here()) {
  const int me = emulator::lane();
  const int source = me - int(delta);
  return emulator::shuffle(mask, value, source < (me & ~(width - 1)) ? me : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulator::Site site = emulator::here()) {
  const int me = emulator::lane();
  const int source = me + int(delta);
  return emulator::shuffle(mask, value, source > (me | (width - 1)) ? me : source, site);
}
// Unlike the others, xor may read an earlier segment.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, emulator::Site site = emulator::here()) {
  const int me = emulator::lane();
  const int source = me ^ bits;
  return emulator::shuffle(mask, value, source > (me | (width - 1)) ? me : source, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
  const unsigned bit = predicate ? 1u << emulator::lane() : 0;
  return emulator::fold<emulator::BitOr>(mask, bit, site);
}
inline int __any_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}

template <class T>
EMULATOR_INTERNAL unsigned __match_any_sync(unsigned mask, T value, emulator::Site site = emulator::here()) {
  unsigned result;
  emulator::warp_collective(mask, &value, &result, emulator::combine_match<T>, site);
  return result;
}

#define EMULATOR_REDUCE(name, T, Fold) \
  inline T name(unsigned mask, T value, emulator::Site site = emulator::here()) { \
    return emulator::fold<emulator::Fold>(mask, value, site); \
  }
EMULATOR_REDUCE(__reduce_add_sync, int, Sum)
EMULATOR_REDUCE(__reduce_add_sync, unsigned, Sum)
EMULATOR_REDUCE(__reduce_min_sync, int, Smallest)
EMULATOR_REDUCE(__reduce_min_sync, unsigned, Smallest)
EMULATOR_REDUCE(__reduce_max_sync, int, Largest)
EMULATOR_REDUCE(__reduce_max_sync, unsigned, Largest)
EMULATOR_REDUCE(__reduce_and_sync, unsigned, BitAnd)
EMULATOR_REDUCE(__reduce_or_sync, unsigned, BitOr)
EMULATOR_REDUCE(__reduce_xor_sync, unsigned, BitXor)
#undef EMULATOR_REDUCE
