// The assignment kernels: a block per problem. The block computes the costs, its warps find the cheapest columns of the
// rows, and one warp searches for what is left. No torch here.
#pragma once

#include <cuda_runtime.h>

#include "assignment/dense.h"
#include "assignment/match.h"
#include "assignment/warp_lanes.cuh"
#include "cuda/launch.cuh"
#include "cuda/scratch.cuh"

namespace cond_detr {

inline __device__ int warp() { return threadIdx.x / 32; }

// Each warp finds the cheapest columns of its rows, then the first one does the rest. All threads see the result.
template <class T>
__device__ Status solve_in_block(const PaddedCosts<T>& costs, int64_t rows, int64_t padded, Workspace& w) {
  for (int64_t row = warp(); row < rows; row += kWarps) {
    find_cheapest<WarpLanes>(costs, static_cast<int32_t>(row), padded, w);
  }
  __syncthreads();
  bool feasible = true;
  if (warp() == 0) {
    feasible = solve_from_cheapest<WarpLanes>(costs, static_cast<int32_t>(rows), padded, w) == Status::kOk;
  }
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

struct DenseScratch : Scratch {
  Part workspace, costs;

  DenseScratch(const DenseShape& shape, size_t available)
      : Scratch(available),
        workspace(add(Workspace::bytes(shape.few(), shape.many()))),
        costs(add(shape.cost_bytes())) {}
};

template <bool kAllShared>
__global__ void __launch_bounds__(kThreads, 1)
    linear_sum_assignment_kernel(DenseProblems problems, DenseScratch scratch, char* global, DenseAnswers answers) {
  const int64_t p = blockIdx.x;
  const DenseShape shape = problems.shape;
  double* costs = reinterpret_cast<double*>(scratch.template find<kAllShared>(scratch.costs, p, global));
  Carver carver(scratch.template find<kAllShared>(scratch.workspace, p, global));
  Workspace w(carver, shape.few(), shape.many());
  bool valid = true;
  for (int64_t row = warp(); row < shape.few(); row += kWarps) {
    valid = copy_row(problems.costs + p * shape.rows * shape.cols, shape, problems.maximize, row, costs,
                     WarpLanes::lane(), 32) &&
            valid;
  }
  Status found = Status::kSanitised;
  if (__syncthreads_and(valid)) {
    found = solve_in_block(PaddedCosts<double>{costs, shape.padded()}, shape.few(), shape.padded(), w);
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
  for (int64_t row = warp(); row < rows; row += kWarps) {
    for (int64_t col = WarpLanes::lane(); col < padded; col += 32) {
      float cost = INFINITY;
      if (col < cols) {
        const int64_t target = problem.transposed() ? col : row, query = problem.transposed() ? row : col;
        cost = finite_cost(pair_cost(problem, target, query, problems.weights, largest, exp_sum), sanitised);
      }
      costs[row * padded + col] = cost;
    }
  }
  const bool any_sanitised = __syncthreads_or(sanitised);
  solve_in_block(PaddedCosts<float>{costs, padded}, rows, padded, w);
  for (int64_t target = threadIdx.x; target < problems.max_targets; target += blockDim.x) {
    answers.pred_index[p * problems.max_targets + target] = prediction_of(problem, w, target);
  }
  if (threadIdx.x == 0) answers.status[p] = static_cast<int32_t>(any_sanitised ? Status::kSanitised : Status::kOk);
}

}  // namespace cond_detr
