// Solves problems on an emulated GPU and on the CPU, which must agree to the last bit.
//
//     emulated SHARED_BYTES GARBAGE SEED MATCH_BATCHES IN OUT
//
// In: per batch of dense problems count, rows, cols, maximize (int64), then costs (float64). Out: its statuses (int64),
// row indices and column indices (int64). MATCH_BATCHES that come from the seed are matched besides.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "on_cpu.h"
#include "on_device.h"
#include "random_match.h"
#include "scheduler.h"

namespace {

int differences = 0;

bool read_batch(std::FILE* file, DenseBatch& batch) {
  int64_t head[4];
  if (std::fread(head, sizeof head, 1, file) != 1) return false;
  const size_t size = head[0] * head[1] * head[2];
  batch = {head[0], head[1], head[2], head[3] != 0, std::vector<double>(size)};
  return std::fread(batch.costs.data(), sizeof(double), size, file) == size;
}

template <class T>
void write(std::FILE* file, const std::vector<T>& values) {
  const std::vector<int64_t> wide(values.begin(), values.end());
  std::fwrite(wide.data(), sizeof(int64_t), wide.size(), file);
}

void solve_file(std::FILE* in, std::FILE* out) {
  for (DenseBatch batch; read_batch(in, batch);) {
    const DenseAnswer answer = solve_on_device(batch);
    write(out, answer.status);
    write(out, answer.row_index);
    write(out, answer.col_index);
    if (answer == solve_on_cpu(batch)) continue;
    ++differences;
    std::fprintf(stderr, "%ld dense problems of %ld x %ld: not what the CPU has\n", batch.count, batch.rows,
                 batch.cols);
  }
}

void match(int count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  for (int i = 0; i < count; ++i) {
    const MatchBatch batch = random_match_batch(generator);
    if (match_on_device(batch) == match_on_cpu(batch)) continue;
    ++differences;
    std::fprintf(stderr, "batch %d to match, %ld x %ld, %ld queries, %ld classes, %ld targets: not what the CPU has\n",
                 i, batch.layers, batch.batch, batch.queries, batch.classes, batch.max_targets);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const uint64_t seed = std::strtoull(argv[3], nullptr, 10);
  emulation::settings = {std::strtoull(argv[1], nullptr, 10), std::atoi(argv[2]), seed};
  std::FILE* in = std::fopen(argv[5], "rb");
  std::FILE* out = std::fopen(argv[6], "wb");
  if (!in || !out) return 2;
  solve_file(in, out);
  std::fclose(in);
  if (std::fclose(out)) return 2;
  match(std::atoi(argv[4]), seed);
  return differences ? 3 : 0;
}
