// The search of assignment/solver.h by several warps of a block, which have the columns in registers.
//
// It does the same arithmetic on each column and orders ties the same way, so it finds the same assignment. A search is
// a chain of steps that wait for each other, so what counts is how long one takes: with a column in each thread, that
// is one relaxation, a comparison within warps and one between them.
#pragma once

#include "assignment/solver.h"
#include "cuda/team.cuh"

namespace cond_detr {

// kGroups columns for each thread of a team: the thread's own number and each one that is a multiple of the team's
// threads further on.
template <int kGroups>
class RegisterColumns {
  static_assert(kGroups <= 32, "a bit for each group");

 public:
  __device__ RegisterColumns(const Workspace& w, int64_t padded, Team& team) : team_(team), padded_(padded) {
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      dual_[group] = exists(group) ? w.col_dual[column(group)] : 0.0;
      predecessor_[group] = kNone;
      if (exists(group) && w.rank[column(group)] >= kAssigned) assigned_ |= 1u << group;
    }
  }

  // As the three steps of cond_detr::assign_others. False if there is no column for the row.
  template <class Costs>
  __device__ bool assign(const Costs& costs, int32_t start, Workspace& w) {
    double length = 0.0;
    const int32_t end = shortest_path(costs, start, w, length);
    if (end == kNone) return false;
    update_duals(start, length, w);
    augment(start, end, w);
    return true;
  }

 private:
  // As a rank: the column, and in front of it whether it is assigned, so that others win ties
  static constexpr int kAssignedAt = 31;
  static constexpr uint32_t kAssignedBit = 1u << kAssignedAt;

  __device__ int64_t first_of_warp(int group) const { return group * team_.threads() + warp() * 32; }
  __device__ int32_t column(int group) const { return group * team_.threads() + static_cast<int32_t>(threadIdx.x); }
  __device__ bool exists(int group) const { return kGroups == 1 || column(group) < padded_; }

  // As cond_detr::shortest_path. Columns on the way, and the last one, leave their predecessors for augment.
  // `w.row_dual` of the first row may be read at once: only the row's own search changes it.
  template <class Costs>
  __device__ int32_t shortest_path(const Costs& costs, int32_t start, Workspace& w, double& length) {
    settled_ = 0;
    detour_ = false;
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) distance_[group] = INFINITY;
    for (int32_t row = start;;) {
      const Nearest nearest = team_.least(relax(costs, length - w.row_dual[row], row));
      if (nearest.bits >= ordered_bits(INFINITY)) return kNone;
      length = value_of(nearest.bits);
      const int32_t col = nearest.rank & ~kAssignedBit;
      const bool assigned = nearest.rank & kAssignedBit;
      has_end_ = false;
      COND_DETR_UNROLL
      for (int group = 0; group < kGroups; ++group) {
        if (col != column(group)) continue;
        has_end_ = true;
        w.predecessor[col] = predecessor_[group];
        (assigned ? settled_ : assigned_) |= 1u << group;
      }
      if (!assigned) return col;
      detour_ = true;
      row = w.row_of_col[col];
    }
  }

  // As cond_detr::relax, of this thread's columns.
  template <class Costs>
  __device__ Nearest relax(const Costs& costs, double base, int32_t row) {
    Nearest nearest;
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      const bool settled = settled_ >> group & 1;
      const double cost = exists(group) ? costs.template load<WarpLanes>(row, first_of_warp(group)) : INFINITY;
      const double through = base + cost - dual_[group];
      const bool nearer = !settled && through < distance_[group];
      distance_[group] = nearer ? through : distance_[group];
      predecessor_[group] = nearer ? row : predecessor_[group];
      const uint32_t rank = column(group) | (assigned_ >> group & 1) << kAssignedAt;
      nearest.see({settled ? UINT64_MAX : ordered_bits(distance_[group]), rank});
    }
    return nearest;
  }

  // As cond_detr::update_duals; a settled column has kept its dual and its distance. All have read the duals of rows
  // before the last meeting, and will not do so again before the next one.
  __device__ void update_duals(int32_t start, double length, Workspace& w) {
    if (threadIdx.x == 0) w.row_dual[start] += length;
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      if (!(settled_ >> group & 1)) continue;
      const double slack = length - distance_[group];
      dual_[group] -= slack;
      w.row_dual[w.row_of_col[column(group)]] += slack;
    }
  }

  // As cond_detr::augment. Of what it writes, the next search reads nothing before its first meeting.
  __device__ void augment(int32_t start, int32_t end, Workspace& w) {
    // all predecessors are written, and all rows of columns read
    if (detour_) team_.meet();
    // the thread that knows the last predecessor, without a meeting
    if (has_end_) cond_detr::augment_path(start, end, w);
  }

  Team& team_;
  int64_t padded_;
  double dual_[kGroups], distance_[kGroups];
  int32_t predecessor_[kGroups];
  uint32_t assigned_ = 0, settled_ = 0;  // a bit for each group
  bool detour_ = false;                  // whether the path goes through assigned columns
  bool has_end_ = false;                 // whether its last column is this thread's
};

// As cond_detr::assign_others, for at most kGroups columns a thread of the team.
template <int kGroups, class Costs>
__device__ bool assign_others_in_registers(const Costs& costs, int32_t rows, int64_t padded, Workspace& w, Team& team) {
  RegisterColumns<kGroups> columns(w, padded, team);
  for (int32_t first = 0; first < rows; first += 32) {
    if (first > 0) team.meet();  // the last path may have turned these rows around
    const int32_t own = first + WarpLanes::lane();
    // those with a column keep one, so that the vote holds while the others get theirs
    for (uint32_t left = __ballot_sync(~0u, own < rows && w.col_of_row[own] == kNone); left; left &= left - 1) {
      if (!columns.assign(costs, first + __ffs(left) - 1, w)) return false;
    }
  }
  return true;
}

}  // namespace cond_detr
