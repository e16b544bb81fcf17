// Batches of problems on the host, and their answers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "assignment/types.h"

struct DenseBatch {
  int64_t count, rows, cols;
  bool maximize;
  std::vector<double> costs;  // (count, rows, cols)

  int64_t pairs() const { return std::min(rows, cols); }
};

struct DenseAnswer {
  std::vector<int32_t> status;                // (count)
  std::vector<int64_t> row_index, col_index;  // (count, pairs)

  bool operator==(const DenseAnswer& other) const {
    return status == other.status && row_index == other.row_index && col_index == other.col_index;
  }
};

struct MatchBatch {
  int64_t layers, batch, queries, classes, max_targets;
  cond_detr::CostWeights weights;
  std::vector<float> logits, boxes;    // (layers, batch, queries, classes) and (layers, batch, queries, 4)
  std::vector<int64_t> target_labels;  // (batch, max_targets)
  std::vector<float> target_boxes;     // (batch, max_targets, 4)
  std::vector<int64_t> target_count;   // (batch)

  int64_t count() const { return layers * batch; }
  cond_detr::MatchProblems problems() const {
    return {logits.data(),
            boxes.data(),
            target_labels.data(),
            target_boxes.data(),
            target_count.data(),
            layers,
            batch,
            queries,
            classes,
            max_targets,
            weights};
  }
};

struct MatchAnswer {
  std::vector<int32_t> status;      // (count)
  std::vector<int64_t> pred_index;  // (count, max_targets)

  bool operator==(const MatchAnswer& other) const { return status == other.status && pred_index == other.pred_index; }
};
