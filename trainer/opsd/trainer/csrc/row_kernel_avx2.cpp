// The row kernel for processors with AVX2; row_kernel.cpp asks the processor first.

#if defined(__x86_64__)

#include "row_kernel.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace opsd {
namespace {
#define OPSD_LANES 8
#include "row_kernel_impl.h"
}  // namespace

RowKernels row_kernels_avx2(Format format) { return kernels_for(format); }

}  // namespace opsd

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
