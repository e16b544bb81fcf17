// The assignment kernels: a block per problem. The block computes the costs, its warps find the cheapest columns of the
// rows, its threads assign what they can, and one warp searches for what is left. No torch here.
#pragma once

#include <cuda_runtime.h>

#include "assignment/dense.h"
#include "assignment/match.h"
#include "assignment/warp_lanes.cuh"
#include "cuda/launch.cuh"
#include "cuda/register_search.cuh"
#include "cuda/scratch.cuh"

namespace cond_detr {

inline __device__ int warp() { return threadIdx.x / 32; }

// Each warp finds the cheapest columns of its rows, and `w.row_of_col` is left with the first of the rows that a column
// is the cheapest of. False if a cost is NaN or minus infinity.

template <class Costs>
__device__ bool claim_cheapest(const Costs& costs, int64_t rows, int64_t padded, Workspace& w) {
  for (int64_t col = threadIdx.x; col < padded; col += blockDim.x) {
    w.col_dual[col] = 0.0;
    w.rank[col] = col;
    w.row_of_col[col] = INT32_MAX;
  }
  __syncthreads();
  bool valid = true;
  for (int64_t at = warp(); at < rows; at += kWarps) {
    const int32_t row = static_cast<int32_t>(at);
    valid = find_cheapest<WarpLanes>(costs, row, padded, w) && valid;
    if (WarpLanes::lane() == 0 && w.row_dual[row] < INFINITY) atomicMin(&w.row_of_col[w.col_of_row[row]], row);
  }
  return __syncthreads_and(valid);
}

// As assign_cheapest, by all threads of the block, given `w.row_of_col` as claim_cheapest leaves it.
inline __device__ bool assign_cheapest_in_block(int64_t rows, Workspace& w) {
  bool feasible = true;
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    feasible = feasible && w.row_dual[row] < INFINITY;
    if (!feasible) break;
    const int32_t col = w.col_of_row[row];
    if (w.row_of_col[col] == row) {
      w.rank[col] = col + kAssigned;
    } else {
      w.col_of_row[row] = kNone;
    }
  }
  return __syncthreads_and(feasible);
}

template <class Costs>
__device__ bool assign_others_in_warp(const Costs& costs, int64_t rows, int64_t padded, Workspace& w) {
  const int32_t count = static_cast<int32_t>(rows);
  if (padded <= 32 * 10) return assign_others_in_registers<10>(costs, count, padded, w);  // 300 queries
  return assign_others<WarpLanes>(costs, count, padded, w);
}

// All threads see the result.
template <class Costs>
__device__ Status solve_in_block(const Costs& costs, int64_t rows, int64_t padded, Workspace& w) {
  if (!claim_cheapest(costs, rows, padded, w)) return Status::kSanitised;
  bool feasible = assign_cheapest_in_block(rows, w);
  if (feasible && warp() == 0) feasible = assign_others_in_warp(costs, rows, padded, w);
  return __syncthreads_and(feasible) ? Status::kOk : Status::kInfeasible;
}

struct DenseProblems {
  const double* costs;  // (P, rows, cols)
  DenseShape shape;
  bool maximize;
};

struct DenseAnswers {
  int64_t* row_index;  // (P, min(rows, cols))
  int64_t* col_index;
  int32_t* status;  // (P)
};

// Costs are copied into shared memory if they fit there beside the workspace, and where they have to be transposed.
struct DenseScratch : Scratch {
  Part workspace, costs;
  bool copied;

  DenseScratch(const DenseShape& shape, size_t available)
      : Scratch(available),
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
    const int64_t col = first + L::lane();
    return col < cols ? sign * data[row * row_stride + col] : INFINITY;
  }
};

template <bool kAllShared>
__global__ void __launch_bounds__(kThreads, 1)
    linear_sum_assignment_kernel(DenseProblems problems, DenseScratch scratch, char* global, DenseAnswers answers) {
  const int64_t p = blockIdx.x;
  const DenseShape shape = problems.shape;
  const double* data = problems.costs + p * shape.rows * shape.cols;
  Carver carver(scratch.template find<kAllShared>(scratch.workspace, p, global));
  Workspace w(carver, shape.few(), shape.many());
  double* copy = reinterpret_cast<double*>(scratch.template find<kAllShared>(scratch.costs, p, global));
  if (kAllShared || scratch.copied) {
    for (int64_t row = warp(); row < shape.few(); row += kWarps) {
      copy_row(data, shape, problems.maximize, row, copy, WarpLanes::lane(), 32);
    }
  }
  __syncthreads();
  Status found;
  if (kAllShared) {
    found = solve_in_block(PaddedCosts<double>{copy, shape.padded()}, shape.few(), shape.padded(), w);
  } else {
    const CostsInPlace costs = scratch.copied
                                   ? CostsInPlace{copy, shape.padded(), shape.many(), 1.0}
                                   : CostsInPlace{data, shape.cols, shape.cols, problems.maximize ? -1.0 : 1.0};
    found = solve_in_block(costs, shape.few(), shape.padded(), w);
  }
  if (threadIdx.x == 0) {
    write_pairs(shape, w, found, answers.row_index + p * shape.few(), answers.col_index + p * shape.few());
    answers.status[p] = static_cast<int32_t>(found);
  }
}

