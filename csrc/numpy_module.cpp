// The assignment solver for NumPy arrays: no torch, GIL released while it works.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace py = pybind11;

namespace {

py::tuple linear_sum_assignment(const py::array_t<double, py::array::c_style>& cost, bool maximize, int64_t threads) {
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
    threads = cond_detr::threads_for(count, rows * cols, cond_detr::kSolvedPerThread, threads);
    cond_detr::for_each_problem(count, threads, simd.dense_bytes(rows, cols), [&](int64_t p, char* buffer) {
      status_out[p] = static_cast<int32_t>(simd.solve_dense(data + p * rows * cols, rows, cols, maximize, buffer,
                                                            row_out + p * pairs, col_out + p * pairs));
    });
  }
  return py::make_tuple(row_index, col_index, status);
}

}  // namespace

PYBIND11_MODULE(_numpy, m) {
  m.doc() = "Batched linear sum assignment on NumPy arrays.";
  m.def(
      "linear_sum_assignment", &linear_sum_assignment, py::arg("cost"), py::arg("maximize"), py::arg("threads"),
      "cost (P, rows, cols) float64, at most so many threads -> row_index (P, k), col_index (P, k) int64, status (P,)");
  m.def("simd", [] { return cond_detr::simd_kernels().name; }, "the instruction set that the solver uses");
}
