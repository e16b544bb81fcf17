// Elementary functions of a float, or of a SIMD register of floats: the cost of matching is written once over either,
// and the same to the last bit on every device.
#pragma once

#include "assignment/portable.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

#ifdef COND_DETR_LANES
typedef float Floats __attribute__((vector_size(8 * COND_DETR_LANES)));
typedef int32_t FloatInts __attribute__((vector_size(8 * COND_DETR_LANES)));

inline Floats choose(FloatInts mask, Floats yes, Floats no) { return mask ? yes : no; }
inline FloatInts to_int(Floats a) { return __builtin_convertvector(a, FloatInts); }
inline Floats of_bits(FloatInts bits) {
  Floats value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
#endif

COND_DETR_HD inline float choose(bool mask, float yes, float no) { return mask ? yes : no; }
COND_DETR_HD inline int32_t to_int(float a) { return static_cast<int32_t>(a); }
COND_DETR_HD inline float of_bits(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <class V>
COND_DETR_HD V larger(V a, V b) {
  return choose(a > b, a, b);
}

template <class V>
COND_DETR_HD V smaller(V a, V b) {
  return choose(a < b, a, b);
}

template <class V>
COND_DETR_HD V magnitude(V a) {
  return larger(a, -a);
}

// exp(a) for a <= 0: 2^n exp(r) with |r| <= log(2) / 2, the latter by a polynomial (Cephes, expf).
template <class V>
COND_DETR_HD V exp_of_negative(V a) {
  a = larger(a, V{} - 87.0f);           // what is smaller than e^-87 does not matter to a cost
  const V rounder = V{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const V n = (a * 1.44269504088896341f + rounder) - rounder;
  const V r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * of_bits((to_int(n) + 127) << 23);
}

// log(1 + a) for a in [0, 1]: 2 atanh(s) with s = a / (2 + a) <= 1/3, by its series.
template <class V>
COND_DETR_HD V log_of_one_plus(V a) {
  const V s = a / (a + 2.0f);
  const V square = s * s;
  V p = V{} + 1.0f / 15;
  p = p * square + 1.0f / 13;
  p = p * square + 1.0f / 11;
  p = p * square + 1.0f / 9;
  p = p * square + 1.0f / 7;
  p = p * square + 1.0f / 5;
  p = p * square + 1.0f / 3;
  p = p * square + 1.0f;
  return 2.0f * s * p;
}

}  // namespace COND_DETR_ISA
}  // namespace cond_detr
