// The solver for AVX2.
#ifdef __x86_64__

// before the pragma, so that what others include too is compiled for the CPUs that they run on
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2")
#define COND_DETR_ISA avx2
#define COND_DETR_LANES 4
#define COND_DETR_KERNELS kAvx2Kernels
#include "cpu/simd_kernels.h"

#endif
