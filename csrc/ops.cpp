// Schemas of torch.ops.cond_detr and the Python module that loads them. Implementations are in cpu/ and cuda/.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(cond_detr, m) {
  m.def("linear_sum_assignment(Tensor cost, bool maximize) -> (Tensor, Tensor, Tensor)");
  m.def(
      "match(Tensor logits, Tensor boxes, Tensor target_labels, Tensor target_boxes, Tensor target_count, "
      "float label_weight, float l1_weight, float giou_weight, float alpha, float gamma, bool softmax) "
      "-> (Tensor, Tensor)");
}

#ifdef COND_DETR_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// Importing the module runs the registrations above; its one attribute says what was built.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module && PyModule_AddIntConstant(module, "WITH_CUDA", kWithCuda) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
