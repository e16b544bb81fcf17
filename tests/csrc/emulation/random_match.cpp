#include "random_match.h"

#include <cmath>
#include <initializer_list>
#include <limits>

namespace {

using Generator = std::mt19937_64;

bool one_in(int64_t count, Generator& generator) { return generator() % count == 0; }

int64_t between(int64_t least, int64_t most, Generator& generator) {
  return least + static_cast<int64_t>(generator() % (most - least + 1));
}

int64_t any_of(std::initializer_list<int64_t> choices, Generator& generator) {
  return choices.begin()[generator() % choices.size()];
}

// Of few different values, so that many costs are equal.
void make_ties(std::vector<float>& values, float steps) {
  for (float& value : values) value = std::round(value * steps) / steps;
}

void make_bad(std::vector<float>& values, Generator& generator) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  if (values.empty()) return;
  for (float bad : {std::nanf(""), kInfinity, -kInfinity, 3e38f}) values[generator() % values.size()] = bad;
}

void make_boxes(std::vector<float>& boxes, Generator& generator) {
  std::uniform_real_distribution<float> uniform(0.01f, 1.0f);
  for (float& value : boxes) value = uniform(generator);
}

}  // namespace

MatchBatch random_match_batch(Generator& generator) {
  const int64_t queries = any_of({0, 1, 7, 16, 31, 32, 33, 64, 100, 300}, generator);
  const int64_t targets = one_in(40, generator) ? 330 : any_of({0, 1, 3, 16, 40, 64}, generator);
  const int64_t classes = one_in(12, generator) ? 0 : any_of({1, 3, 17, 91}, generator);
  const int64_t layers = between(1, 2, generator), images = between(1, 3, generator);
  const bool ties = one_in(2, generator), bad = one_in(2, generator), softmax = one_in(2, generator);
  const float gamma = one_in(3, generator) ? 1.5f : 2.0f;
  MatchBatch batch{layers,
                   images,
                   queries,
                   classes,
                   targets,
                   {2, 5, 2, 0.25f, gamma, softmax},
                   std::vector<float>(layers * images * queries * classes),
                   std::vector<float>(layers * images * queries * 4),
                   std::vector<int64_t>(images * targets),
                   std::vector<float>(images * targets * 4),
                   std::vector<int64_t>(images)};
  std::normal_distribution<float> normal(0, 3);
  for (float& value : batch.logits) value = normal(generator);
  make_boxes(batch.boxes, generator);
  make_boxes(batch.target_boxes, generator);
  if (ties) {
    make_ties(batch.logits, 1);
    make_ties(batch.boxes, 4);
    make_ties(batch.target_boxes, 4);
  }
  const int64_t beyond = bad ? 1 : 0;  // labels and counts that there are not
  const int64_t last_class = classes > 0 ? classes - 1 : 0;
  for (int64_t& label : batch.target_labels) label = between(-beyond, last_class + beyond, generator);
  for (int64_t& count : batch.target_count) count = between(-3 * beyond, targets + 5 * beyond, generator);
  if (one_in(2, generator)) batch.target_count[0] = targets;
  if (bad) {
    for (auto* values : {&batch.logits, &batch.boxes, &batch.target_boxes}) make_bad(*values, generator);
  }
  return batch;
}
