// Assignment ops on CUDA: a block per problem, one launch, no synchronisation. The block computes the costs, its warps
// find the cheapest columns of the rows, and one warp searches for what is left.
#include "checks.h"

// Only torch builds with CUDA define these. Weak, so that the module also loads beside a CPU torch, where no CUDA
// tensor can ever reach the code that calls them.
extern "C" {
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg
}

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "assignment/dense.h"
#include "assignment/match.h"
#include "assignment/warp_lanes.cuh"

namespace cond_detr {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Memory of one problem each: in shared memory the parts that fit, in one allocation in global memory the others.
struct Scratch {
  size_t shared_bytes = 0;
  size_t global_bytes = 0;
  size_t available;

  explicit Scratch(int device) {
    int bytes = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    available = bytes - 1024;  // what the kernels declare themselves
  }

  // Where a part of that size goes: its offset, and whether that is in shared memory.
  struct Part {
    size_t offset;
    bool shared;
  };
  Part add(size_t bytes) {
    bytes = (bytes + 15) / 16 * 16;
    const bool fits = shared_bytes + bytes <= available;
    size_t& used = fits ? shared_bytes : global_bytes;
    const Part part{used, fits};
    used += bytes;
    return part;
  }
};

using Part = Scratch::Part;

struct Memory {
  char* shared;
  char* global;  // of this problem

  __device__ char* at(Part part) const { return (part.shared ? shared : global) + part.offset; }
};

extern __shared__ __align__(16) char shared_memory[];

__device__ Memory memory_of(int64_t problem, char* global, size_t global_bytes) {
  return {shared_memory, global + problem * global_bytes};
}

__device__ int warp() { return threadIdx.x / 32; }

// Each warp finds the cheapest columns of its rows, then the first one does the rest. All threads see the result.
template <class T>
__device__ Status solve_in_block(const PaddedCosts<T>& costs, int64_t rows, int64_t padded, Workspace& w) {
  __shared__ Status status;
  for (int64_t row = warp(); row < rows; row += kWarps) {
    find_cheapest<WarpLanes>(costs, static_cast<int32_t>(row), padded, w);
  }
  __syncthreads();
  if (warp() == 0) {
    const Status found = solve_from_cheapest<WarpLanes>(costs, static_cast<int32_t>(rows), padded, w);
    if (threadIdx.x == 0) status = found;
  }
  __syncthreads();
  return status;
}

__global__ void __launch_bounds__(kThreads, 1)
    linear_sum_assignment_kernel(const double* data, DenseShape shape, bool maximize, Part cost_part,
                                 Part workspace_part, char* global, size_t global_bytes, int64_t* row_index,
                                 int64_t* col_index, int32_t* status) {
  const int64_t p = blockIdx.x;
  const Memory memory = memory_of(p, global, global_bytes);
  double* costs = reinterpret_cast<double*>(memory.at(cost_part));
  Workspace w(memory.at(workspace_part), shape.few(), shape.many());
  bool valid = true;
  for (int64_t row = warp(); row < shape.few(); row += kWarps) {
    valid = copy_row(data + p * shape.rows * shape.cols, shape, maximize, row, costs, WarpLanes::lane(), 32) && valid;
  }
  Status found = Status::kSanitised;
  if (__syncthreads_and(valid)) {
    found = solve_in_block(PaddedCosts<double>{costs, shape.padded()}, shape.few(), shape.padded(), w);
  }
  if (threadIdx.x == 0) {
    write_pairs(shape, w, found, row_index + p * shape.few(), col_index + p * shape.few());
    status[p] = static_cast<int32_t>(found);
  }
}

// Of each query, the largest logit and the sum of exp(logit - largest).
__device__ void find_softmax(const MatchProblem& problem, float* largest, float* exp_sum) {
  for (int64_t query = threadIdx.x; query < problem.queries; query += blockDim.x) {
    const float* logits = problem.logits + query * problem.classes;
    float most = -INFINITY;
    for (int64_t i = 0; i < problem.classes; ++i) most = fmaxf(most, logits[i]);
    largest[query] = most;
    exp_sum[query] = sum_of_exponentials(logits, problem.classes, most);
  }
  __syncthreads();
}

__device__ float pair_cost(const MatchProblem& problem, int64_t target, int64_t query, const CostWeights& weights,
                           const float* largest, const float* exp_sum) {
  if (!problem.known(target)) return NAN;
  const float logit = problem.logits[query * problem.classes + problem.labels[target]];
  const float label_cost = weights.softmax ? -exp_of_negative(logit - largest[query]) / exp_sum[query]
                                           : focal_cost(logit, weights.alpha, weights.gamma);
  const float* box = problem.boxes + query * 4;
  const float* target_box = problem.target_boxes + target * 4;
  return match_cost(label_cost, Box<float>{box[0], box[1], box[2], box[3]},
                    Box<float>{target_box[0], target_box[1], target_box[2], target_box[3]}, weights);
}

__global__ void __launch_bounds__(kThreads, 1)
    match_kernel(MatchProblems problems, Part softmax_part, Part workspace_part, Part cost_part, char* global,
                 size_t global_bytes, int64_t* pred_index, int32_t* status) {
  const int64_t p = blockIdx.x;
  const Memory memory = memory_of(p, global, global_bytes);
  const MatchProblem problem(problems, p);
  const int64_t rows = problem.rows(), cols = problem.cols(), padded = padded_columns(cols);
  float* costs = reinterpret_cast<float*>(memory.at(cost_part));
  float* largest = reinterpret_cast<float*>(memory.at(softmax_part));
  float* exp_sum = largest + problem.queries;
  Workspace w(memory.at(workspace_part), rows, cols);
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
    pred_index[p * problems.max_targets + target] = prediction_of(problem, w, target);
  }
  if (threadIdx.x == 0) status[p] = static_cast<int32_t>(any_sanitised ? Status::kSanitised : Status::kOk);
}

