// The assignment kernels and how they are launched: all that is compiled for a GPU.
#include "cuda/assignment_kernels.cuh"
#include "cuda/launchers.h"

namespace cond_detr {
namespace {

CudaError described(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // or the next call of anybody's would find it again
  return cudaGetErrorString(error);
}

}  // namespace

CudaError find_shared_memory(int device, size_t& bytes) {
  int most = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) bytes = most - 1024;  // room for what a compiler might put there itself
  return described(error);
}

int64_t global_scratch(const DenseProblems& problems, size_t shared_bytes) {
  return problems.count * DenseScratch({problems.rows, problems.cols}, shared_bytes).global_bytes;
}

int64_t global_scratch(const MatchProblems& problems, size_t shared_bytes) {
  return problems.count() * MatchScratch(problems, shared_bytes).global_bytes;
}

CudaError launch(const DenseProblems& problems, size_t shared_bytes, char* global, const DenseAnswers& answers,
                 void* stream) {
  const DenseScratch scratch({problems.rows, problems.cols}, shared_bytes);
  const auto kernel = scratch.all_shared() ? linear_sum_assignment_kernel<true> : linear_sum_assignment_kernel<false>;
  return described(launch_blocks(kernel, problems.count, scratch, static_cast<cudaStream_t>(stream), problems, scratch,
                                 global, answers));
}

CudaError launch(const MatchProblems& problems, size_t shared_bytes, char* global, const MatchAnswers& answers,
                 void* stream) {
  const MatchScratch scratch(problems, shared_bytes);
  const auto kernel = scratch.all_shared() ? match_kernel<true> : match_kernel<false>;
  return described(launch_blocks(kernel, problems.count(), scratch, static_cast<cudaStream_t>(stream), problems,
                                 scratch, global, answers));
}

}  // namespace cond_detr
