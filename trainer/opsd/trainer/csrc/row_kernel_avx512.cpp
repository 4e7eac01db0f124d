// The row kernel for processors with AVX512; row_kernel.cpp asks the processor first.

#if defined(__x86_64__)

#include "row_kernel.h"

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

namespace opsd {
namespace {
#define OPSD_LANES 16
#include "row_kernel_impl.h"
}  // namespace

RowKernels row_kernels_avx512(Format format) { return kernels_for(format); }

}  // namespace opsd

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