template <class Kernel>
void allow_shared_memory(Kernel kernel, const Scratch& scratch) {
  STD_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(scratch.available)));
}

Tensor allocate(const Tensor& like, int64_t problems, const Scratch& scratch) {
  return torch::stable::new_empty(like, {problems * static_cast<int64_t>(scratch.global_bytes)}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor, Tensor> linear_sum_assignment_cuda(const Tensor& cost, bool maximize) {
  check_dense(cost, "cost", 3, ScalarType::Double);
  const torch::stable::accelerator::DeviceGuard guard(cost.get_device_index());
  AssignmentOutput out(cost);
  const int64_t count = cost.size(0);
  if (count == 0) return {out.row_index, out.col_index, out.status};
  const DenseShape shape{cost.size(1), cost.size(2)};
  Scratch scratch(cost.get_device_index());
  const Part workspace = scratch.add(Workspace::bytes(shape.few(), shape.many()));
  const Part costs = scratch.add(shape.cost_bytes());
  const Tensor global = allocate(cost, count, scratch);
  allow_shared_memory(linear_sum_assignment_kernel, scratch);
  linear_sum_assignment_kernel<<<count, kThreads, scratch.shared_bytes, current_stream(cost)>>>(
      static_cast<const double*>(cost.const_data_ptr()), shape, maximize, costs, workspace,
      static_cast<char*>(global.mutable_data_ptr()), scratch.global_bytes,
      static_cast<int64_t*>(out.row_index.mutable_data_ptr()), static_cast<int64_t*>(out.col_index.mutable_data_ptr()),
      static_cast<int32_t*>(out.status.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {out.row_index, out.col_index, out.status};
}

std::tuple<Tensor, Tensor> match_cuda(const Tensor& logits, const Tensor& boxes, const Tensor& target_labels,
                                      const Tensor& target_boxes, const Tensor& target_count, double label_weight,
                                      double l1_weight, double giou_weight, double alpha, double gamma, bool softmax) {
  const MatchProblems problems =
      match_problems(logits, boxes, target_labels, target_boxes, target_count,
                     cost_weights(label_weight, l1_weight, giou_weight, alpha, gamma, softmax));
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  MatchOutput out(logits, target_labels);
  const int64_t count = logits.size(0) * problems.batch;
  if (count == 0) return {out.pred_index, out.status};
  Scratch scratch(logits.get_device_index());
  const Part workspace = scratch.add(Workspace::bytes(most_rows(problems), most_cols(problems)));
  const Part largest = scratch.add(softmax ? 2 * sizeof(float) * problems.queries : 0);
  const Part costs = scratch.add(match_cost_bytes(problems));
  const Tensor global = allocate(logits, count, scratch);
  allow_shared_memory(match_kernel, scratch);
  match_kernel<<<count, kThreads, scratch.shared_bytes, current_stream(logits)>>>(
      problems, largest, workspace, costs, static_cast<char*>(global.mutable_data_ptr()), scratch.global_bytes,
      static_cast<int64_t*>(out.pred_index.mutable_data_ptr()), static_cast<int32_t*>(out.status.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {out.pred_index, out.status};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cond_detr, CUDA, m) {
  m.impl("linear_sum_assignment", TORCH_BOX(&linear_sum_assignment_cuda));
  m.impl("match", TORCH_BOX(&match_cuda));
}

}  // namespace cond_detr
