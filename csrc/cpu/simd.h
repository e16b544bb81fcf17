// The solver for each instruction set, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "assignment/types.h"

namespace cond_detr {

// What a translation unit that is compiled for one instruction set offers.
struct SimdKernels {
  const char* name;

  size_t (*dense_bytes)(int64_t rows, int64_t cols);
  // One problem: (rows, cols) costs in, min(rows, cols) pairs out. `buffer` has dense_bytes.
  Status (*solve_dense)(const double* costs, int64_t rows, int64_t cols, bool maximize, void* buffer,
                        int64_t* row_index, int64_t* col_index);

  size_t (*match_bytes)(const MatchProblems& problems);
  // One problem of the batch: max_targets prediction indices out. `buffer` has match_bytes.
  Status (*match)(const MatchProblems& problems, int64_t problem, void* buffer, int64_t* pred_index);
};

extern const SimdKernels kBaselineKernels;  // 128 bits, which every x86-64 and ARM CPU has
#ifdef __x86_64__
extern const SimdKernels kAvx2Kernels;
extern const SimdKernels kAvx512Kernels;
#endif

// The widest kernels that this CPU has, or those that the environment variable COND_DETR_SIMD names: baseline, avx2 or
// avx512. One that is unknown, or that the CPU does not have, is ignored.
const SimdKernels& simd_kernels();

}  // namespace cond_detr
