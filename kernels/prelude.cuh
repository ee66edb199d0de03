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
__device__ __forceinline__ float widen(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
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

// N neighbours in memory, moved by one instruction of up to 16 bytes.
template <class T, int N>
struct Pack {
  using Word = typename WordOf<sizeof(T) * N>::type;
  union {
    T lane[N];
    Word word;
  };
  __device__ __forceinline__ Pack() {}
  __device__ __forceinline__ void load(const T* p) { word = __ldg(reinterpret_cast<const Word*>(p)); }
  // Through the ordinary path: for memory that this launch also writes.
  __device__ __forceinline__ void load_written(const T* p) { word = *reinterpret_cast<const Word*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<Word*>(p) = word; }
};

// One element, as the type it is summed in.
template <class T>
__device__ __forceinline__ typename SumOf<T>::type read(const T* p) {
  Pack<T, 1> one;
  one.load(p);
  return widen(one.lane[0]);
}

// The lanes of this thread's group of `width` threads (a power of two) in its warp.
__device__ __forceinline__ unsigned group_mask(int width) {
  const unsigned lane = threadIdx.x & 31u;
  return width == 32 ? 0xffffffffu : ((1u << width) - 1u) << (lane & ~(unsigned)(width - 1));
}

template <class S>
__device__ __forceinline__ S group_sum(S value, int width, unsigned mask) {
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(mask, value, step, width);
  return value;
}
