#include "on_cpu.h"

#include "cpu/simd.h"

using cond_detr::simd_kernels;

DenseAnswer solve_on_cpu(const DenseBatch& batch) {
  const int64_t pairs = batch.pairs(), size = batch.rows * batch.cols;
  DenseAnswer out{std::vector<int32_t>(batch.count), std::vector<int64_t>(batch.count * pairs),
                  std::vector<int64_t>(batch.count * pairs)};
  std::vector<char> buffer(simd_kernels().dense_bytes(batch.rows, batch.cols));
  for (int64_t p = 0; p < batch.count; ++p) {
    out.status[p] = static_cast<int32_t>(
        simd_kernels().solve_dense(batch.costs.data() + p * size, batch.rows, batch.cols, batch.maximize, buffer.data(),
                                   out.row_index.data() + p * pairs, out.col_index.data() + p * pairs));
  }
  return out;
}

MatchAnswer match_on_cpu(const MatchBatch& batch) {
  const cond_detr::MatchProblems problems = batch.problems();
  MatchAnswer out{std::vector<int32_t>(batch.count()), std::vector<int64_t>(batch.count() * batch.max_targets)};
  std::vector<char> buffer(simd_kernels().match_bytes(problems));
  for (int64_t p = 0; p < batch.count(); ++p) {
    out.status[p] = static_cast<int32_t>(
        simd_kernels().match(problems, p, buffer.data(), out.pred_index.data() + p * batch.max_targets));
  }
  return out;
}
