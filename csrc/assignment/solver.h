// Rectangular linear sum assignment by shortest augmenting paths.
//
// D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic
// Systems 52(4), 2016. Every row of a (rows <= cols) cost matrix is assigned to a column of its own so that the total
// cost is least. Potentials are kept in double precision, so the optimum is exact for float costs.
//
// Started warm: the row minima are a feasible dual, and rows whose cheapest columns differ are assigned at once. On the
// costs of a trained detector that leaves almost nothing for the search.
//
// Ties: of columns equally near an unassigned one is taken before an assigned one, then the one of lowest index.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "assignment/portable.h"

namespace cond_detr {

enum class Status : int32_t {
  kOk = 0,
  kSanitised = 1,   // the costs held NaN or infinity where only numbers make sense
  kInfeasible = 2,  // forbidden (+inf) entries leave some row without a column
};

constexpr int32_t kNone = -1;

// Scratch memory of one problem, carved out of a caller's buffer of at least bytes(rows, cols), 8-byte aligned.
struct Workspace {
  double* row_dual;      // (rows)
  double* col_dual;      // (cols)
  double* distance;      // (cols) length of the shortest path to each column
  int32_t* col_of_row;   // (rows) the assignment
  int32_t* row_of_col;   // (cols) the assignment, the other way round
  int32_t* predecessor;  // (cols) row before each column on its shortest path
  uint8_t* visited;      // (cols)

  static COND_DETR_HD size_t bytes(int64_t rows, int64_t cols) {
    const size_t size = sizeof(double) * (rows + 2 * cols) + sizeof(int32_t) * (rows + 2 * cols) + cols;
    return (size + 7) / 8 * 8;
  }

  COND_DETR_HD Workspace(void* buffer, int64_t rows, int64_t cols) {
    row_dual = static_cast<double*>(buffer);
    col_dual = row_dual + rows;
    distance = col_dual + cols;
    col_of_row = reinterpret_cast<int32_t*>(distance + cols);
    row_of_col = col_of_row + rows;
    predecessor = row_of_col + cols;
    visited = reinterpret_cast<uint8_t*>(predecessor + cols);
  }
};

// Row minima as duals; each row takes its cheapest column if that is still free. False if a row is all +inf.
template <class Cost>
COND_DETR_HD bool warm_start(const Cost& cost, int32_t rows, int32_t cols, Workspace& w) {
  for (int32_t col = 0; col < cols; ++col) {
    w.col_dual[col] = 0.0;
    w.row_of_col[col] = kNone;
  }
  for (int32_t row = 0; row < rows; ++row) {
    double least = INFINITY;
    int32_t cheapest = kNone;
    for (int32_t col = 0; col < cols; ++col) {
      const double value = cost(row, col);
      if (value < least) {
        least = value;
        cheapest = col;
      }
    }
    if (cheapest == kNone) return false;
    w.row_dual[row] = least;
    w.col_of_row[row] = kNone;
    if (w.row_of_col[cheapest] == kNone) {
      w.row_of_col[cheapest] = row;
      w.col_of_row[row] = cheapest;
    }
  }
  return true;
}

// Dijkstra over reduced costs from an unassigned row. Returns the free column where the shortest path ends and sets
// its length, or kNone if there is none.
template <class Cost>
COND_DETR_HD int32_t shortest_path(const Cost& cost, int32_t start, int32_t cols, Workspace& w, double& length) {
  for (int32_t col = 0; col < cols; ++col) {
    w.distance[col] = INFINITY;
    w.visited[col] = 0;
  }
  length = 0.0;
  for (int32_t row = start;;) {
    const double base = length - w.row_dual[row];
    double nearest_distance = INFINITY;
    int32_t nearest = kNone;
    for (int32_t col = 0; col < cols; ++col) {
      if (w.visited[col]) continue;
      const double through_row = base + cost(row, col) - w.col_dual[col];
      if (through_row < w.distance[col]) {
        w.distance[col] = through_row;
        w.predecessor[col] = row;
      }
      const double distance = w.distance[col];
      const bool frees = nearest != kNone && w.row_of_col[col] == kNone && w.row_of_col[nearest] != kNone;
      if (distance < nearest_distance || (distance == nearest_distance && frees)) {
        nearest_distance = distance;
        nearest = col;
      }
    }
    if (nearest == kNone) return kNone;
    length = nearest_distance;
    w.visited[nearest] = 1;
    if (w.row_of_col[nearest] == kNone) return nearest;
    row = w.row_of_col[nearest];
  }
}

// Moves the duals so that every edge of the search tree becomes tight and none turns negative.
COND_DETR_HD inline void update_duals(int32_t start, int32_t cols, double length, Workspace& w) {
  w.row_dual[start] += length;
  for (int32_t col = 0; col < cols; ++col) {
    if (!w.visited[col]) continue;
    const double slack = length - w.distance[col];
    w.col_dual[col] -= slack;
    if (w.row_of_col[col] != kNone) w.row_dual[w.row_of_col[col]] += slack;
  }
}

COND_DETR_HD inline void augment(int32_t start, int32_t end, Workspace& w) {
  for (int32_t col = end;;) {
    const int32_t row = w.predecessor[col];
    const int32_t next = w.col_of_row[row];
    w.row_of_col[col] = row;
    w.col_of_row[row] = col;
    if (row == start) return;
    col = next;
  }
}

// Solves one problem with rows <= cols; the answer is workspace.col_of_row. `cost(row, col)` gives a double that is
// not NaN and not -inf; +inf forbids a pair. Where the problem is infeasible, row i is given column i.
template <class Cost>
COND_DETR_HD Status solve(const Cost& cost, int32_t rows, int32_t cols, Workspace& w) {
  bool feasible = warm_start(cost, rows, cols, w);
  for (int32_t row = 0; feasible && row < rows; ++row) {
    if (w.col_of_row[row] != kNone) continue;
    double length;
    const int32_t end = shortest_path(cost, row, cols, w, length);
    feasible = end != kNone;
    if (!feasible) break;
    update_duals(row, cols, length, w);
    augment(row, end, w);
  }
  if (feasible) return Status::kOk;
  for (int32_t row = 0; row < rows; ++row) w.col_of_row[row] = row;
  return Status::kInfeasible;
}

}  // namespace cond_detr
