// Plain data that code for different instruction sets, and the launchers of both devices, hand to each other.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cond_detr {

enum class Status : int32_t {
  kOk = 0,
  kSanitised = 1,   // the costs held NaN or infinity where only numbers make sense
  kInfeasible = 2,  // forbidden (+inf) entries leave some row without a column
};

struct CostWeights {
  float label;
  float l1;
  float giou;
  float alpha;
  float gamma;
  bool softmax;  // plain DETR's class term; alpha and gamma have no part in it
};

// Dense matrices (P, rows, cols), row-major, and the pairs (P, min(rows, cols)) of each.
struct DenseProblems {
  const double* costs;
  int64_t count, rows, cols;
  bool maximize;
};

struct DenseAnswers {
  int64_t* row_index;
  int64_t* col_index;
  int32_t* status;  // (P)
};

// The tensors of a whole batch, row-major: logits (L, B, Q, C), boxes (L, B, Q, 4), target_labels (B, T),
// target_boxes (B, T, 4), target_count (B). Problem p is layer p / B and image p % B.
struct MatchProblems {
  const float* logits;
  const float* boxes;
  const int64_t* target_labels;
  const float* target_boxes;
  const int64_t* target_count;
  int64_t layers, batch, queries, classes, max_targets;
  CostWeights weights;

  int64_t count() const { return layers * batch; }
};

struct MatchAnswers {
  int64_t* pred_index;  // (P, max_targets)
  int32_t* status;      // (P)
};

}  // namespace cond_detr
