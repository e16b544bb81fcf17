// What both devices ask of their operands before they touch memory. The Python wrappers explain; these only protect.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "assignment/types.h"

namespace cond_detr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_dense(const Tensor& tensor, const char* name, int64_t dim, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.dim() == dim, name, " must have ", dim, " dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline void check_device(const Tensor& tensor, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(), name,
                  " must be on the device of logits");
}

inline MatchProblems match_problems(const Tensor& logits, const Tensor& boxes, const Tensor& target_labels,
                                    const Tensor& target_boxes, const Tensor& target_count,
                                    const CostWeights& weights) {
  check_dense(logits, "logits", 4, ScalarType::Float);
  check_dense(boxes, "boxes", 4, ScalarType::Float);
  check_dense(target_labels, "target_labels", 2, ScalarType::Long);
  check_dense(target_boxes, "target_boxes", 3, ScalarType::Float);
  check_dense(target_count, "target_count", 1, ScalarType::Long);
  check_device(boxes, "boxes", logits);
  check_device(target_labels, "target_labels", logits);
  check_device(target_boxes, "target_boxes", logits);
  check_device(target_count, "target_count", logits);
  const int64_t layers = logits.size(0), batch = logits.size(1), queries = logits.size(2);
  const int64_t targets = target_labels.size(1);
  STD_TORCH_CHECK(boxes.size(0) == layers && boxes.size(1) == batch && boxes.size(2) == queries && boxes.size(3) == 4,
                  "boxes must be (L, B, Q, 4) like logits (L, B, Q, C)");
  STD_TORCH_CHECK(target_labels.size(0) == batch, "target_labels must be (B, T)");
  STD_TORCH_CHECK(target_boxes.size(0) == batch && target_boxes.size(1) == targets && target_boxes.size(2) == 4,
                  "target_boxes must be (B, T, 4)");
  STD_TORCH_CHECK(target_count.size(0) == batch, "target_count must be (B,)");
  return MatchProblems{
      .logits = static_cast<const float*>(logits.const_data_ptr()),
      .boxes = static_cast<const float*>(boxes.const_data_ptr()),
      .target_labels = static_cast<const int64_t*>(target_labels.const_data_ptr()),
      .target_boxes = static_cast<const float*>(target_boxes.const_data_ptr()),
      .target_count = static_cast<const int64_t*>(target_count.const_data_ptr()),
      .layers = layers,
      .batch = batch,
      .queries = queries,
      .classes = logits.size(3),
      .max_targets = targets,
      .weights = weights,
  };
}

inline CostWeights cost_weights(double label, double l1, double giou, double alpha, double gamma, bool softmax) {
  return {static_cast<float>(label), static_cast<float>(l1),    static_cast<float>(giou),
          static_cast<float>(alpha), static_cast<float>(gamma), softmax};
}

// Outputs of both ops: (P..., k) index tensors and a (P...) status, on the device of the inputs.
struct MatchOutput {
  Tensor pred_index;
  Tensor status;

  MatchOutput(const Tensor& logits, const Tensor& target_labels)
      : pred_index(torch::stable::new_empty(logits, {logits.size(0), logits.size(1), target_labels.size(1)},
                                            ScalarType::Long)),
        status(torch::stable::new_empty(logits, {logits.size(0), logits.size(1)}, ScalarType::Int)) {}
};

struct AssignmentOutput {
  Tensor row_index;
  Tensor col_index;
  Tensor status;

  explicit AssignmentOutput(const Tensor& cost)
      : row_index(torch::stable::new_empty(cost, {cost.size(0), pairs(cost)}, ScalarType::Long)),
        col_index(torch::stable::new_empty(cost, {cost.size(0), pairs(cost)}, ScalarType::Long)),
        status(torch::stable::new_empty(cost, {cost.size(0)}, ScalarType::Int)) {}

  static int64_t pairs(const Tensor& cost) { return cost.size(1) < cost.size(2) ? cost.size(1) : cost.size(2); }
};

}  // namespace cond_detr
