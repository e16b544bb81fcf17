// Starts the assignment problems of a file, and shows how far that has come. Arguments: the file, and one to write.
//
// In: per problem rows, cols (int64), rows <= cols, then costs (float64). Out, all float64: the status, the column of
// each row or -1, the rows' duals, and the columns'.
#define COND_DETR_ISA started
#define COND_DETR_LANES 2
#include <cstdio>
#include <vector>

#include "assignment/solver.h"

using namespace cond_detr;

namespace {

void start_problem(int64_t rows, int64_t cols, const std::vector<double>& costs, std::FILE* out) {
  const int64_t padded = padded_columns(cols);
  std::vector<double> padded_costs(rows * padded, INFINITY);
  for (int64_t i = 0; i < rows * cols; ++i) padded_costs[i / cols * padded + i % cols] = costs[i];
  std::vector<char> buffer(Workspace::bytes(rows, cols));
  Carver carver(buffer.data());
  Workspace w(carver, rows, cols);
  const PaddedCosts<double> read{padded_costs.data(), padded};
  std::vector<double> found{static_cast<double>(start<SimdLanes>(read, static_cast<int32_t>(rows), padded, w))};
  found.insert(found.end(), w.col_of_row, w.col_of_row + rows);
  found.insert(found.end(), w.row_dual, w.row_dual + rows);
  found.insert(found.end(), w.col_dual, w.col_dual + cols);
  std::fwrite(found.data(), sizeof(double), found.size(), out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::FILE* in = std::fopen(argv[1], "rb");
  std::FILE* out = std::fopen(argv[2], "wb");
  if (!in || !out) return 2;
  int64_t shape[2];
  while (std::fread(shape, sizeof shape, 1, in) == 1) {
    std::vector<double> costs(shape[0] * shape[1]);
    if (std::fread(costs.data(), sizeof(double), costs.size(), in) != costs.size()) return 2;
    start_problem(shape[0], shape[1], costs, out);
  }
  return std::fclose(out);
}
