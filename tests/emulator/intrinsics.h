// Loads, atomics, bits and arithmetic that CUDA predefines: functions of one thread.
#pragma once

// -- loads and stores -----------------------------------------------------------------------------
#define EMULATOR_LOAD(name) \
  template <class T> \
  __forceinline__ T name(const T* address) { \
    return *address; \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#undef EMULATOR_LOAD

#define EMULATOR_STORE(name) \
  template <class T> \
  __forceinline__ void name(T* address, T value) { \
    *address = value; \
  }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_STORE

inline void __threadfence() {}
inline void __threadfence_block() {}

// -- atomics --------------------------------------------------------------------------------------
// Threads switch at barriers only, so a plain read, change and write is atomic. Never inlined, so that the
// return address is in the kernel.
#define EMULATOR_ATOMIC(name, T, what, new_value) \
  EMULATOR_INTERNAL __attribute__((noinline)) static T name(T* address, T value) { \
    emulator::check_atomic(address, sizeof(T), emulator::Atomic::what, __builtin_return_address(0)); \
    const T old = *address; \
    *address = static_cast<T>(new_value); \
    return old; \
  }
#define EMULATOR_ATOMIC_CAS(T) \
  EMULATOR_INTERNAL __attribute__((noinline)) static T atomicCAS(T* address, T expected, T value) { \
    emulator::check_atomic(address, sizeof(T), emulator::Atomic::ordered, __builtin_return_address(0)); \
    const T old = *address; \
    if (old == expected) *address = value; \
    return old; \
  }
#define EMULATOR_INTEGER_ATOMICS(T) \
  EMULATOR_ATOMIC(atomicAdd, T, sum, emulator::wrapping_sum(old, value)) \
  EMULATOR_ATOMIC(atomicMin, T, smallest, value < old ? value : old) \
  EMULATOR_ATOMIC(atomicMax, T, largest, old < value ? value : old) \
  EMULATOR_ATOMIC(atomicAnd, T, bits_and, (old & value)) \
  EMULATOR_ATOMIC(atomicOr, T, bits_or, old | value) \
  EMULATOR_ATOMIC(atomicXor, T, bits_xor, old ^ value) \
  EMULATOR_ATOMIC(atomicExch, T, ordered, value) \
  EMULATOR_ATOMIC_CAS(T)

namespace emulator {
template <class T>
EMULATOR_INTERNAL T wrapping_sum(T a, T b) {
  return static_cast<T>(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b));
}
}  // namespace emulator

EMULATOR_INTEGER_ATOMICS(int)
EMULATOR_INTEGER_ATOMICS(unsigned int)
EMULATOR_INTEGER_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicMin, long long, smallest, value < old ? value : old)
EMULATOR_ATOMIC(atomicMax, long long, largest, old < value ? value : old)
EMULATOR_ATOMIC(atomicSub, int, sum, emulator::wrapping_sum(old, -value))
EMULATOR_ATOMIC(atomicSub, unsigned int, sum, old - value)
EMULATOR_ATOMIC(atomicAdd, float, ordered, old + value)
EMULATOR_ATOMIC(atomicAdd, double, ordered, old + value)
EMULATOR_ATOMIC(atomicExch, float, ordered, value)
#undef EMULATOR_INTEGER_ATOMICS
#undef EMULATOR_ATOMIC_CAS
#undef EMULATOR_ATOMIC

// -- bits -----------------------------------------------------------------------------------------
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1u) << (31 - i);
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 15u;
    const unsigned byte = unsigned(bytes >> (8 * (nibble & 7))) & 255u;
    const unsigned sign = byte >> 7 ? 255u : 0u;
    result |= (nibble & 8 ? sign : byte) << (8 * i);
  }
  return result;
}

namespace emulator {
template <class To, class From>
__forceinline__ To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace emulator

inline int __float_as_int(float x) { return emulator::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::same_bits<double>(x); }

// -- integer arithmetic ---------------------------------------------------------------------------
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}

#define EMULATOR_MIN_MAX(T) \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned int)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
constexpr unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
constexpr unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
constexpr unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
constexpr unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// -- floating point -------------------------------------------------------------------------------
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline double rsqrt(double x) { return 1. / sqrt(x); }
inline float __saturatef(float x) { return x > 0.f ? fminf(x, 1.f) : 0.f; }

namespace emulator {
// A conversion on a GPU clamps, and makes 0 of a NaN. A C++ cast of such a value is undefined, and reported.
template <class To, class From>
To clamped(From x) {
  constexpr bool is_signed = std::is_signed<To>::value;
  const From limit = ldexp(From(1), int(sizeof(To)) * 8 - is_signed);
  const To most = To(~std::make_unsigned_t<To>(0) >> is_signed);
  if (x != x) return 0;
  if (x >= limit) return most;
  if (is_signed && x < -limit) return To(-most - 1);
  if (!is_signed && x < 0) return 0;
  return To(x);
}
}  // namespace emulator

#define EMULATOR_CONVERT(name, To, From) \
  inline To name##_rd(From x) { return emulator::clamped<To>(floor(x)); } \
  inline To name##_ru(From x) { return emulator::clamped<To>(ceil(x)); } \
  inline To name##_rn(From x) { return emulator::clamped<To>(rint(x)); } \
  inline To name##_rz(From x) { return emulator::clamped<To>(trunc(x)); }
EMULATOR_CONVERT(__float2int, int, float)
EMULATOR_CONVERT(__float2uint, unsigned int, float)
EMULATOR_CONVERT(__float2ll, long long, float)
EMULATOR_CONVERT(__double2int, int, double)
EMULATOR_CONVERT(__double2uint, unsigned int, double)
EMULATOR_CONVERT(__double2ll, long long, double)
#undef EMULATOR_CONVERT
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }
