// Assignment ops on CUDA: a block per problem, one launch, no synchronisation. The whole block computes the costs; the
// search itself runs on one thread.
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

namespace cond_detr {
namespace {

constexpr int kThreads = 256;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor scratch(const Tensor& like, int64_t bytes) { return torch::stable::new_empty(like, {bytes}, ScalarType::Byte); }

__global__ void linear_sum_assignment_kernel(const double* cost, int64_t rows, int64_t cols, int64_t pairs,
                                             bool maximize, char* workspaces, size_t workspace_bytes,
                                             int64_t* row_index, int64_t* col_index, int32_t* status) {
  const int64_t p = blockIdx.x;
  status[p] =
      static_cast<int32_t>(solve_dense(cost + p * rows * cols, rows, cols, maximize, workspaces + p * workspace_bytes,
                                       row_index + p * pairs, col_index + p * pairs));
}

__global__ void match_kernel(MatchProblems problems, float* all_costs, char* workspaces, size_t workspace_bytes,
                             int64_t* pred_index, int32_t* status) {
  const int64_t p = blockIdx.x;
  float* costs = all_costs + p * problems.max_targets * problems.queries;
  const int64_t entries = problems.targets(p) * problems.queries;
  bool sanitised = false;
  for (int64_t entry = threadIdx.x; entry < entries; entry += blockDim.x) {
    costs[entry] = finite_cost(problems.cost(p, entry), sanitised);
  }
  const bool any_sanitised = __syncthreads_or(sanitised);
  if (threadIdx.x != 0) return;
  assign_targets(problems, p, costs, workspaces + p * workspace_bytes, pred_index + p * problems.max_targets);
  status[p] = static_cast<int32_t>(any_sanitised ? Status::kSanitised : Status::kOk);
}

std::tuple<Tensor, Tensor, Tensor> linear_sum_assignment_cuda(const Tensor& cost, bool maximize) {
  check_dense(cost, "cost", 3, ScalarType::Double);
  const torch::stable::accelerator::DeviceGuard guard(cost.get_device_index());
  AssignmentOutput out(cost);
  const int64_t count = cost.size(0);
  if (count == 0) return {out.row_index, out.col_index, out.status};
  const size_t workspace_bytes = dense_workspace_bytes(cost);
  const Tensor workspaces = scratch(cost, count * workspace_bytes);
  linear_sum_assignment_kernel<<<count, 1, 0, current_stream(cost)>>>(
      static_cast<const double*>(cost.const_data_ptr()), cost.size(1), cost.size(2), AssignmentOutput::pairs(cost),
      maximize, static_cast<char*>(workspaces.mutable_data_ptr()), workspace_bytes,
      static_cast<int64_t*>(out.row_index.mutable_data_ptr()), static_cast<int64_t*>(out.col_index.mutable_data_ptr()),
      static_cast<int32_t*>(out.status.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {out.row_index, out.col_index, out.status};
}

std::tuple<Tensor, Tensor> match_cuda(const Tensor& logits, const Tensor& boxes, const Tensor& target_labels,
                                      const Tensor& target_boxes, const Tensor& target_count, double label_weight,
                                      double l1_weight, double giou_weight, double alpha, double gamma) {
  const MatchProblems problems = match_problems(logits, boxes, target_labels, target_boxes, target_count,
                                                cost_weights(label_weight, l1_weight, giou_weight, alpha, gamma));
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  MatchOutput out(logits, target_labels);
  const int64_t count = logits.size(0) * problems.batch;
  if (count == 0) return {out.pred_index, out.status};
  const size_t workspace_bytes = problems.workspace_bytes();
  const Tensor costs = scratch(logits, count * problems.max_targets * problems.queries * sizeof(float));
  const Tensor workspaces = scratch(logits, count * workspace_bytes);
  match_kernel<<<count, kThreads, 0, current_stream(logits)>>>(
      problems, static_cast<float*>(costs.mutable_data_ptr()), static_cast<char*>(workspaces.mutable_data_ptr()),
      workspace_bytes, static_cast<int64_t*>(out.pred_index.mutable_data_ptr()),
      static_cast<int32_t*>(out.status.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {out.pred_index, out.status};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cond_detr, CUDA, m) {
  m.impl("linear_sum_assignment", TORCH_BOX(&linear_sum_assignment_cuda));
  m.impl("match", TORCH_BOX(&match_cuda));
}

}  // namespace cond_detr
