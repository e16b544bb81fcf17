// The assignment kernels: a block per problem. The block computes the costs, its warps bid for the rows, and a team of
// them searches for what is left. No torch here.
#pragma once

#include <cuda_runtime.h>

#include "assignment/dense.h"
#include "assignment/match.h"
#include "assignment/warp_lanes.cuh"
#include "cuda/block_auction.cuh"
#include "cuda/block_search.cuh"
#include "cuda/launch.cuh"
#include "cuda/scratch.cuh"

namespace cond_detr {

// As cond_detr::assign_others: by a warp for each 32 columns, or by all with several columns a thread, or, where these
// do not fit into registers, by one warp. To threads that take no part it is true.
template <class Costs>
__device__ bool assign_others_in_block(const Costs& costs, int64_t rows, int64_t padded, Workspace& w, Nearest* board) {
  const int32_t count = static_cast<int32_t>(rows);
  const int64_t needed = padded / 32;
  if (needed > kMostGroups * kWarps) return warp() > 0 || assign_others<WarpLanes>(costs, count, padded, w);
  Team team(needed < kWarps ? static_cast<int>(needed) : kWarps, board);
  if (static_cast<int>(threadIdx.x) >= team.threads()) return true;
  if (needed <= kWarps) return assign_others_in_registers<1>(costs, count, padded, w, team);
  return assign_others_in_registers<kMostGroups>(costs, count, padded, w, team);
}

// All threads see the result.
template <class Costs>
__device__ Status solve_in_block(const Costs& costs, int64_t rows, int64_t padded, Workspace& w, Nearest* board) {
  const Status started = start_in_block(costs, static_cast<int32_t>(rows), padded, w);
  if (started != Status::kOk) return started;
  const bool feasible = assign_others_in_block(costs, rows, padded, w, board);
  return __syncthreads_and(feasible) ? Status::kOk : Status::kInfeasible;
}

// Costs are copied into shared memory if they fit there beside the workspace, and where they have to be transposed.
struct DenseScratch : Scratch {
  Part board, workspace, costs;
  bool copied;

  DenseScratch(const DenseShape& shape, size_t available)
      : Scratch(available),
        board(add(Team::board_bytes())),
        workspace(add(Workspace::bytes(shape.few(), shape.many()))),
        costs{},
        copied(shape.transposed() || fits(shape.cost_bytes())) {
    if (copied) costs = add(shape.cost_bytes());
  }

  bool all_shared() const { return copied && Scratch::all_shared(); }
};

// A row-major matrix with at least as many columns as rows, read where it is, negated to maximise.
struct CostsInPlace {
  const double* data;
  int64_t row_stride, cols;
  double sign;

  template <class L>
  __device__ double load(int64_t row, int64_t first) const {
    return at(row, first + L::lane());
  }

  __device__ double at(int64_t row, int64_t col) const {
    return col < cols ? sign * data[row * row_stride + col] : INFINITY;
  }
};

template <bool kAllShared>
__global__ void __launch_bounds__(kThreads, 1)
    linear_sum_assignment_kernel(DenseProblems problems, DenseScratch scratch, char* global, DenseAnswers answers) {
  const int64_t p = blockIdx.x;
  const DenseShape shape{problems.rows, problems.cols};
  const double* data = problems.costs + p * shape.rows * shape.cols;
  Carver carver(scratch.template find<kAllShared>(scratch.workspace, p, global));
  Workspace w(carver, shape.few(), shape.many());
  Nearest* board = reinterpret_cast<Nearest*>(scratch.template find<kAllShared>(scratch.board, p, global));
  double* copy = reinterpret_cast<double*>(scratch.template find<kAllShared>(scratch.costs, p, global));
  if (kAllShared || scratch.copied) {
    for (int64_t row = warp(); row < shape.few(); row += kWarps) {
      copy_row(data, shape, problems.maximize, row, copy, WarpLanes::lane(), 32);
    }
  }
  __syncthreads();
  Status found;
  if (kAllShared) {
    found = solve_in_block(PaddedCosts<double>{copy, shape.padded()}, shape.few(), shape.padded(), w, board);
  } else {
    const CostsInPlace costs = scratch.copied
                                   ? CostsInPlace{copy, shape.padded(), shape.many(), 1.0}
                                   : CostsInPlace{data, shape.cols, shape.cols, problems.maximize ? -1.0 : 1.0};
    found = solve_in_block(costs, shape.few(), shape.padded(), w, board);
  }
  write_pairs(shape, w, found, answers.row_index + p * shape.few(), answers.col_index + p * shape.few(), threadIdx.x,
              kThreads);
  if (threadIdx.x == 0) answers.status[p] = static_cast<int32_t>(found);
}

// A target as the costs of all its pairs read it. Aligned, so that few instructions load it.
struct alignas(16) Target {
  Box<float> box;
  int32_t label;  // kNone if it is no class
};

struct MatchScratch : Scratch {
  Part board, workspace, targets, softmax, costs;

