// The solver for AVX-512.
#ifdef __x86_64__

// before the pragma, so that what others include too is compiled for the CPUs that they run on
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,avx512f,avx512dq,avx512vl")
#define COND_DETR_ISA avx512
#define COND_DETR_LANES 8
#define COND_DETR_KERNELS kAvx512Kernels
#include "cpu/simd_kernels.h"

#endif
