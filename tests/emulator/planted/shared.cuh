// The two ways to shared memory, as in kernels/device.cuh.
#pragma once
#if defined(__CUDACC_RTC__)
#define SHARED(type, name, dims) __shared__ type name dims
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_bytes[];
  return reinterpret_cast<T*>(dynamic_bytes);
}
#else
#define SHARED(type, name, dims) EMULATOR_SHARED(type, name, dims)
template <class T>
T* dynamic_shared() {
  return emulator::dynamic_shared<T>();
}
#endif
