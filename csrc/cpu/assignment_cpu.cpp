// Assignment ops on the CPU: problems in parallel, each solved by one thread.
#include "checks.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace cond_detr {
namespace {

std::tuple<Tensor, Tensor, Tensor> linear_sum_assignment_cpu(const Tensor& cost, bool maximize) {
  check_dense(cost, "cost", 3, ScalarType::Double);
  AssignmentOutput out(cost);
  const SimdKernels& simd = simd_kernels();
  const int64_t rows = cost.size(1), cols = cost.size(2), pairs = AssignmentOutput::pairs(cost);
  const double* data = static_cast<const double*>(cost.const_data_ptr());
  int64_t* row_index = static_cast<int64_t*>(out.row_index.mutable_data_ptr());
  int64_t* col_index = static_cast<int64_t*>(out.col_index.mutable_data_ptr());
  int32_t* status = static_cast<int32_t*>(out.status.mutable_data_ptr());
  const int64_t threads = threads_for(cost.size(0), rows * cols, kSolvedPerThread, torch::stable::get_num_threads());
  for_each_problem(cost.size(0), threads, simd.dense_bytes(rows, cols), [&](int64_t p, char* buffer) {
    status[p] = static_cast<int32_t>(simd.solve_dense(data + p * rows * cols, rows, cols, maximize, buffer,
                                                      row_index + p * pairs, col_index + p * pairs));
  });
  return {out.row_index, out.col_index, out.status};
}

std::tuple<Tensor, Tensor> match_cpu(const Tensor& logits, const Tensor& boxes, const Tensor& target_labels,
                                     const Tensor& target_boxes, const Tensor& target_count, double label_weight,
                                     double l1_weight, double giou_weight, double alpha, double gamma, bool softmax) {
  const MatchProblems problems =
      match_problems(logits, boxes, target_labels, target_boxes, target_count,
                     cost_weights(label_weight, l1_weight, giou_weight, alpha, gamma, softmax));
  MatchOutput out(logits, target_labels);
  const SimdKernels& simd = simd_kernels();
  int64_t* pred_index = static_cast<int64_t*>(out.pred_index.mutable_data_ptr());
  int32_t* status = static_cast<int32_t*>(out.status.mutable_data_ptr());
  const int64_t count = problems.count();
  const int64_t entries = problems.queries * (problems.max_targets + (problems.weights.softmax ? problems.classes : 0));
  const int64_t threads = threads_for(count, entries, kMatchedPerThread, torch::stable::get_num_threads());
  for_each_problem(count, threads, simd.match_bytes(problems), [&](int64_t p, char* buffer) {
    status[p] = static_cast<int32_t>(simd.match(problems, p, buffer, pred_index + p * problems.max_targets));
  });
  return {out.pred_index, out.status};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cond_detr, CPU, m) {
  m.impl("linear_sum_assignment", TORCH_BOX(&linear_sum_assignment_cpu));
  m.impl("match", TORCH_BOX(&match_cpu));
}

}  // namespace cond_detr
