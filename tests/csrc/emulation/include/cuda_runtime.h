// As much of CUDA as the kernels and their launch use, on the CPU: stands in for the toolkit's header of this name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>

#include "scheduler.h"

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)
// A static variable would be one for all blocks, and AddressSanitizer would not see what lies behind it.
#define __shared__ static_assert(false, "emulated kernels have no shared memory but the launch's");

// Barriers, votes and reductions, of which only barriers order memory. An operation goes by its signature.

inline void check_full(unsigned mask) {
  if (mask != ~0u) emulation::fail("only whole warps are emulated, not the lanes %x", mask);
}

inline void __syncwarp(unsigned mask = ~0u) {
  check_full(mask);
  emulation::meet_in_warp({__PRETTY_FUNCTION__});
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  check_full(mask);
  const uint64_t* votes = emulation::exchange_in_warp({__PRETTY_FUNCTION__}, predicate != 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < emulation::kWarpSize; ++lane) ballot |= static_cast<unsigned>(votes[lane]) << lane;
  return ballot;
}

inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  check_full(mask);
  const uint64_t* values = emulation::exchange_in_warp({__PRETTY_FUNCTION__}, value);
  for (unsigned lane = 0; lane < emulation::kWarpSize; ++lane) {
    if (values[lane] < value) value = static_cast<unsigned>(values[lane]);
  }
  return value;
}

inline double __shfl_sync(unsigned mask, double value, int lane) {
  check_full(mask);
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = emulation::exchange_in_warp({__PRETTY_FUNCTION__}, bits)[lane];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void __syncthreads() { emulation::meet_in_block({__PRETTY_FUNCTION__}); }

inline int __syncthreads_and(int predicate) {
  return emulation::meet_in_block({__PRETTY_FUNCTION__}, predicate != 0) == blockDim.x;
}

inline int __syncthreads_or(int predicate) {
  return emulation::meet_in_block({__PRETTY_FUNCTION__}, predicate != 0) > 0;
}

inline void __barrier_sync_count(unsigned barrier, unsigned count) {
  emulation::meet_in_team({__PRETTY_FUNCTION__, barrier}, count);
}

// Atomics and bits.

inline int atomicMin(int* address, int value) {
  int before = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < before &&
         !__atomic_compare_exchange_n(address, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Launches.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {

// Shared memory that a kernel is allowed to use: this much before it is asked for more.
constexpr size_t kAllowedShared = 48 << 10;
inline std::map<const void*, size_t> allowed_shared;

template <class Kernel>
size_t& allowed_shared_of(Kernel* kernel) {
  return allowed_shared.try_emplace(reinterpret_cast<const void*>(kernel), kAllowedShared).first->second;
}

}  // namespace emulation

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(emulation::settings.shared_bytes_per_block);
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "invalid argument";
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > emulation::settings.shared_bytes_per_block)
    return cudaErrorInvalidValue;
  emulation::allowed_shared_of(kernel) = bytes;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->gridDim.x == 0 || config->gridDim.x > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (config->dynamicSmemBytes > emulation::allowed_shared_of(kernel)) return cudaErrorInvalidValue;
  emulation::run_grid(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
