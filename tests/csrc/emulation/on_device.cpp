// Does what csrc/cuda/assignment_cuda.cpp does, with plain memory in place of tensors.
#include "on_device.h"

#include <cstring>
#include <memory>

#include "cuda/launchers.h"
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

void check(CudaError error) {
  if (error) emulation::fail("the launch failed: %s", error);
}

template <class Problems, class Answers>
void run(const Problems& problems, const Answers& answers) {
  size_t shared_bytes = 0;
  check(find_shared_memory(0, shared_bytes));
  const int64_t bytes = global_scratch(problems, shared_bytes);
  const std::unique_ptr<char[]> global(new char[bytes]);
  std::memset(global.get(), emulation::settings.garbage, bytes);
  check(launch(problems, shared_bytes, global.get(), answers, nullptr));
}

}  // namespace

DenseAnswer solve_on_device(const DenseBatch& batch) {
  const int64_t pairs = batch.count * batch.pairs();
  DenseAnswer out{allocate<int32_t>(batch.count), allocate<int64_t>(pairs), allocate<int64_t>(pairs)};
  run(DenseProblems{batch.costs.data(), batch.count, batch.rows, batch.cols, batch.maximize},
      DenseAnswers{out.row_index.data(), out.col_index.data(), out.status.data()});
  return out;
}

MatchAnswer match_on_device(const MatchBatch& batch) {
  MatchAnswer out{allocate<int32_t>(batch.count()), allocate<int64_t>(batch.count() * batch.max_targets)};
  run(batch.problems(), MatchAnswers{out.pred_index.data(), out.status.data()});
  return out;
}
