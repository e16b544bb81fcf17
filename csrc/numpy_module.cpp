// The assignment solver for NumPy arrays: no torch, GIL released while it works.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/simd.h"

namespace py = pybind11;

namespace {

// Starting a thread costs tens of microseconds: as much as a problem of about this many entries.
constexpr int64_t kEntriesPerThread = 10000;

// Calls work(thread, item) for all items below count, in as many threads as are given, or in fewer if no more can be
// started. Threads take the next item when they are done with one: a thread that wakes up late delays nothing.
template <class Work>
void parallel_for(int64_t count, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t thread) {
    for (int64_t item; (item = next++) < count;) work(thread, item);
  };
  std::vector<std::thread> pool;
  try {
    for (int64_t thread = 1; thread < threads; ++thread) pool.emplace_back(run, thread);
  } catch (const std::system_error&) {
  }
  run(0);
  for (std::thread& member : pool) member.join();
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
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    const int64_t threads = std::max<int64_t>(1, std::min({count, cores, count * rows * cols / kEntriesPerThread}));
    // allocated here, where running out of memory becomes an exception in Python
    const size_t bytes = simd.dense_bytes(rows, cols);
    const std::unique_ptr<char[]> buffers(new char[threads * bytes]);
    parallel_for(count, threads, [&](int64_t thread, int64_t p) {
      char* const buffer = buffers.get() + thread * bytes;
      status_out[p] = static_cast<int32_t>(simd.solve_dense(data + p * rows * cols, rows, cols, maximize, buffer,
                                                            row_out + p * pairs, col_out + p * pairs));
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
