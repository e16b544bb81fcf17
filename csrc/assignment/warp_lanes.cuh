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

  // What one lane stores here, others may read after they met, or did something once.
  template <class T>
  static __device__ void store(T* to, T value) {
    to[lane()] = value;
  }

  // Afterwards, what one lane stored may be read by another.
  static __device__ void meet() { __syncwarp(); }

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

  // Writes that the whole team does once, and that the lanes see afterwards.
  template <class Writes>
  static __device__ void once(Writes writes) {
    __syncwarp();  // no lane still reads what is replaced
    if (lane() == 0) writes();
    __syncwarp();
  }
};

}  // namespace cond_detr
