// The matching cost of one (prediction, target) pair: focal classification + L1 + generalised IoU.
//
// Conditional DETR matches with 2 * class + 5 * L1 + 2 * (1 - GIoU) up to a constant; the class term is the focal loss
// the prediction would get for the target's class minus the one it would get against it.
#pragma once

#include <cmath>
#include <cstdint>

#include "assignment/portable.h"

namespace cond_detr {

// Stands in for a cost that is NaN or infinite: far from any real cost, yet exact to add up in double precision.
constexpr float kSanitisedCost = 1e9f;

struct CostWeights {
  float label;
  float l1;
  float giou;
  float alpha;
  float gamma;
};

COND_DETR_HD inline float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

COND_DETR_HD inline float modulator(float probability, float gamma) {
  return gamma == 2.0f ? probability * probability : powf(probability, gamma);
}

// From the logit by log-sigmoid: finite wherever the logit is.
COND_DETR_HD inline float focal_cost(float logit, float alpha, float gamma) {
  const float minus_log_p = softplus(-logit);
  const float minus_log_1mp = softplus(logit);
  const float positive = alpha * modulator(expf(-minus_log_1mp), gamma) * minus_log_p;
  const float negative = (1.0f - alpha) * modulator(expf(-minus_log_p), gamma) * minus_log_1mp;
  return positive - negative;
}

// Boxes are (centre x, centre y, width, height).
COND_DETR_HD inline float l1_distance(const float* a, const float* b) {
  return fabsf(a[0] - b[0]) + fabsf(a[1] - b[1]) + fabsf(a[2] - b[2]) + fabsf(a[3] - b[3]);
}

// Overlap of two intervals given by centre and length, and the length of the interval that spans both.
COND_DETR_HD inline void overlap_and_span(float centre_a, float size_a, float centre_b, float size_b, float& overlap,
                                          float& span) {
  const float low_a = centre_a - 0.5f * size_a, high_a = centre_a + 0.5f * size_a;
  const float low_b = centre_b - 0.5f * size_b, high_b = centre_b + 0.5f * size_b;
  overlap = fmaxf(fminf(high_a, high_b) - fmaxf(low_a, low_b), 0.0f);
  span = fmaxf(high_a, high_b) - fminf(low_a, low_b);
}

COND_DETR_HD inline float generalized_iou(const float* a, const float* b) {
  float overlap_x, overlap_y, span_x, span_y;
  overlap_and_span(a[0], a[2], b[0], b[2], overlap_x, span_x);
  overlap_and_span(a[1], a[3], b[1], b[3], overlap_y, span_y);
  const float intersection = overlap_x * overlap_y;
  const float union_area = a[2] * a[3] + b[2] * b[3] - intersection;
  const float hull = span_x * span_y;
  return intersection / union_area - (hull - union_area) / hull;
}

// `logits` are one query's (classes). A label outside them makes the cost NaN, which the caller sanitises.
COND_DETR_HD inline float match_cost(const float* logits, int64_t classes, const float* box, int64_t target_label,
                                     const float* target_box, const CostWeights& weights) {
  const bool known = target_label >= 0 && target_label < classes;
  const float label_cost = known ? focal_cost(logits[target_label], weights.alpha, weights.gamma) : NAN;
  // fmaxf and fminf drop NaN, so the L1 term is what carries a NaN box through
  return weights.label * label_cost + weights.l1 * l1_distance(box, target_box) -
         weights.giou * generalized_iou(box, target_box);
}

// A cost that is safe to solve with; sets `sanitised` where it had to be replaced.
COND_DETR_HD inline float finite_cost(float cost, bool& sanitised) {
  if (fabsf(cost) < kSanitisedCost) return cost;  // false for NaN
  sanitised = true;
  return kSanitisedCost;
}

}  // namespace cond_detr
