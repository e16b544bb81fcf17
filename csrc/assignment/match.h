// Matching of one image in one decoder layer: costs in, prediction index of every target out.
#pragma once

#include "assignment/cost.h"
#include "assignment/dense.h"

namespace cond_detr {

// The tensors of a whole batch, row-major: logits (L, B, Q, C), boxes (L, B, Q, 4), target_labels (B, T),
// target_boxes (B, T, 4), target_count (B).
struct MatchProblems {
  const float* logits;
  const float* boxes;
  const int64_t* target_labels;
  const float* target_boxes;
  const int64_t* target_count;
  int64_t batch, queries, classes, max_targets;
  CostWeights weights;

  COND_DETR_HD int64_t image(int64_t problem) const { return problem % batch; }

  COND_DETR_HD int64_t targets(int64_t problem) const {
    const int64_t count = target_count[image(problem)];
    return count < 0 ? 0 : count > max_targets ? max_targets : count;
  }

  // Cost of `entry` of the (targets, queries) matrix of a problem.
  COND_DETR_HD float cost(int64_t problem, int64_t entry) const {
    const int64_t target = image(problem) * max_targets + entry / queries;
    const int64_t query = problem * queries + entry % queries;
    return match_cost(logits + query * classes, classes, boxes + query * 4, target_labels[target],
                      target_boxes + target * 4, weights);
  }

  // Bytes for the workspace of one problem; its pairs come in two index arrays of max_targets each.
  COND_DETR_HD size_t workspace_bytes() const {
    const int64_t few = max_targets < queries ? max_targets : queries;
    const int64_t many = max_targets < queries ? queries : max_targets;
    return Workspace::bytes(few, many) + 2 * sizeof(int64_t) * few;
  }
};

// Assigns the targets of a problem given its (targets, queries) costs, and writes max_targets prediction indices:
// unique, in [0, queries), -1 for padding and for targets left over when there are more of them than queries.
COND_DETR_HD inline void assign_targets(const MatchProblems& problems, int64_t problem, const float* costs,
                                        void* buffer, int64_t* pred_index) {
  const int64_t targets = problems.targets(problem);
  const int64_t pairs = targets < problems.queries ? targets : problems.queries;
  int64_t* target_of_pair = static_cast<int64_t*>(buffer);
  int64_t* query_of_pair = target_of_pair + pairs;
  for (int64_t target = 0; target < problems.max_targets; ++target) pred_index[target] = kNone;
  solve_dense(costs, targets, problems.queries, false, query_of_pair + pairs, target_of_pair, query_of_pair);
  for (int64_t pair = 0; pair < pairs; ++pair) pred_index[target_of_pair[pair]] = query_of_pair[pair];
}

}  // namespace cond_detr
