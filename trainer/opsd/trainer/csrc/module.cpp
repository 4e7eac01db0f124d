// The entry point of opsd.trainer._C. Importing the module loads the library, and with it the
// operators that the other files here register; the module itself is empty. CPython's limited API
// only, so that one build serves every Python.

#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr,               nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
