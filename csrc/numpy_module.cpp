// The assignment solver for NumPy arrays: no torch, GIL released while it works.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/simd.h"

namespace py = pybind11;

namespace {

// Starting a thread costs tens of microseconds: as much as a problem of about this many entries.
constexpr int64_t kEntriesPerThread = 10000;

// Calls work(begin, end) over [0, count) from as many threads as there are cores, fewer where there is little to do.
template <class Work>
void parallel_for(int64_t count, int64_t entries, const Work& work) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const int64_t threads = std::min({count, cores, count * entries / kEntriesPerThread});
  if (threads <= 1) return work(0, count);
  std::vector<std::thread> pool;
  for (int64_t t = 1; t < threads; ++t) {
    pool.emplace_back([&, t] { work(count * t / threads, count * (t + 1) / threads); });
  }
  work(0, count / threads);
  for (std::thread& thread : pool) thread.join();
}

py::tuple linear_sum_assignment(const py::array_t<double, py::array::c_style>& cost, bool maximize) {
  if (cost.ndim() != 3) throw py::value_error("cost must be (problems, rows, cols)");
  const int64_t count = cost.shape(0), rows = cost.shape(1), cols = cost.shape(2);
  const int64_t pairs = std::min(rows, cols);
  py::array_t<int64_t> row_index({count, pairs}), col_index({count, pairs});
  py::array_t<int32_t> status(count);
  const double* data = cost.data();
  int64_t* row_out = row_index.mutable_data();
  int64_t* col_out = col_index.mutable_data();
  int32_t* status_out = status.mutable_data();
  const cond_detr::SimdKernels& simd = cond_detr::simd_kernels();
  {
    py::gil_scoped_release release;
    parallel_for(count, rows * cols, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<char[]> buffer(new char[simd.dense_bytes(rows, cols)]);
      for (int64_t p = begin; p < end; ++p) {
        status_out[p] = static_cast<int32_t>(simd.solve_dense(data + p * rows * cols, rows, cols, maximize,
                                                              buffer.get(), row_out + p * pairs, col_out + p * pairs));
      }
    });
  }
  return py::make_tuple(row_index, col_index, status);
}

}  // namespace

PYBIND11_MODULE(_numpy, m) {
  m.doc() = "Batched linear sum assignment on NumPy arrays.";
  m.def("linear_sum_assignment", &linear_sum_assignment, py::arg("cost"), py::arg("maximize"),
        "cost (P, rows, cols) float64 -> row_index (P, k), col_index (P, k) int64, status (P,) int32");
  m.def("simd", [] { return cond_detr::simd_kernels().name; }, "the instruction set that the solver uses");
}
