// Everything that is said differently to a GPU and to the host: PTX instructions in wrappers of a few lines,
// each with its host twin beside it, shared memory, and where a field of a struct is.
#pragma once

#if defined(__CUDACC_RTC__)
#define SHARED(type, name, dims) __shared__ type name dims
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]  // as many as the launch asks for
#define OFFSET_OF(type, field) __INTADDR__(&((type*)0)->field)  // CUDA 12 has no __builtin_offsetof
#else
#define OFFSET_OF(type, field) __builtin_offsetof(type, field)
#define SHARED(type, name, dims) EMULATOR_SHARED(type, name, dims)
#define DYNAMIC_SHARED(type, name) type* const name = emulator::dynamic_shared<type>()
#endif

// The same address, which the compiler does not take apart: what is added to it is added in one instruction.
template <class T>
__device__ __forceinline__ T* whole_address(T* address) {
#if defined(__CUDACC_RTC__)
  asm("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// The same number, which the compiler does not compute anew at each place that asks for it.
__device__ __forceinline__ int settled(int number) {
#if defined(__CUDACC_RTC__)
  asm("" : "+r"(number));
#endif
  return number;
}

// The product of two numbers in full.
__device__ __forceinline__ unsigned long long whole_product(unsigned a, unsigned b) {
#if defined(__CUDACC_RTC__)
  unsigned long long product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return (unsigned long long)a * b;
#endif
}

// A product that is not fused with a sum.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// The bits of a float16 as a float, exactly.
__device__ __forceinline__ float float_from_half(unsigned short bits) {
#if defined(__CUDACC_RTC__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  const unsigned sign = (bits & 0x8000u) << 16;
  const unsigned exponent = (bits >> 10) & 31u;
  const unsigned mantissa = bits & 1023u;
  if (exponent == 31u) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0u) return __uint_as_float(sign | (exponent + 112u) << 23 | mantissa << 13);
  const float tiny = (float)mantissa * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -tiny : tiny;
#endif
}

// Round to the nearest float16, ties to even.
__device__ __forceinline__ unsigned short half_from_float(float value) {
#if defined(__CUDACC_RTC__)
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const unsigned word = __float_as_uint(value);
  const unsigned sign = (word >> 16) & 0x8000u;
  const unsigned magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (unsigned short)0x7fffu;
  if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                                           // below 2^-14: a subnormal
    const float steps = __uint_as_float(magnitude) * 16777216.0f;          // in units of 2^-24, exact
    return (unsigned short)(sign | (unsigned)nearbyintf(steps));
  }
  const unsigned rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return (unsigned short)(sign | ((rounded - 0x38000000u) >> 13));
#endif
}

// The bits of a bfloat16 as a float, exactly: one instruction for either half of a word, where a shift takes two.
__device__ __forceinline__ float float_from_bfloat(unsigned short bits) {
#if defined(__CUDACC_RTC__)
  float value;
  asm("mov.b32 %0, {%1, %2};" : "=f"(value) : "h"((unsigned short)0), "h"(bits));
  return value;
#else
  return __uint_as_float((unsigned)bits << 16);
#endif
}

// Round to the nearest bfloat16, ties to even.
__device__ __forceinline__ unsigned short bfloat_from_float(float value) {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const unsigned word = __float_as_uint(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return (unsigned short)0x7fffu;
  return (unsigned short)((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
#endif
}
