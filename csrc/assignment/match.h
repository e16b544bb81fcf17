// Matching of one image in one decoder layer: where its data are, and what becomes of a solved problem.
#pragma once

#include "assignment/cost.h"
#include "assignment/solver.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

// One problem of a batch: rows are its targets, columns the queries, or the other way round if there are more targets.
struct MatchProblem {
  const float* logits;        // (Q, C)
  const float* boxes;         // (Q, 4)
  const int64_t* labels;      // (targets)
  const float* target_boxes;  // (targets, 4)
  int64_t targets, queries, classes;

  COND_DETR_HD MatchProblem(const MatchProblems& all, int64_t problem)
      : logits(all.logits + problem * all.queries * all.classes),
        boxes(all.boxes + problem * all.queries * 4),
        labels(all.target_labels + problem % all.batch * all.max_targets),
        target_boxes(all.target_boxes + problem % all.batch * all.max_targets * 4),
        queries(all.queries),
        classes(all.classes) {
    const int64_t count = all.target_count[problem % all.batch];
    targets = count < 0 ? 0 : count > all.max_targets ? all.max_targets : count;
  }

  COND_DETR_HD bool transposed() const { return targets > queries; }
  COND_DETR_HD int64_t rows() const { return transposed() ? queries : targets; }
  COND_DETR_HD int64_t cols() const { return transposed() ? targets : queries; }
  COND_DETR_HD bool known(int64_t target) const { return labels[target] >= 0 && labels[target] < classes; }
};

// Room for the costs and the workspace of any problem of a batch.
COND_DETR_HD inline int64_t most_rows(const MatchProblems& all) {
  return all.max_targets < all.queries ? all.max_targets : all.queries;
}
COND_DETR_HD inline int64_t most_cols(const MatchProblems& all) {
  return all.max_targets < all.queries ? all.queries : all.max_targets;
}
COND_DETR_HD inline size_t match_cost_bytes(const MatchProblems& all) {
  return sizeof(float) * most_rows(all) * padded_columns(most_cols(all));
}

// A cost that is safe to solve with; sets `sanitised` where it had to be replaced.
COND_DETR_HD inline float finite_cost(float cost, bool& sanitised) {
  if (fabsf(cost) < kSanitisedCost) return cost;  // false for NaN
  sanitised = true;
  return kSanitisedCost;
}

// The prediction of target `target`, from the workspace of the solved problem; -1 if it went empty-handed.
COND_DETR_HD inline int64_t prediction_of(const MatchProblem& problem, const Workspace& w, int64_t target) {
  if (target >= problem.targets) return kNone;
  if (!problem.transposed()) return w.col_of_row[target];
  return w.rank[target] < kAssigned ? kNone : w.row_of_col[target];
}

}  // namespace COND_DETR_ISA
}  // namespace cond_detr
