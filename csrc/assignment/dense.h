// Assignment of a dense matrix with SciPy's conventions: any shape, rows returned in ascending order.
#pragma once

#include "assignment/solver.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

// A matrix as the solver wants it: at least as many columns as rows, so transposed if need be.
struct DenseShape {
  int64_t rows, cols;

  COND_DETR_HD bool transposed() const { return rows > cols; }
  COND_DETR_HD int64_t few() const { return transposed() ? cols : rows; }
  COND_DETR_HD int64_t many() const { return transposed() ? rows : cols; }
  COND_DETR_HD int64_t padded() const { return padded_columns(many()); }
  // For a copy of the costs as the solver reads them.
  COND_DETR_HD size_t cost_bytes() const { return sizeof(double) * few() * padded(); }
};

// A row-major matrix with at least as many columns as rows, read in place, negated to maximise.
struct MatrixCosts {
  const double* data;
  int64_t cols;
  double sign;

  template <class L>
  COND_DETR_DEVICE auto load(int64_t row, int64_t first) const {
    const double* from = data + row * cols + first;
    if (first + L::kWidth <= cols) return L::all(sign) * L::load(from);
    double part[L::kWidth];
    for (int i = 0; i < L::kWidth; ++i) part[i] = first + i < cols ? sign * from[i] : INFINITY;
    return L::load(part);
  }

  COND_DETR_HD double at(int64_t row, int64_t col) const {
    return col < cols ? sign * data[row * cols + col] : INFINITY;
  }
};

// Copies `row` of what the solver reads, padded, negated to maximise: columns first, first + step, ... of it.
COND_DETR_HD inline void copy_row(const double* data, const DenseShape& shape, bool maximize, int64_t row,
                                  double* costs, int64_t first, int64_t step) {
  const int64_t row_stride = shape.transposed() ? 1 : shape.cols, col_stride = shape.transposed() ? shape.cols : 1;
  const double sign = maximize ? -1.0 : 1.0;
  for (int64_t col = first; col < shape.padded(); col += step) {
    const bool is_column = col < shape.many();
    costs[row * shape.padded() + col] = is_column ? sign * data[row * row_stride + col * col_stride] : INFINITY;
  }
}

// Writes min(rows, cols) pairs, from the workspace of a solved problem: pairs first, first + step, ... of them. Those
// of a solved transposed problem cannot be shared out; the caller with first = 0 writes all. Problems without a
// solution get pairs (i, i).
COND_DETR_HD inline void write_pairs(const DenseShape& shape, const Workspace& w, Status status, int64_t* row_index,
                                     int64_t* col_index, int64_t first, int64_t step) {
  if (status != Status::kOk || !shape.transposed()) {
    for (int64_t i = first; i < shape.few(); i += step) {
      row_index[i] = i;
      col_index[i] = status == Status::kOk ? w.col_of_row[i] : i;
    }
    return;
  }
  if (first > 0) return;
  int64_t pair = 0;
  for (int64_t row = 0; row < shape.many(); ++row) {
    if (w.rank[row] < kAssigned) continue;
    row_index[pair] = row;
    col_index[pair++] = w.row_of_col[row];
  }
}

// Scratch memory of a dense problem. Only a matrix with more rows than columns is copied, to transpose it.
struct DenseMemory {
  Workspace workspace;
  double* costs;

  template <class Memory>
  DenseMemory(Memory& memory, const DenseShape& shape)
      : workspace(memory, shape.few(), shape.many()),
        costs(memory.template take<double>(shape.transposed() ? shape.few() * shape.padded() : 0)) {}
};

template <class L>
Status solve_dense(const double* data, const DenseShape& shape, bool maximize, void* buffer, int64_t* row_index,
                   int64_t* col_index) {
  Carver carver(buffer);
  DenseMemory memory(carver, shape);
  Workspace& w = memory.workspace;
  const int32_t rows = static_cast<int32_t>(shape.few());
  Status status;
  if (shape.transposed()) {
    for (int64_t row = 0; row < shape.few(); ++row) copy_row(data, shape, maximize, row, memory.costs, 0, 1);
    status = solve<L>(PaddedCosts<double>{memory.costs, shape.padded()}, rows, shape.padded(), w);
  } else {
    status = solve<L>(MatrixCosts{data, shape.cols, maximize ? -1.0 : 1.0}, rows, shape.padded(), w);
  }
  write_pairs(shape, w, status, row_index, col_index, 0, 1);
  return status;
}

}  // namespace COND_DETR_ISA
}  // namespace cond_detr
