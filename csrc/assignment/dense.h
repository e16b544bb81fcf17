// Assignment of a dense matrix with SciPy's conventions: any shape, rows returned in ascending order.
#pragma once

#include "assignment/solver.h"

namespace cond_detr {

// A row-major matrix read as rows <= cols, transposed where it has more rows, negated to maximise.
template <class T>
struct DenseCost {
  const T* data;
  int64_t row_stride;
  int64_t col_stride;
  double sign;

  COND_DETR_HD double operator()(int32_t row, int32_t col) const {
    return sign * static_cast<double>(data[row * row_stride + col * col_stride]);
  }
};

template <class T>
COND_DETR_HD bool has_invalid_entry(const T* data, int64_t size, double sign) {
  for (int64_t i = 0; i < size; ++i) {
    const double value = sign * static_cast<double>(data[i]);
    if (!(value > -INFINITY)) return true;  // NaN compares false with everything
  }
  return false;
}

// Writes min(rows, cols) pairs. Invalid or infeasible problems get pairs (i, i) and a status that says so.
template <class T>
COND_DETR_HD Status solve_dense(const T* data, int64_t rows, int64_t cols, bool maximize, void* buffer,
                                int64_t* row_index, int64_t* col_index) {
  const double sign = maximize ? -1.0 : 1.0;
  const bool transposed = rows > cols;
  const int32_t few = static_cast<int32_t>(transposed ? cols : rows);
  const int32_t many = static_cast<int32_t>(transposed ? rows : cols);
  if (has_invalid_entry(data, rows * cols, sign)) {
    for (int32_t i = 0; i < few; ++i) row_index[i] = col_index[i] = i;
    return Status::kSanitised;
  }
  const DenseCost<T> cost{data, transposed ? 1 : cols, transposed ? cols : 1, sign};
  Workspace w(buffer, few, many);
  const Status status = solve(cost, few, many, w);
  if (!transposed || status != Status::kOk) {
    for (int32_t i = 0; i < few; ++i) {
      row_index[i] = i;
      col_index[i] = w.col_of_row[i];
    }
    return status;
  }
  int32_t pair = 0;
  for (int32_t row = 0; row < many; ++row) {
    if (w.row_of_col[row] == kNone) continue;
    row_index[pair] = row;
    col_index[pair++] = w.row_of_col[row];
  }
  return status;
}

}  // namespace cond_detr
