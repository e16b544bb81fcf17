// The solver for the instructions that every CPU of the architecture has.
#define COND_DETR_ISA baseline
#define COND_DETR_LANES 2
#define COND_DETR_KERNELS kBaselineKernels
#include "cpu/simd_kernels.h"
