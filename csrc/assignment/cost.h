// The matching cost of (prediction, target) pairs: classification + L1 + generalised IoU. Written over V, one float or
// a register of floats, one prediction each.
//
// Conditional DETR matches with 2 * class + 5 * L1 + 2 * (1 - GIoU) up to a constant; the class term is the focal loss
// the prediction would get for the target's class minus the one it would get against it. Plain DETR's class term is
// minus the probability of the class.
#pragma once

#include "assignment/elementwise.h"
#include "assignment/types.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

// Stands in for a cost that is NaN or infinite: far from any real cost, yet exact to add up in double precision.
constexpr float kSanitisedCost = 1e9f;

// From the logit by log-sigmoid: finite wherever the logit is, NaN elsewhere.
template <class V>
COND_DETR_HD V focal_cost(V logit, float alpha, float gamma) {
  const V e = exp_of_negative(-magnitude(logit));  // the other of the two odds
  const V log_sum = log_of_one_plus(e);
  const V zero = logit - logit;  // NaN for what is not finite
  const V minus_log_p = log_sum + larger(-logit, zero);
  const V minus_log_1mp = log_sum + larger(logit, zero);
  V unlikely, likely;  // (1 - p)^gamma and p^gamma
  if (gamma == 2.0f) {
    const V major = 1.0f / (1.0f + e), minor = e * major;
    const V p = choose(logit >= 0.0f, major, minor), q = choose(logit >= 0.0f, minor, major);
    likely = p * p;
    unlikely = q * q;
  } else {
    likely = exp_of_negative(-gamma * minus_log_p);
    unlikely = exp_of_negative(-gamma * minus_log_1mp);
  }
  return alpha * unlikely * minus_log_p - (1.0f - alpha) * likely * minus_log_1mp + zero;
}

// Sum of exp(logit - largest), in an order that does not depend on the width of registers. NaN if a logit is.
constexpr int kPartialSums = 16;

COND_DETR_HD inline float sum_of_exponentials(const float* logits, int64_t classes, float largest) {
  float partial[kPartialSums] = {};
  for (int64_t first = 0; first < classes; first += kPartialSums) {
    COND_DETR_UNROLL
    for (int i = 0; i < kPartialSums; ++i) {
      const float below = first + i < classes ? logits[first + i] - largest : -INFINITY;
      partial[i] += choose(below == below, exp_of_negative(below), below);
    }
  }
  float sum = 0.0f;
  COND_DETR_UNROLL
  for (int i = 0; i < kPartialSums; ++i) sum += partial[i];
  return sum;
}

// A number for each lane. Of one lane it is the number itself: a compiler may not leave out the addition, which turns
// -0 into 0.
template <class V>
COND_DETR_HD V in_all_lanes(float value) {
  return V{} + value;
}

template <>
COND_DETR_HD inline float in_all_lanes<float>(float value) {
  return value;
}

// A box (centre x, centre y, width, height), and what the costs of all its pairs have in common.
template <class V>
struct Box {
  V x, y, width, height;
  V left, right, top, bottom, area;

  COND_DETR_HD Box(V x, V y, V width, V height)
      : x(x),
        y(y),
        width(width),
        height(height),
        left(x - 0.5f * width),
        right(x + 0.5f * width),
        top(y - 0.5f * height),
        bottom(y + 0.5f * height),
        area(width * height) {}
};

template <class V>
COND_DETR_HD V l1_distance(const Box<V>& a, const Box<float>& b) {
  return magnitude(a.x - b.x) + magnitude(a.y - b.y) + magnitude(a.width - b.width) + magnitude(a.height - b.height);
}

// Overlap of two intervals given by their ends, and the length of the interval that spans both.
template <class V>
struct Extent {
  V overlap, span;

  COND_DETR_HD Extent(V low_a, V high_a, V low_b, V high_b)
      : overlap(larger(smaller(high_a, high_b) - larger(low_a, low_b), V{})),
        span(larger(high_a, high_b) - smaller(low_a, low_b)) {}
};

template <class V>
COND_DETR_HD V generalized_iou(const Box<V>& a, const Box<float>& b) {
  const Extent<V> x(a.left, a.right, in_all_lanes<V>(b.left), in_all_lanes<V>(b.right));
  const Extent<V> y(a.top, a.bottom, in_all_lanes<V>(b.top), in_all_lanes<V>(b.bottom));
  const V intersection = x.overlap * y.overlap;
  const V union_area = a.area + b.area - intersection;
  const V hull = x.span * y.span;
  return intersection / union_area - (hull - union_area) / hull;
}

// Maxima and minima may drop a NaN, so it is the L1 term that carries one of a box through.
template <class V>
COND_DETR_HD V match_cost(V label_cost, const Box<V>& box, const Box<float>& target, const CostWeights& weights) {
  return weights.label * label_cost + weights.l1 * l1_distance(box, target) -
         weights.giou * generalized_iou(box, target);
}

}  // namespace COND_DETR_ISA
}  // namespace cond_detr
