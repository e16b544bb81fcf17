// The one thing in the kernels that has no meaning outside of nvcc, in a header of its own so that an emulation can put
// another in its place.
#pragma once

#include <cuda_runtime.h>

namespace cond_detr {

// The block's shared memory, as long as the launch asked for. Kernels have no other.
inline __device__ char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

}  // namespace cond_detr
