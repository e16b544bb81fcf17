// Launching a kernel by a function call, which is C++ where `<<<>>>` is not.
#pragma once

#include <cuda_runtime.h>

#include "cuda/scratch.cuh"

namespace cond_detr {

// Of a block: with more than 20 warps, 102 registers a thread, the kernels spill. An emulation has fewer.
#ifndef COND_DETR_WARPS
#define COND_DETR_WARPS 20
#endif
constexpr int kWarps = COND_DETR_WARPS;
constexpr int kThreads = 32 * kWarps;

// Columns that a thread of a search may have in its registers. For 300 queries it has one.
#ifndef COND_DETR_GROUPS
#define COND_DETR_GROUPS 4
#endif
constexpr int kMostGroups = COND_DETR_GROUPS;

// Launches a block of kThreads per problem, each with its scratch.
template <class... Parameters, class... Arguments>
cudaError_t launch_blocks(void (*kernel)(Parameters...), int64_t problems, const Scratch& scratch, cudaStream_t stream,
                          const Arguments&... arguments) {
  if (problems > INT32_MAX) return cudaErrorInvalidConfiguration;  // more than a grid's width
  // the same for all launches, so that one does not take away what another, of another thread, is about to use
  const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(scratch.available));
  if (allowed != cudaSuccess) return allowed;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(problems));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = scratch.shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace cond_detr
