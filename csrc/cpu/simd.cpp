#include "cpu/simd.h"

#include <cstdlib>
#include <cstring>

namespace cond_detr {
namespace {

const SimdKernels& choose_kernels() {
  const SimdKernels* widest = &kBaselineKernels;
#ifdef __x86_64__
  const char* wanted = std::getenv("COND_DETR_SIMD");
  if (wanted && !std::strcmp(wanted, kBaselineKernels.name)) return kBaselineKernels;
  if (__builtin_cpu_supports("avx2")) widest = &kAvx2Kernels;
  if (wanted && !std::strcmp(wanted, kAvx2Kernels.name)) return *widest;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    widest = &kAvx512Kernels;
  }
#endif
  return *widest;
}

}  // namespace

const SimdKernels& simd_kernels() {
  static const SimdKernels& kernels = choose_kernels();
  return kernels;
}

}  // namespace cond_detr
