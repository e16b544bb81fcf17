// What lets the same header compile for the host, once per instruction set, and for a GPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define COND_DETR_HD __host__ __device__
#define COND_DETR_DEVICE __device__
#define COND_DETR_UNROLL _Pragma("unroll")
#else
#define COND_DETR_HD      // host and device
#define COND_DETR_DEVICE  // the device where there is one: code over lanes
#define COND_DETR_UNROLL _Pragma("GCC unroll 8")
#endif

// A translation unit that is compiled for an instruction set of its own names it, so that the linker never takes its
// inline functions for another's.
#ifndef COND_DETR_ISA
#define COND_DETR_ISA baseline
#endif
