// Does what csrc/cuda/assignment_cuda.cu does, with plain memory in place of tensors. Of this program's files it is the
// only one with code of kernels, and the one that sanitizers watch.

// Inline functions of its own, which the linker does not mix up with those of the CPU solver
#define COND_DETR_ISA emulated

#include "on_device.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "cuda/assignment_kernels.cuh"
#include "scheduler.h"

using namespace cond_detr;

namespace {

// Memory as an allocator hands it out: not a byte more than was asked for, and garbage in it.
template <class T>
std::vector<T> allocate(int64_t count) {
  std::vector<T> memory(count);
  if (count > 0) std::memset(memory.data(), emulation::settings.garbage, count * sizeof(T));
  return memory;
}

std::unique_ptr<char[]> allocate(int64_t problems, const Scratch& scratch) {
  const size_t bytes = problems * scratch.global_bytes;
  std::unique_ptr<char[]> memory(new char[bytes]);
  std::memset(memory.get(), emulation::settings.garbage, bytes);
  return memory;
}

size_t available_shared_memory() { return emulation::settings.shared_bytes_per_block - 1024; }

void check(cudaError_t error) {
  if (error != cudaSuccess) emulation::fail("the launch returned error %d", error);
}

}  // namespace

DenseAnswer solve_on_device(const DenseBatch& batch) {
  const int64_t pairs = batch.count * batch.pairs();
  DenseAnswer out{allocate<int32_t>(batch.count), allocate<int64_t>(pairs), allocate<int64_t>(pairs)};
  const DenseProblems problems{batch.costs.data(), {batch.rows, batch.cols}, batch.maximize};
  const DenseAnswers answers{out.row_index.data(), out.col_index.data(), out.status.data()};
  const DenseScratch scratch(problems.shape, available_shared_memory());
  const std::unique_ptr<char[]> global = allocate(batch.count, scratch);
  const auto kernel = scratch.all_shared() ? linear_sum_assignment_kernel<true> : linear_sum_assignment_kernel<false>;
  check(launch(kernel, batch.count, scratch, nullptr, problems, scratch, global.get(), answers));
  return out;
}

MatchAnswer match_on_device(const MatchBatch& batch) {
  MatchAnswer out{allocate<int32_t>(batch.count()), allocate<int64_t>(batch.count() * batch.max_targets)};
  const MatchProblems problems = batch.problems();
  const MatchAnswers answers{out.pred_index.data(), out.status.data()};
  const MatchScratch scratch(problems, available_shared_memory());
  const std::unique_ptr<char[]> global = allocate(batch.count(), scratch);
  const auto kernel = scratch.all_shared() ? match_kernel<true> : match_kernel<false>;
  check(launch(kernel, batch.count(), scratch, nullptr, problems, scratch, global.get(), answers));
  return out;
}
