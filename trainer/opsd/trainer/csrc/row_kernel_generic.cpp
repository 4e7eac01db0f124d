// The row kernel for any processor: four lanes, which is what SSE2 and NEON have.

#include "row_kernel.h"

namespace opsd {
namespace {
#define OPSD_LANES 4
#include "row_kernel_impl.h"
}  // namespace

RowKernels row_kernels_generic(Format format) { return kernels_for(format); }

}  // namespace opsd
