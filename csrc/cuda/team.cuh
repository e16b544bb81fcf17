// A team: the first warps of a block, which search together.
#pragma once

#include "assignment/warp_lanes.cuh"
#include "cuda/launch.cuh"

namespace cond_detr {

// A column's distance, or its cost, and its rank; ordered by the former, then by the latter.
struct Nearest {
  uint64_t bits = UINT64_MAX;  // ordered_bits of the distance
  uint32_t rank = UINT32_MAX;

  __device__ void see(const Nearest& other) {
    const bool better = other.bits < bits || (other.bits == bits && other.rank < rank);
    bits = better ? other.bits : bits;
    rank = better ? other.rank : rank;
  }

  // The lane of the warp that has the least. Ties of the upper halves are rare, so that one comparison mostly does.
  __device__ int winner() const {
    const uint32_t upper = static_cast<uint32_t>(bits >> 32), lower = static_cast<uint32_t>(bits);
    uint32_t tied = __ballot_sync(~0u, upper == __reduce_min_sync(~0u, upper));
    if (tied & (tied - 1)) {
      const bool first = tied >> WarpLanes::lane() & 1;
      const uint32_t least = __reduce_min_sync(~0u, first ? lower : UINT32_MAX);
      const bool second = first && lower == least;
      const uint32_t least_rank = __reduce_min_sync(~0u, second ? rank : UINT32_MAX);
      tied = __ballot_sync(~0u, second && rank == least_rank);
    }
    return __ffs(tied) - 1;
  }
};

// What one thread wrote before a meeting, another of the team may read after it.
class Team {
  static_assert(kWarps <= 32, "a lane compares what a warp brings");

 public:
  // Of a board, two sheets by turns: a warp may be at the next one before another has read this one, but never at the
  // one after that.
  static COND_DETR_HD size_t board_bytes() { return 2 * kWarps * sizeof(Nearest); }

  __device__ Team(int warps, Nearest* board) : warps_(warps), board_(board) {}

  __device__ int threads() const { return 32 * warps_; }

  __device__ void meet() const { __barrier_sync_count(kBarrier, threads()); }

  // The nearest of what all threads bring. A meeting.
  __device__ Nearest least(const Nearest& own) {
    Nearest* const sheet = board_ + turn_ * warps_;
    turn_ ^= 1;
    if (WarpLanes::lane() == own.winner()) sheet[warp()] = own;
    meet();
    const Nearest of_warp = WarpLanes::lane() < warps_ ? sheet[WarpLanes::lane()] : Nearest{};
    return sheet[of_warp.winner()];
  }

 private:
  static constexpr unsigned kBarrier = 1;  // __syncthreads has 0

  int warps_;
  Nearest* board_;
  int turn_ = 0;
};

}  // namespace cond_detr
