// What lets the same header compile for the host and for a GPU.
#pragma once

#ifdef __CUDACC__
#define COND_DETR_HD __host__ __device__
#else
#define COND_DETR_HD
#endif
