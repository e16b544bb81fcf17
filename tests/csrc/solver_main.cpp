// Solves the assignment problems of a file, for builds with sanitizers. Arguments: the file, and one to write.
//
// In: per problem rows, cols (int64), then costs (float64). Out: per problem its status (int64), then row and column
// indices (int64), min(rows, cols) each. Matching problems with everything that can be wrong are run besides.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "cpu/simd.h"

namespace {

template <class T>
bool read(std::FILE* file, T* to, size_t count) {
  return count == 0 || std::fread(to, sizeof(T), count, file) == count;
}

void write(std::FILE* file, const std::vector<int64_t>& values) {
  if (!values.empty()) std::fwrite(values.data(), sizeof(int64_t), values.size(), file);
}

void solve_file(std::FILE* in, std::FILE* out) {
  const cond_detr::SimdKernels& simd = cond_detr::simd_kernels();
  int64_t shape[2];
  while (read(in, shape, 2)) {
    std::vector<double> costs(shape[0] * shape[1]);
    if (!read(in, costs.data(), costs.size())) std::exit(2);
    const int64_t pairs = shape[0] < shape[1] ? shape[0] : shape[1];
    std::vector<int64_t> rows(pairs), cols(pairs);
    // exactly as long as was asked for, so that a byte more is noticed
    std::vector<char> buffer(simd.dense_bytes(shape[0], shape[1]));
    const int64_t status = static_cast<int64_t>(
        simd.solve_dense(costs.data(), shape[0], shape[1], false, buffer.data(), rows.data(), cols.data()));
    write(out, {status});
    write(out, rows);
    write(out, cols);
  }
}

// One layer, three images: without targets, with some, with as many as fit, labels and boxes not all valid.
void match_anything(int64_t queries, int64_t classes, int64_t targets, bool softmax, unsigned seed) {
  const cond_detr::SimdKernels& simd = cond_detr::simd_kernels();
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int64_t> label(-1, classes);
  std::vector<float> logits(3 * queries * classes), boxes(3 * queries * 4), target_boxes(3 * targets * 4);
  for (auto* values : {&logits, &boxes, &target_boxes}) {
    for (float& value : *values) value = normal(generator) * 20;
  }
  if (!logits.empty()) logits[0] = NAN;
  if (!target_boxes.empty()) target_boxes.back() = std::numeric_limits<float>::infinity();
  std::vector<int64_t> labels(3 * targets), counts{0, targets / 2, targets + 5}, pred_index(targets);
  for (int64_t& value : labels) value = label(generator);
  const cond_detr::MatchProblems problems{logits.data(),
                                          boxes.data(),
                                          labels.data(),
                                          target_boxes.data(),
                                          counts.data(),
                                          1,
                                          3,
                                          queries,
                                          classes,
                                          targets,
                                          {2, 5, 2, 0.25f, seed % 2 ? 2.0f : 1.5f, softmax}};
  std::vector<char> buffer(simd.match_bytes(problems));
  for (int64_t image = 0; image < 3; ++image) {
    simd.match(problems, image, buffer.data(), pred_index.data());
    std::vector<bool> taken(queries);
    for (int64_t query : pred_index) {
      if (query < -1 || query >= queries || (query >= 0 && taken[query])) std::exit(3);
      if (query >= 0) taken[query] = true;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::FILE* in = std::fopen(argv[1], "rb");
  std::FILE* out = std::fopen(argv[2], "wb");
  if (!in || !out) return 2;
  solve_file(in, out);
  std::fclose(in);
  std::fclose(out);
  unsigned seed = 0;
  for (int64_t queries : {0, 1, 7, 16, 33, 100}) {
    for (int64_t targets : {0, 1, 5, 40, 120}) {
      for (int64_t classes : {1, 3, 20}) match_anything(queries, classes, targets, seed % 3 == 0, ++seed);
    }
  }
  std::printf("%s\n", cond_detr::simd_kernels().name);
  return 0;
}
