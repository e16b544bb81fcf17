// Lanes that are the threads of a warp. Every function is called by all 32 of them together.
#pragma once

#include <cuda_runtime.h>

#include "assignment/lanes.h"

namespace cond_detr {

struct WarpLanes {
  static constexpr int kWidth = 32;

  static __device__ int lane() { return threadIdx.x % kWidth; }

  static __device__ double load(const double* from) { return from[lane()]; }
  static __device__ double load(const float* from) { return from[lane()]; }
  static __device__ int64_t load(const int64_t* from) { return from[lane()]; }

  // What one lane stores here, another may read by index afterwards.
  template <class T>
  static __device__ void store(T* to, T value) {
    to[lane()] = value;
    __syncwarp();
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

  static __device__ bool all_of(bool mask) { return __all_sync(~0u, mask); }

  static __device__ Ranked least(double value, int64_t rank) {
    for (int distance = kWidth / 2; distance > 0; distance /= 2) {
      const double other = __shfl_xor_sync(~0u, value, distance);
      const int64_t other_rank = __shfl_xor_sync(~0u, rank, distance);
      if (other < value || (other == value && other_rank < rank)) {
        value = other;
        rank = other_rank;
      }
    }
    return {value, rank};
  }

  template <class T>
  static __device__ void set(T* to, T value) {
    __syncwarp();  // no lane still reads what is replaced
    if (lane() == 0) *to = value;
    __syncwarp();
  }
};

}  // namespace cond_detr
