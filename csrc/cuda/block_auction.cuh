// How a block starts a problem (assignment/solver.h): its warps bid for the rows, a row each, and one of them settles.
#pragma once

#include <cuda_runtime.h>

#include "assignment/solver.h"
#include "assignment/warp_lanes.cuh"
#include "cuda/launch.cuh"
#include "cuda/team.cuh"

namespace cond_detr {

// As cond_detr::find_cheapest, by a warp. Costs are compared in the precision that they have. `valid` becomes false in
// a lane that sees NaN or minus infinity, `feasible` in one that finds no column for the row.
template <class Costs>
__device__ void find_cheapest_in_warp(const Costs& costs, int32_t row, int64_t padded, Workspace& w, bool& valid,
                                      bool& feasible) {
  auto least = costs.at(row, WarpLanes::lane());
  int32_t col = WarpLanes::lane();
  valid = valid && least > -INFINITY;  // NaN compares false with everything
  COND_DETR_UNROLL
  for (int32_t other = col + 32; other < padded; other += 32) {
    const auto cost = costs.at(row, other);
    valid = valid && cost > -INFINITY;
    if (cost < least) least = cost, col = other;
  }
  const Nearest cheapest{ordered_bits(least), static_cast<uint32_t>(col)};
  if (WarpLanes::lane() == cheapest.winner()) {
    feasible = feasible && least < INFINITY;
    w.bidders[row] = row;
    make_first_bid<WarpLanes>(w, row, col, least);
  }
}

// As cond_detr::find_unassigned, by a warp; all lanes see the result.
template <class Costs>
__device__ int32_t find_unassigned_in_warp(const Costs& costs, int32_t row, double price, int64_t padded,
                                           const Workspace& w) {
  // from the row's index on, then before it
  int32_t begin = row, end = static_cast<int32_t>(padded);
  for (int range = 0; range < 2; ++range) {
    int32_t col = begin + WarpLanes::lane();
    while (col < end && (w.rank[col] >= kAssigned || costs.at(row, col) - w.col_dual[col] != price)) col += 32;
    const int32_t first = static_cast<int32_t>(__reduce_min_sync(~0u, static_cast<uint32_t>(col)));
    if (first < end) return first;
    begin = 0, end = row;
  }
  return kNone;
}

// As cond_detr::bid, by a warp.
template <class Costs>
__device__ void bid_in_warp(const Costs& costs, int32_t row, int32_t claim, int64_t padded, Workspace& w) {
  double least = INFINITY, second = INFINITY;
  int32_t col = WarpLanes::lane();
  for (int32_t at = col; at < padded; at += 32) {
    const double price = costs.at(row, at) - w.col_dual[at];
    const bool better = price < least;
    const double larger = better ? least : price;
    second = larger < second ? larger : second;
    if (better) least = price, col = at;
  }
  const int winner = Nearest{ordered_bits(least), static_cast<uint32_t>(col)}.winner();
  const double other = WarpLanes::lane() == winner ? second : least;
  const double raise = value_of(WarpLanes::least(ordered_bits(other))) - least;
  if (__ballot_sync(~0u, WarpLanes::lane() == winner && raise == 0.0)) {
    const double price = __shfl_sync(~0u, least, winner);
    const int32_t unassigned = find_unassigned_in_warp(costs, row, price, padded, w);
    if (unassigned != kNone) col = unassigned;
  }
  if (WarpLanes::lane() == winner) make_bid<WarpLanes>(w, row, col, least, raise, claim);
}

// The warp that calls it settles a round, as cond_detr::settle_round does.
inline __device__ int32_t settle_round_in_warp(int32_t round, int32_t count, int32_t rows, Workspace& w) {
  int32_t left = 0;
  for (int32_t first = 0; first < count; first += 32) {
    const int32_t at = first + WarpLanes::lane();
    int32_t next = kNone;
    if (at < count) next = settle_bid(w, w.bidders[at], claim_of(w.bidders[at], round, rows));
    const uint32_t staying = __ballot_sync(~0u, next != kNone);
    __syncwarp();  // no lane still reads what is replaced
    if (next != kNone) w.bidders[left + __popc(staying & ((1u << WarpLanes::lane()) - 1))] = next;
    left += __popc(staying);
  }
  return left;
}

// Settles a round, after a barrier behind its bids. All threads see the result, `w.bidder_count` among it.
inline __device__ void settle_round_in_block(int32_t round, int32_t count, int32_t rows, Workspace& w) {
  if (warp() == 0) {
    const int32_t left = settle_round_in_warp(round, count, rows, w);
    if (WarpLanes::lane() == 0) *w.bidder_count = left;
  }
  __syncthreads();
}

// As cond_detr::start, by all threads of the block, which all see the result.
template <class Costs>
__device__ Status start_in_block(const Costs& costs, int32_t rows, int64_t padded, Workspace& w) {
  for (int64_t col = threadIdx.x; col < padded; col += kThreads) {
    w.col_dual[col] = 0.0;
    w.rank[col] = col;
    w.claim[col] = INT32_MAX;
  }
  __syncthreads();
  bool valid = true, feasible = true;
  for (int32_t row = warp(); row < rows; row += kWarps) find_cheapest_in_warp(costs, row, padded, w, valid, feasible);
  if (!__syncthreads_and(valid)) return Status::kSanitised;
  if (!__syncthreads_and(feasible)) return Status::kInfeasible;
  settle_round_in_block(0, rows, rows, w);
  for (int32_t round = 1; round <= kRounds && *w.bidder_count > 0; ++round) {
    const int32_t count = *w.bidder_count;
    for (int32_t i = warp(); i < count; i += kWarps) {
      bid_in_warp(costs, w.bidders[i], claim_of(w.bidders[i], round, rows), padded, w);
    }
    __syncthreads();
    settle_round_in_block(round, count, rows, w);
  }
  return Status::kOk;
}

}  // namespace cond_detr
