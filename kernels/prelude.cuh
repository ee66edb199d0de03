// Storage types, what they are summed in, and vectors of them.
#pragma once
#include "device.cuh"

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

// The type that coordinates and sums of a storage type have.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

__device__ __forceinline__ float widen(float16 x) { return float_from_half(x.bits); }
__device__ __forceinline__ float widen(bfloat16 x) { return float_from_bfloat(x.bits); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

__device__ __forceinline__ void narrow(float16& x, float value) { x.bits = half_from_float(value); }
__device__ __forceinline__ void narrow(bfloat16& x, float value) { x.bits = bfloat_from_float(value); }
__device__ __forceinline__ void narrow(float& x, float value) { x = value; }
__device__ __forceinline__ void narrow(double& x, double value) { x = value; }

template <int BYTES>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
struct alignas(16) TwoWords {
  uint4 low, high;
};
template <>
struct WordOf<32> {
  using type = TwoWords;
};

template <class Word>
__device__ __forceinline__ Word load_word(const Word* p) {
  return __ldg(p);
}
__device__ __forceinline__ TwoWords load_word(const TwoWords* p) { return {__ldg(&p->low), __ldg(&p->high)}; }

// N neighbours in memory, moved by one instruction of up to 16 bytes.
template <class T, int N>
struct Pack {
  using Word = typename WordOf<sizeof(T) * N>::type;
  union {
    T lane[N];
    Word word;
  };
  __device__ __forceinline__ Pack() {}
  __device__ __forceinline__ void load(const T* p) { word = load_word(reinterpret_cast<const Word*>(p)); }
  // Through the ordinary path: for memory that this launch also writes.
  __device__ __forceinline__ void load_written(const T* p) { word = *reinterpret_cast<const Word*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<Word*>(p) = word; }
  __device__ __forceinline__ void clear() { word = Word{}; }
};

// One element, as the type it is summed in.
template <class T>
__device__ __forceinline__ typename SumOf<T>::type read(const T* p) {
  Pack<T, 1> one;
  one.load(p);
  return widen(one.lane[0]);
}

// Replaces each value by its sum over this thread's group of `width` neighbours in the warp, a power of two, or over
// those that are `apart`. Every thread of the warp must come here: where the compiler does not know that, each shuffle
// becomes a search for its lanes.
template <class S, int N>
__device__ __forceinline__ void group_sums(S (&values)[N], int width, int apart = 1) {
  for (int step = width / 2; step >= apart; step /= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
  }
}

// Down to a whole number, the nearest one that an int holds; any for NaN.
__device__ __forceinline__ int floor_to_int(float x) { return __float2int_rd(x); }
__device__ __forceinline__ int floor_to_int(double x) { return __double2int_rd(x); }

// a / b for numbers that are not negative, in fewer instructions than where they may be.
__device__ __forceinline__ int quotient(int a, int b) { return (int)((unsigned)a / (unsigned)b); }

// A positive number that a launch divides by: the host's multiplier and shift make a product of the division, exact for
// every dividend from 0 to 2^31 - 1.
struct Divisor {
  int value;
  unsigned multiplier;
  int shift;
  __device__ __forceinline__ operator int() const { return value; }
};

__device__ __forceinline__ int quotient(int a, const Divisor& b) {
  return (int)((unsigned long long)(unsigned)a * b.multiplier >> b.shift);
}
__device__ __forceinline__ long long quotient(long long a, const Divisor& b) { return a / b.value; }