  MatchScratch(const MatchProblems& all, size_t available)
      : Scratch(available),
        board(add(Team::board_bytes())),
        workspace(add(Workspace::bytes(most_rows(all), most_cols(all)))),
        targets(add(all.max_targets * sizeof(Target))),
        softmax(add(all.weights.softmax ? 2 * sizeof(float) * all.queries : 0)),
        costs(add(match_cost_bytes(all))) {}
};

inline __device__ Box<float> box_at(const float* boxes, int64_t index) {
  const float* box = boxes + index * 4;
  return {box[0], box[1], box[2], box[3]};
}

inline __device__ void load_targets(const MatchProblem& problem, Target* targets) {
  for (int64_t i = threadIdx.x; i < problem.targets; i += kThreads) {
    const int32_t label = problem.known(i) ? static_cast<int32_t>(problem.labels[i]) : kNone;
    targets[i] = {box_at(problem.target_boxes, i), label};
  }
}

// Of each query, the largest logit and the sum of exp(logit - largest).
inline __device__ void find_softmax(const MatchProblem& problem, float* largest, float* exp_sum) {
  for (int64_t query = threadIdx.x; query < problem.queries; query += kThreads) {
    const float* logits = problem.logits + query * problem.classes;
    float most = -INFINITY;
    for (int64_t i = 0; i < problem.classes; ++i) most = fmaxf(most, logits[i]);
    largest[query] = most;
    exp_sum[query] = sum_of_exponentials(logits, problem.classes, most);
  }
}

// A query as the costs of all its pairs read it, in a thread's registers.
struct Query {
  const float* logits;
  float largest, exp_sum;  // for softmax
  Box<float> box;

  __device__ float label_cost(int32_t label, const CostWeights& weights) const {
    if (label == kNone) return NAN;
    const float logit = logits[label];
    if (weights.softmax) return -exp_of_negative(logit - largest) / exp_sum;
    return focal_cost(logit, weights.alpha, weights.gamma);
  }
};

// Fills the cost matrix, in padded rows. True if this thread had to replace a cost. The work is pairs of 32 queries and
// a target, all targets of the same queries in a row; each warp takes an equal stretch of it, so that it seldom loads
// other queries. The cost of a class is half of the work, and annotators go on with a class: of COCO's targets almost
// half have the one before them to copy it from.
inline __device__ bool fill_costs(const MatchProblem& problem, const CostWeights& weights, const Target* targets,
                                  const float* largest, const float* exp_sum, float* costs) {
  const int64_t cols = problem.cols(), padded = padded_columns(cols);
  for (int64_t row = warp(); row < problem.rows(); row += kWarps) {
    const int64_t col = cols + WarpLanes::lane();
    if (col < padded) costs[row * padded + col] = INFINITY;
  }
  const int64_t row_stride = problem.transposed() ? 1 : padded, col_stride = problem.transposed() ? padded : 1;
  const int64_t pairs = padded_columns(problem.queries) / 32 * problem.targets;
  const int64_t share = (pairs + kWarps - 1) / kWarps;
  const int64_t end = share * (warp() + 1) < pairs ? share * (warp() + 1) : pairs;
  bool sanitised = false;
  for (int64_t at = share * warp(); at < end;) {
    const int64_t first = at % problem.targets;
    const int64_t last = first + end - at < problem.targets ? first + end - at : problem.targets;
    const int64_t index = at / problem.targets * 32 + WarpLanes::lane();
    at += last - first;
    if (index >= problem.queries) continue;
    const Query query{problem.logits + index * problem.classes, weights.softmax ? largest[index] : 0.0f,
                      weights.softmax ? exp_sum[index] : 1.0f, box_at(problem.boxes, index)};
    int32_t label = kNone;
    float label_cost = NAN;
    for (int64_t target = first; target < last; ++target) {
      const Target wanted = targets[target];
      if (wanted.label != label) {
        label = wanted.label;
        label_cost = query.label_cost(label, weights);
      }
      const float cost = match_cost(label_cost, query.box, wanted.box, weights);
      costs[target * row_stride + index * col_stride] = finite_cost(cost, sanitised);
    }
  }
  return sanitised;
}

template <bool kAllShared>
__global__ void __launch_bounds__(kThreads, 1)
    match_kernel(MatchProblems problems, MatchScratch scratch, char* global, MatchAnswers answers) {
  const int64_t p = blockIdx.x;
  const MatchProblem problem(problems, p);
  Nearest* board = reinterpret_cast<Nearest*>(scratch.template find<kAllShared>(scratch.board, p, global));
  Target* targets = reinterpret_cast<Target*>(scratch.template find<kAllShared>(scratch.targets, p, global));
  float* largest = reinterpret_cast<float*>(scratch.template find<kAllShared>(scratch.softmax, p, global));
  float* exp_sum = largest + problem.queries;
  float* costs = reinterpret_cast<float*>(scratch.template find<kAllShared>(scratch.costs, p, global));
  Carver carver(scratch.template find<kAllShared>(scratch.workspace, p, global));
  Workspace w(carver, problem.rows(), problem.cols());
  load_targets(problem, targets);
  if (problems.weights.softmax) find_softmax(problem, largest, exp_sum);
  __syncthreads();
  const bool sanitised = __syncthreads_or(fill_costs(problem, problems.weights, targets, largest, exp_sum, costs));
  const int64_t padded = padded_columns(problem.cols());
  solve_in_block(PaddedCosts<float>{costs, padded}, problem.rows(), padded, w, board);
  for (int64_t target = threadIdx.x; target < problems.max_targets; target += kThreads) {
    answers.pred_index[p * problems.max_targets + target] = prediction_of(problem, w, target);
  }
  if (threadIdx.x == 0) answers.status[p] = static_cast<int32_t>(sanitised ? Status::kSanitised : Status::kOk);
}

}  // namespace cond_detr
