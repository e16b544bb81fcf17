// Lanes: the solver's view of parallel hardware. On a CPU the lanes are those of a SIMD register, by gcc's vector
// extensions; on a GPU they are the threads of a warp (warp_lanes.cuh). The solver is written once over either.
//
// A lanes type L has L::kWidth lanes; Real, Int and Float hold a double, an int64_t or a float per lane (on a GPU: this
// thread's); comparisons give a Mask for L::select. Everything that is not per lane is uniform. L::kChains registers
// are worked on at a time, which do not wait for each other's comparisons.
#pragma once

#include "assignment/portable.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

// A value and a rank, ordered by the former, then by the latter.
struct Ranked {
  double value;
  int64_t rank;
};

#ifdef COND_DETR_LANES
// COND_DETR_LANES is how many lanes of 64 bits a register has.
struct SimdLanes {
  static constexpr int kWidth = COND_DETR_LANES;
  static constexpr int kChains = 4;
  typedef double Real __attribute__((vector_size(8 * COND_DETR_LANES)));
  typedef int64_t Int __attribute__((vector_size(8 * COND_DETR_LANES)));
  typedef float Float __attribute__((vector_size(4 * COND_DETR_LANES)));

  static Real load(const double* from) { return read<Real>(from); }
  static Real load(const float* from) { return __builtin_convertvector(read<Float>(from), Real); }
  static Int load(const int64_t* from) { return read<Int>(from); }
  static void store(double* to, Real value) { std::memcpy(to, &value, sizeof value); }
  static void store(int64_t* to, Int value) { std::memcpy(to, &value, sizeof value); }

  static Real all(double value) { return value - Real{}; }
  static Int all(int64_t value) { return value - Int{}; }
  static Int lane_index() {
    Int index;
    for (int i = 0; i < kWidth; ++i) index[i] = i;
    return index;
  }

  template <class V>
  static V select(Int mask, V yes, V no) {
    return mask ? yes : no;
  }

  static bool all_of(Int mask) {
    bool all = true;
    for (int i = 0; i < kWidth; ++i) all = all && mask[i];
    return all;
  }

  // The least of all lanes.
  static Ranked least(Real value, Int rank) {
    // without branches, which would be mispredicted half of the time
    for (int distance = kWidth / 2; distance > 0; distance /= 2) {
      const Int other = lane_index() ^ distance;
      const Real other_value = __builtin_shuffle(value, other);
      const Int other_rank = __builtin_shuffle(rank, other);
      const Int better = (other_value < value) | ((other_value == value) & (other_rank < rank));
      value = select(better, other_value, value);
      rank = select(better, other_rank, rank);
    }
    return {value[0], rank[0]};
  }

  // Writes that the whole team does once, and that the lanes see afterwards.
  template <class Writes>
  static void once(Writes writes) {
    writes();
  }

  // The least of what teams store there at the same time, where there are several.
  static void lower(int32_t* to, int32_t value) { *to = value < *to ? value : *to; }

 private:
  template <class V, class T>
  static V read(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
};
#endif

}  // namespace COND_DETR_ISA
}  // namespace cond_detr
