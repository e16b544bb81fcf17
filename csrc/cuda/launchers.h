// What the torch operators know of the kernels. No header of CUDA and none of torch: nvcc never sees torch's, which
// saves two thirds of its time, and a new release of one cannot break the other.
#pragma once

#include "assignment/types.h"

namespace cond_detr {

// CUDA's description of an error, or null.
using CudaError = const char*;

// Shared memory that a block may have on a device, in bytes.
CudaError find_shared_memory(int device, size_t& bytes);

// Scratch in global memory that all problems need together, in bytes, if a block has so much shared memory.
int64_t global_scratch(const DenseProblems& problems, size_t shared_bytes);
int64_t global_scratch(const MatchProblems& problems, size_t shared_bytes);

// Starts the kernel for at least one problem, all pointers being the device's. `stream` is a cudaStream_t.
CudaError launch(const DenseProblems& problems, size_t shared_bytes, char* global, const DenseAnswers& answers,
                 void* stream);
CudaError launch(const MatchProblems& problems, size_t shared_bytes, char* global, const MatchAnswers& answers,
                 void* stream);

}  // namespace cond_detr
