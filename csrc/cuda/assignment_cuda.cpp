// Assignment ops on CUDA: one launch, no synchronisation. Compiled for the host; kernels are in launchers.cu.
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/launchers.h"

// Part of torch's stable ABI, but only of builds with CUDA. Weak, so that the module also loads beside a CPU torch,
// where no CUDA tensor can ever reach the code that calls it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace cond_detr {
namespace {

void check(CudaError error) { STD_TORCH_CHECK(!error, "CUDA error: ", error); }

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

// Runs the kernel where the operand is, with the scratch that it needs there.
template <class Problems, class Answers>
void run(const Problems& problems, const Answers& answers, const Tensor& operand) {
  size_t shared_bytes = 0;
  check(find_shared_memory(operand.get_device_index(), shared_bytes));
  const Tensor global = torch::stable::new_empty(operand, {global_scratch(problems, shared_bytes)}, ScalarType::Byte);
  check(
      launch(problems, shared_bytes, static_cast<char*>(global.mutable_data_ptr()), answers, current_stream(operand)));
}

std::tuple<Tensor, Tensor, Tensor> linear_sum_assignment_cuda(const Tensor& cost, bool maximize) {
  check_dense(cost, "cost", 3, ScalarType::Double);
  const torch::stable::accelerator::DeviceGuard guard(cost.get_device_index());
  AssignmentOutput out(cost);
  const DenseProblems problems{static_cast<const double*>(cost.const_data_ptr()), cost.size(0), cost.size(1),
                               cost.size(2), maximize};
  const DenseAnswers answers{static_cast<int64_t*>(out.row_index.mutable_data_ptr()),
                             static_cast<int64_t*>(out.col_index.mutable_data_ptr()),
                             static_cast<int32_t*>(out.status.mutable_data_ptr())};
  if (problems.count > 0) run(problems, answers, cost);
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
  const MatchAnswers answers{static_cast<int64_t*>(out.pred_index.mutable_data_ptr()),
                             static_cast<int32_t*>(out.status.mutable_data_ptr())};
  if (problems.count() > 0) run(problems, answers, logits);
  return {out.pred_index, out.status};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cond_detr, CUDA, m) {
  m.impl("linear_sum_assignment", TORCH_BOX(&linear_sum_assignment_cuda));
  m.impl("match", TORCH_BOX(&match_cuda));
}

}  // namespace cond_detr
