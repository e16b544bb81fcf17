// Lanes that are the threads of a warp. Every function is called by all 32 of them together.
#pragma once

#include <cuda_runtime.h>

#include "assignment/lanes.h"

namespace cond_detr {

// A double as a number that orders as it does: zeros of either sign are equal, NaN is none.
inline __device__ uint64_t ordered_bits(double value) {
  const int64_t bits = __double_as_longlong(value + 0.0);  // turns -0 into 0
  return static_cast<uint64_t>(bits ^ (bits >> 63 | INT64_MIN));
}

inline __device__ double value_of(uint64_t ordered) {
  const int64_t bits = static_cast<int64_t>(ordered);
  return __longlong_as_double(bits ^ (~(bits >> 63) | INT64_MIN));
}

// Of this thread, in its block.
inline __device__ int warp() { return threadIdx.x / 32; }

struct WarpLanes {
  static constexpr int kWidth = 32;
  static constexpr int kChains = 1;  // with more, the kernels spill

  static __device__ int lane() { return threadIdx.x % kWidth; }

  static __device__ double load(const double* from) { return from[lane()]; }
  static __device__ double load(const float* from) { return from[lane()]; }
  static __device__ int64_t load(const int64_t* from) { return from[lane()]; }

  // What one lane stores here, others may read after they did something once.
  template <class T>
  static __device__ void store(T* to, T value) {
    to[lane()] = value;
  }

  template <class T>
  static __device__ T all(T value) {
    return value;
  }
  static __device__ int64_t lane_index() { return lane(); }

  template <class T>
  static __device__ T select(bool mask, T yes, T no) {
    return mask ? yes : no;
  }

  // The least of all lanes, of unsigned numbers: the upper halves, then the lower ones of those that have it.
  static __device__ uint64_t least(uint64_t bits) {
    const uint32_t upper = __reduce_min_sync(~0u, static_cast<uint32_t>(bits >> 32));
    const bool tied = static_cast<uint32_t>(bits >> 32) == upper;
    return uint64_t{upper} << 32 | __reduce_min_sync(~0u, tied ? static_cast<uint32_t>(bits) : UINT32_MAX);
  }

  static __device__ Ranked least(double value, int64_t rank) {
    const uint64_t bits = ordered_bits(value);
    const uint64_t first = least(bits);
    // ranks are not negative
    const uint64_t other = least(bits == first ? static_cast<uint64_t>(rank) : UINT64_MAX);
    return {value_of(first), static_cast<int64_t>(other)};
  }

  // Writes that the whole team does once, and that the lanes see afterwards.
  template <class Writes>
  static __device__ void once(Writes writes) {
    __syncwarp();  // no lane still reads what is replaced
    if (lane() == 0) writes();
    __syncwarp();
  }

  // By one lane; those of other warps may do so at the same time.
  static __device__ void lower(int32_t* to, int32_t value) { atomicMin(to, value); }
};

}  // namespace cond_detr
