// Scratch memory of the kernels: where its parts lie is arithmetic of the host, finding them the device's.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/shared_memory.cuh"

namespace cond_detr {

// Memory of one problem each: in shared memory the parts that fit, in one allocation in global memory the others.
struct Scratch {
  size_t available;         // shared memory that a block may have
  size_t shared_bytes = 0;  // of it, in use
  size_t global_bytes = 0;  // of each problem

  explicit Scratch(size_t available) : available(available) {}

  // A part's offset, and whether that is in shared memory.
  struct Part {
    size_t offset;
    bool shared;
  };

  bool fits(size_t bytes) const { return shared_bytes + padded(bytes) <= available; }

  Part add(size_t bytes) {
    const bool shared = fits(bytes);
    size_t& used = shared ? shared_bytes : global_bytes;
    const Part part{used, shared};
    used += padded(bytes);
    return part;
  }

  bool all_shared() const { return global_bytes == 0; }

  // Where a part of a problem's scratch begins, in the block that has the problem. A kernel that is compiled for
  // scratch that is all shared has the faster instructions for that memory.
  template <bool kAllShared>
  __device__ char* find(Part part, int64_t problem, char* global) const {
    if (kAllShared || part.shared) return shared_memory() + part.offset;
    return global + problem * global_bytes + part.offset;
  }

 private:
  static size_t padded(size_t bytes) { return (bytes + 15) / 16 * 16; }
};

}  // namespace cond_detr
