// The entry point of opsd.trainer._C. Importing the module loads the library, and with it the
// operators that the other files here register. CPython's limited API only, so that one build serves
// every Python.

#include <Python.h>

#include "row_kernel.h"

namespace {

PyObject* cpu_kernel(PyObject*, PyObject*) {
  const char* name = nullptr;
  opsd::best_row_kernels(opsd::Format::kFloat32, &name);
  return PyUnicode_FromString(name);
}

PyObject* has_cuda(PyObject*, PyObject*) {
#ifdef OPSD_CUDA
  Py_RETURN_TRUE;
#else
  Py_RETURN_FALSE;
#endif
}

PyMethodDef methods[] = {
    {"cpu_kernel", cpu_kernel, METH_NOARGS, "The row kernel in use: avx512, avx2 or generic."},
    {"has_cuda", has_cuda, METH_NOARGS, "Whether the CUDA kernels were built in."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods,
                               nullptr,               nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