struct MatchAnswers {
  int64_t* pred_index;  // (P, max_targets)
  int32_t* status;      // (P)
};

struct MatchScratch : Scratch {
  Part workspace, softmax, costs;

  MatchScratch(const MatchProblems& all, size_t available)
      : Scratch(available),
        workspace(add(Workspace::bytes(most_rows(all), most_cols(all)))),
        softmax(add(all.weights.softmax ? 2 * sizeof(float) * all.queries : 0)),
        costs(add(match_cost_bytes(all))) {}
};

// Of each query, the largest logit and the sum of exp(logit - largest).
inline __device__ void find_softmax(const MatchProblem& problem, float* largest, float* exp_sum) {
  for (int64_t query = threadIdx.x; query < problem.queries; query += blockDim.x) {
    const float* logits = problem.logits + query * problem.classes;
    float most = -INFINITY;
    for (int64_t i = 0; i < problem.classes; ++i) most = fmaxf(most, logits[i]);
    largest[query] = most;
    exp_sum[query] = sum_of_exponentials(logits, problem.classes, most);
  }
  __syncthreads();
}

inline __device__ float pair_cost(const MatchProblem& problem, int64_t target, int64_t query,
                                  const CostWeights& weights, const float* largest, const float* exp_sum) {
  if (!problem.known(target)) return NAN;
  const float logit = problem.logits[query * problem.classes + problem.labels[target]];
  const float label_cost = weights.softmax ? -exp_of_negative(logit - largest[query]) / exp_sum[query]
                                           : focal_cost(logit, weights.alpha, weights.gamma);
  const float* box = problem.boxes + query * 4;
  const float* target_box = problem.target_boxes + target * 4;
  return match_cost(label_cost, Box<float>{box[0], box[1], box[2], box[3]},
                    Box<float>{target_box[0], target_box[1], target_box[2], target_box[3]}, weights);
}

template <bool kAllShared>
__global__ void __launch_bounds__(kThreads, 1)
    match_kernel(MatchProblems problems, MatchScratch scratch, char* global, MatchAnswers answers) {
  const int64_t p = blockIdx.x;
  const MatchProblem problem(problems, p);
  const int64_t rows = problem.rows(), cols = problem.cols(), padded = padded_columns(cols);
  float* costs = reinterpret_cast<float*>(scratch.template find<kAllShared>(scratch.costs, p, global));
  float* largest = reinterpret_cast<float*>(scratch.template find<kAllShared>(scratch.softmax, p, global));
  float* exp_sum = largest + problem.queries;
  Carver carver(scratch.template find<kAllShared>(scratch.workspace, p, global));
  Workspace w(carver, rows, cols);
  if (problems.weights.softmax) find_softmax(problem, largest, exp_sum);
  bool sanitised = false;
  // a warp takes 32 columns of a row at a time
  int64_t row = 0;
  for (int64_t first = 32 * warp();; first += 32 * kWarps) {
    for (; row < rows && first >= padded; first -= padded) ++row;
    if (row >= rows) break;
    const int64_t col = first + WarpLanes::lane();
    float cost = INFINITY;
    if (col < cols) {
      const int64_t target = problem.transposed() ? col : row, query = problem.transposed() ? row : col;
      cost = finite_cost(pair_cost(problem, target, query, problems.weights, largest, exp_sum), sanitised);
    }
    costs[row * padded + col] = cost;
  }
  const bool any_sanitised = __syncthreads_or(sanitised);
  solve_in_block(PaddedCosts<float>{costs, padded}, rows, padded, w);
  for (int64_t target = threadIdx.x; target < problems.max_targets; target += blockDim.x) {
    answers.pred_index[p * problems.max_targets + target] = prediction_of(problem, w, target);
  }
  if (threadIdx.x == 0) answers.status[p] = static_cast<int32_t>(any_sanitised ? Status::kSanitised : Status::kOk);
}

}  // namespace cond_detr
