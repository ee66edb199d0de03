// CUDA C++ as plain C++17: what NVRTC predefines, for g++. Put in front of a kernel's text with -include.
#pragma once
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "runtime.h"

// -- qualifiers -----------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_assume(condition) ((void)0)
// Shared memory has to tell the emulator of itself.
#define __shared__ use_SHARED_or_dynamic_shared_instead_of_a_plain___shared__

// Code that must not be instrumented: it works for the emulator, not for the kernel.
#define EMULATOR_INTERNAL __attribute__((no_sanitize("thread", "undefined")))
#define EMULATOR_VISIBLE __attribute__((visibility("default")))

// -- types ----------------------------------------------------------------------------------------
// Alignments are CUDA's. A vector of three is aligned like its element.
#define EMULATOR_VECTORS(name, T, align2, align4) \
  struct name##1 { T x; }; \
  struct alignas(align2) name##2 { T x, y; }; \
  struct name##3 { T x, y, z; }; \
  struct alignas(align4) name##4 { T x, y, z, w; }; \
  inline name##1 make_##name##1(T x) { return {x}; } \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(char, signed char, 2, 4)
EMULATOR_VECTORS(uchar, unsigned char, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(ushort, unsigned short, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(uint, unsigned int, 8, 16)
EMULATOR_VECTORS(long, long, 16, 16)
EMULATOR_VECTORS(ulong, unsigned long, 16, 16)
EMULATOR_VECTORS(longlong, long long, 16, 16)
EMULATOR_VECTORS(ulonglong, unsigned long long, 16, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
#undef EMULATOR_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Constants to a thread, so the compiler may keep them in registers and does not check reads of them.
extern const uint3 threadIdx, blockIdx, blockDim, gridDim __attribute__((visibility("hidden")));
constexpr int warpSize = 32;

// -- shared memory --------------------------------------------------------------------------------
namespace emulator {

template <class T>
struct SharedStorage {
  static_assert(std::is_trivially_default_constructible<std::remove_all_extents_t<T>>::value,
                "CUDA does not construct objects in shared memory");
  alignas(kGuardBytes) unsigned char front_guard[kGuardBytes];
  alignas(16) unsigned char bytes[sizeof(T)];
  unsigned char back_guard[kGuardBytes];
  SharedArray array;

  EMULATOR_INTERNAL T& enter(const char* name) {
    array.name = name;
    array.data = bytes;
    array.bytes = sizeof(T);
    array.front_guard = front_guard;
    array.back_guard = back_guard;
    enter_shared(array);
    return reinterpret_cast<T&>(bytes);
  }
};

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(dynamic_shared_memory());
}

}  // namespace emulator

// EMULATOR_SHARED(float, tile, [32][33]) is __shared__ float tile[32][33]. The host static lives in .bss,
// without initialiser and so without guard variable; -fvisibility=hidden and -fno-gnu-unique keep the statics
// of templates from being shared by units loaded into the same process.
#define EMULATOR_SHARED(type, name, dims) \
  static emulator::SharedStorage<type dims> name##_storage; \
  auto& name = name##_storage.enter(#name)

// -- launching ------------------------------------------------------------------------------------
namespace emulator {

// What a kernel's parameter is; device.py checks the arguments against it.
struct Parameter {
  char kind;  // 'f' float, 'i' integer, 's' struct: behind a pointer; 'v' by value; 0 ends the list
  char read_only;
  int bytes;  // of the value, or of what is pointed to (0 for void)
};

template <class T>
constexpr int size_of_pointee() {
  if constexpr (std::is_void<T>::value) {
    return 0;
  } else {
    return int(sizeof(T));
  }
}

template <class T>
constexpr Parameter describe() {
  if constexpr (std::is_pointer<T>::value) {
    using Pointee = std::remove_pointer_t<T>;
    const char kind = std::is_floating_point<Pointee>::value ? 'f'
                      : std::is_integral<Pointee>::value     ? 'i'
                                                             : 's';
    return {kind, std::is_const<Pointee>::value, size_of_pointee<Pointee>()};
  } else {
    return {'v', 1, int(sizeof(T))};
  }
}

template <class... A>
const Parameter* signature(void (*)(A...)) {
  static constexpr Parameter parameters[] = {describe<A>()..., Parameter{0, 0, 0}};
  return parameters;
}

template <class... A, size_t... I>
EMULATOR_INTERNAL void run_kernel(void (*kernel)(A...), Launch& launch, std::index_sequence<I...>) {
  struct Call {
    void (*kernel)(A...);
    void* const* arguments;
  };
  Call call = {kernel, launch.arguments};
  const Body body = [](void* opaque) EMULATOR_INTERNAL {
    const Call& the_call = *static_cast<Call*>(opaque);
    the_call.kernel(*static_cast<std::remove_const_t<A>*>(the_call.arguments[I])...);
  };
  run(launch, body, &call);
}

template <class... A>
void run_kernel(void (*kernel)(A...), Launch& launch) {
  run_kernel(kernel, launch, std::index_sequence_for<A...>{});
}

}  // namespace emulator

// build.py appends one of these for each kernel of a unit.
#define EMULATOR_EXPORT(kernel) \
  extern "C" EMULATOR_VISIBLE void emulator_run_##kernel(emulator::Launch* launch) { \
    emulator::run_kernel(kernel, *launch); \
  } \
  extern "C" EMULATOR_VISIBLE const emulator::Parameter* emulator_signature_##kernel() { \
    return emulator::signature(kernel); \
  }

#include "collectives.h"
#include "intrinsics.h"
