// Which row kernels this processor runs.

#include "row_kernel.h"

#include <cstdlib>
#include <cstring>

namespace opsd {
namespace {

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

// OPSD_CPU_KERNEL=avx2 or generic asks for less than the processor has: for tests and measurements.
bool wished(const char* name) {
  const char* wish = std::getenv("OPSD_CPU_KERNEL");
  return wish != nullptr && std::strcmp(wish, name) == 0;
}

}  // namespace

RowKernels best_row_kernels(Format format, const char** name) {
  const char* unused = nullptr;
  const char*& chosen = name == nullptr ? unused : *name;
#if defined(__x86_64__)
  if (has_avx512() && !wished("avx2") && !wished("generic")) {
    chosen = "avx512";
    return row_kernels_avx512(format);
  }
  if (has_avx2() && !wished("generic")) {
    chosen = "avx2";
    return row_kernels_avx2(format);
  }
#endif
  chosen = "generic";
  return row_kernels_generic(format);
}

}  // namespace opsd
