// Assignment ops on CUDA: one launch, no synchronisation.
#include "checks.h"

// Only torch builds with CUDA define these. Weak, so that the module also loads beside a CPU torch, where no CUDA
// tensor can ever reach the code that calls them.
extern "C" {
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg
}

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "cuda/assignment_kernels.cuh"

namespace cond_detr {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Shared memory that a block may have where the tensor is.
size_t available_shared_memory(const Tensor& tensor) {
  int bytes = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, tensor.get_device_index()));
  return bytes - 1024;  // room for what a compiler might put there itself
}

Tensor allocate(const Tensor& like, int64_t problems, const Scratch& scratch) {
  return torch::stable::new_empty(like, {problems * static_cast<int64_t>(scratch.global_bytes)}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor, Tensor> linear_sum_assignment_cuda(const Tensor& cost, bool maximize) {
  check_dense(cost, "cost", 3, ScalarType::Double);
  const torch::stable::accelerator::DeviceGuard guard(cost.get_device_index());
  AssignmentOutput out(cost);
  const int64_t count = cost.size(0);
  if (count == 0) return {out.row_index, out.col_index, out.status};
  const DenseProblems problems{
      static_cast<const double*>(cost.const_data_ptr()), {cost.size(1), cost.size(2)}, maximize};
  const DenseAnswers answers{static_cast<int64_t*>(out.row_index.mutable_data_ptr()),
                             static_cast<int64_t*>(out.col_index.mutable_data_ptr()),
                             static_cast<int32_t*>(out.status.mutable_data_ptr())};
  const DenseScratch scratch(problems.shape, available_shared_memory(cost));
  const Tensor global = allocate(cost, count, scratch);
  const auto kernel = scratch.all_shared() ? linear_sum_assignment_kernel<true> : linear_sum_assignment_kernel<false>;
  STD_CUDA_CHECK(launch(kernel, count, scratch, current_stream(cost), problems, scratch,
                        static_cast<char*>(global.mutable_data_ptr()), answers));
  return {out.row_index, out.col_index, out.status};
}

std::tuple<Tensor, Tensor> match_cuda(const Tensor& logits, const Tensor& boxes, const Tensor& target_labels,
                                      const Tensor& target_boxes, const Tensor& target_count, double label_weight,
                                      double l1_weight, double giou_weight, double alpha, double gamma, bool softmax) {
  const MatchProblems problems =
      match_problems(logits, boxes, target_labels, target_boxes, target_count,
                     cost_weights(label_weight, l1_weight, giou_weight, alpha, gamma, softmax));
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  MatchOutput out(logits, target_labels);
  const int64_t count = logits.size(0) * problems.batch;
  if (count == 0) return {out.pred_index, out.status};
  const MatchAnswers answers{static_cast<int64_t*>(out.pred_index.mutable_data_ptr()),
                             static_cast<int32_t*>(out.status.mutable_data_ptr())};
  const MatchScratch scratch(problems, available_shared_memory(logits));
  const Tensor global = allocate(logits, count, scratch);
  const auto kernel = scratch.all_shared() ? match_kernel<true> : match_kernel<false>;
  STD_CUDA_CHECK(launch(kernel, count, scratch, current_stream(logits), problems, scratch,
                        static_cast<char*>(global.mutable_data_ptr()), answers));
  return {out.pred_index, out.status};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cond_detr, CUDA, m) {
  m.impl("linear_sum_assignment", TORCH_BOX(&linear_sum_assignment_cuda));
  m.impl("match", TORCH_BOX(&match_cuda));
}

}  // namespace cond_detr
