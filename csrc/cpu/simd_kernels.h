// Included by one translation unit per instruction set, which defines COND_DETR_ISA, COND_DETR_LANES (of 64 bits) and
// COND_DETR_KERNELS, the name of its table.
#include <algorithm>

#include "assignment/dense.h"
#include "assignment/match.h"
#include "cpu/simd.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

constexpr int kFloats = 2 * COND_DETR_LANES;  // of a register
static_assert(kColumnPadding % kFloats == 0, "padded rows hold whole registers");

inline Floats load_floats(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store_floats(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// The boxes of a problem's queries coordinate by coordinate, and what a class costs each of them; load_queries fills
// the padding with zeros.
struct Queries {
  int64_t padded;
  float* coordinates;  // (4, padded)
  float* label_cost;   // (padded)
  float* largest;      // (padded) logit, for softmax
  float* exp_sum;      // (padded) of logits minus the largest

  template <class Memory>
  Queries(Memory& memory, int64_t queries)
      : padded(padded_columns(queries)),
        coordinates(memory.template take<float>(4 * padded)),
        label_cost(memory.template take<float>(padded)),
        largest(memory.template take<float>(padded)),
        exp_sum(memory.template take<float>(padded)) {}

  Box<Floats> box(int64_t first) const {
    return {load_floats(coordinates + first), load_floats(coordinates + padded + first),
            load_floats(coordinates + 2 * padded + first), load_floats(coordinates + 3 * padded + first)};
  }
};

inline void load_queries(const MatchProblem& problem, bool softmax, Queries& queries) {
  std::fill_n(queries.coordinates, 4 * queries.padded, 0.0f);
  for (float* array : {queries.label_cost, queries.largest, queries.exp_sum}) std::fill_n(array, queries.padded, 0.0f);
  for (int64_t query = 0; query < problem.queries; ++query) {
    for (int i = 0; i < 4; ++i) queries.coordinates[i * queries.padded + query] = problem.boxes[query * 4 + i];
    if (!softmax || problem.classes == 0) continue;
    const float* logits = problem.logits + query * problem.classes;
    queries.largest[query] = *std::max_element(logits, logits + problem.classes);
    queries.exp_sum[query] = sum_of_exponentials(logits, problem.classes, queries.largest[query]);
  }
}

inline void find_label_costs(const MatchProblem& problem, int64_t label, const CostWeights& weights, Queries& queries) {
  for (int64_t query = 0; query < problem.queries; ++query) {
    queries.label_cost[query] = problem.logits[query * problem.classes + label];
  }
  for (int64_t first = 0; first < queries.padded; first += kFloats) {
    const Floats logit = load_floats(queries.label_cost + first);
    if (weights.softmax) {
      const Floats below = logit - load_floats(queries.largest + first);
      store_floats(queries.label_cost + first, -exp_of_negative(below) / load_floats(queries.exp_sum + first));
    } else {
      store_floats(queries.label_cost + first, focal_cost(logit, weights.alpha, weights.gamma));
    }
  }
}

// One target against all queries, into `costs`, of which the queries' padding is left unspecified.
inline void find_costs(const MatchProblem& problem, int64_t target, const CostWeights& weights, const Queries& queries,
                       float* costs) {
  const float* box = problem.target_boxes + target * 4;
  const Box<float> target_box{box[0], box[1], box[2], box[3]};
  for (int64_t first = 0; first < queries.padded; first += kFloats) {
    const Floats label_cost = load_floats(queries.label_cost + first);
    store_floats(costs + first, match_cost(label_cost, queries.box(first), target_box, weights));
  }
}

// The problem's cost matrix in padded rows. True if a cost had to be replaced.
inline bool fill_costs(const MatchProblem& problem, const CostWeights& weights, Queries& queries, float* target_costs,
                       float* costs) {
  const int64_t padded = padded_columns(problem.cols());
  std::fill(costs, costs + problem.rows() * padded, INFINITY);
  load_queries(problem, weights.softmax, queries);
  bool sanitised = false;
  int64_t label = -1;
  for (int64_t target = 0; target < problem.targets; ++target) {
    if (!problem.known(target)) {
      std::fill(target_costs, target_costs + problem.queries, NAN);
    } else {
      if (problem.labels[target] != label) find_label_costs(problem, label = problem.labels[target], weights, queries);
      find_costs(problem, target, weights, queries, target_costs);
    }
    const int64_t row_stride = problem.transposed() ? 1 : padded, col_stride = problem.transposed() ? padded : 1;
    for (int64_t query = 0; query < problem.queries; ++query) {
      costs[target * row_stride + query * col_stride] = finite_cost(target_costs[query], sanitised);
    }
  }
  return sanitised;
}

// Scratch memory of a matching problem with so many rows and columns, or fewer.
struct MatchMemory {
  Queries queries;
  float* target_costs;  // of one target: a number for each query, padding included
  float* costs;
  Workspace workspace;

  template <class Memory>
  MatchMemory(Memory& memory, int64_t num_queries, int64_t rows, int64_t cols)
      : queries(memory, num_queries),
        target_costs(memory.template take<float>(queries.padded)),
        costs(memory.template take<float>(rows * padded_columns(cols))),
        workspace(memory, rows, cols) {}
};

inline size_t match_bytes(const MatchProblems& problems) {
  Counter counter;
  MatchMemory(counter, problems.queries, most_rows(problems), most_cols(problems));
  return counter.bytes;
}

inline Status match(const MatchProblems& problems, int64_t index, void* buffer, int64_t* pred_index) {
  const MatchProblem problem(problems, index);
  Carver carver(buffer);
  MatchMemory memory(carver, problem.queries, problem.rows(), problem.cols());
  const bool sanitised = fill_costs(problem, problems.weights, memory.queries, memory.target_costs, memory.costs);
  const int64_t padded = padded_columns(problem.cols());
  solve<SimdLanes>(PaddedCosts<float>{memory.costs, padded}, static_cast<int32_t>(problem.rows()), padded,
                   memory.workspace);
  for (int64_t target = 0; target < problems.max_targets; ++target) {
    pred_index[target] = prediction_of(problem, memory.workspace, target);
  }
  return sanitised ? Status::kSanitised : Status::kOk;
}

inline size_t dense_bytes(int64_t rows, int64_t cols) {
  Counter counter;
  DenseMemory(counter, DenseShape{rows, cols});
  return counter.bytes;
}

inline Status solve_dense(const double* costs, int64_t rows, int64_t cols, bool maximize, void* buffer,
                          int64_t* row_index, int64_t* col_index) {
  return solve_dense<SimdLanes>(costs, DenseShape{rows, cols}, maximize, buffer, row_index, col_index);
}

}  // namespace COND_DETR_ISA

#define COND_DETR_STRING_OF(x) #x
#define COND_DETR_STRING(x) COND_DETR_STRING_OF(x)
const SimdKernels COND_DETR_KERNELS{COND_DETR_STRING(COND_DETR_ISA), dense_bytes, solve_dense, match_bytes, match};

}  // namespace cond_detr
