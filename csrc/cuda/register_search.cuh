// The search of assignment/solver.h by a warp that has the columns in registers: every lane has each 32nd of them.
//
// It does the same arithmetic on each column and orders ties the same way, so it finds the same assignment. A step
// costs a warp what its longest chain of instructions takes; with columns in memory, where a store may change what is
// loaded next, that chain goes through all columns of a lane, here through one.
#pragma once

#include "assignment/solver.h"
#include "assignment/warp_lanes.cuh"

namespace cond_detr {

// As kChains, but of what costs registers
constexpr int kSearchChains = 2;

// kGroups columns for each lane: column 32 g + lane is the lane's in group g.
template <int kGroups>
class RegisterColumns {
  static_assert(kGroups <= 32, "a bit for each group");

 public:
  explicit __device__ RegisterColumns(const Workspace& w, int64_t padded) : padded_(padded) {
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      dual_[group] = 0.0;
      if (group * 32 < padded && w.rank[column(group)] >= kAssigned) assigned_ |= 1u << group;
    }
  }

  // As cond_detr::shortest_path.
  template <class Costs>
  __device__ int32_t shortest_path(const Costs& costs, int32_t start, const Workspace& w, double& length) {
    settled_ = 0;
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      distance_[group] = INFINITY;
      predecessor_[group] = kNone;
    }
    length = 0.0;
    for (int32_t row = start;;) {
      const Nearest nearest = relax(costs, length - w.row_dual[row], row);
      if (nearest.bits >= ordered_bits(INFINITY)) return kNone;
      length = value_of(nearest.bits);
      const int32_t col = nearest.rank & ~kAssignedBit;
      if (!(nearest.rank & kAssignedBit)) return col;
      if (col % 32 == WarpLanes::lane()) settled_ |= 1u << (col / 32);
      row = w.row_of_col[col];
    }
  }

  // As cond_detr::update_duals; a settled column has kept its dual and its distance.
  __device__ void update_duals(int32_t start, double length, Workspace& w) {
    if (WarpLanes::lane() == 0) w.row_dual[start] += length;
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      if (!(settled_ >> group & 1)) continue;
      const double slack = length - distance_[group];
      dual_[group] -= slack;
      w.row_dual[w.row_of_col[column(group)]] += slack;
    }
  }

  __device__ void augment(int32_t start, int32_t end, Workspace& w) {
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      if (group * 32 < padded_) w.predecessor[column(group)] = predecessor_[group];
    }
    cond_detr::augment<WarpLanes>(start, end, w);
    if (end % 32 == WarpLanes::lane()) assigned_ |= 1u << (end / 32);
  }

 private:
  // As a rank: the column, and in front of it whether it is assigned, so that others win ties
  static constexpr uint32_t kAssignedBit = 1u << 31;

  // Ordered by distance, then by rank.
  struct Nearest {
    uint64_t bits = UINT64_MAX;  // ordered_bits of the distance
    uint32_t rank = UINT32_MAX;

    __device__ void see(const Nearest& other) {
      const bool better = other.bits < bits || (other.bits == bits && other.rank < rank);
      bits = better ? other.bits : bits;
      rank = better ? other.rank : rank;
    }
  };

  static __device__ int32_t column(int group) { return group * 32 + WarpLanes::lane(); }

  // As cond_detr::relax.
  template <class Costs>
  __device__ Nearest relax(const Costs& costs, double base, int32_t row) {
    Nearest nearest[kSearchChains];
    COND_DETR_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      const bool settled = settled_ >> group & 1;
      const double cost = group * 32 < padded_ ? costs.template load<WarpLanes>(row, group * 32) : INFINITY;
      const double through = base + cost - dual_[group];
      const bool nearer = !settled && through < distance_[group];
      distance_[group] = nearer ? through : distance_[group];
      predecessor_[group] = nearer ? row : predecessor_[group];
      const uint32_t rank = column(group) | (assigned_ >> group & 1) << 31;
      nearest[group % kSearchChains].see({settled ? UINT64_MAX : ordered_bits(distance_[group]), rank});
    }
    COND_DETR_UNROLL
    for (int chain = 1; chain < kSearchChains; ++chain) nearest[0].see(nearest[chain]);
    const uint64_t least = WarpLanes::least(nearest[0].bits);
    return {least, __reduce_min_sync(~0u, nearest[0].bits == least ? nearest[0].rank : UINT32_MAX)};
  }

  int64_t padded_;
  double dual_[kGroups], distance_[kGroups];
  int32_t predecessor_[kGroups];
  uint32_t assigned_ = 0, settled_ = 0;  // a bit for each group
};

// As cond_detr::assign_others, for at most 32 * kGroups columns.
template <int kGroups, class Costs>
__device__ bool assign_others_in_registers(const Costs& costs, int32_t rows, int64_t padded, Workspace& w) {
  RegisterColumns<kGroups> columns(w, padded);
  for (int32_t first = 0; first < rows; first += 32) {
    const int32_t own = first + WarpLanes::lane();
    // those with a column keep one, so that the vote holds while the others get theirs
    for (uint32_t left = __ballot_sync(~0u, own < rows && w.col_of_row[own] == kNone); left; left &= left - 1) {
      const int32_t row = first + __ffs(left) - 1;
      double length;
      const int32_t end = columns.shortest_path(costs, row, w, length);
      if (end == kNone) return false;
      columns.update_duals(row, length, w);
      columns.augment(row, end, w);
    }
  }
  return true;
}

}  // namespace cond_detr
