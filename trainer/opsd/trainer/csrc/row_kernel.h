// The clipped divergence of one row (one token's logits over the vocabulary), on the CPU. The
// definition, and the meaning of the columns, is opsd/trainer/loss/reference.py; tests compare.

#pragma once

#include <cstdint>

namespace opsd {

enum class Divergence { kForwardKL, kReverseKL, kJSD };
enum class Clip { kNone, kClamp, kScale };
enum class Format { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t kTelemetryColumns = 7;
// The student's (top, sum, weighted), then the teacher's: the greatest logit, the sum of
// exp((logit - top) / T), and that sum with each term weighted by (logit - top) / T.
constexpr int64_t kNormaliserColumns = 6;
// Loss, telemetry, and two sums that the gradient needs; all add up over shards of the vocabulary.
constexpr int64_t kSumColumns = 10;
enum SumColumn {
  kLoss,
  kDivergence,
  kPositive,
  kClippedMass,
  kStudentEntropy,
  kTeacherEntropy,
  kStudentLogprob,
  kTeacherLogprob,
  kLost,
  kPull
};

struct RowSettings {
  Divergence divergence;
  float jsd_beta;  // weight of the teacher in the mixture, inside (0, 1)
  Clip clip;
  float clip_value;  // +inf where clip is kNone
  float inverse_t;   // 1 / temperature
  float softcap;     // 0: none
  int64_t vocab;
};

struct Row {
  const void* student;  // [vocab] logits
  const void* teacher;  // [vocab] logits in the same format; null where only the student counts
  int64_t sampled;      // -1: not given, or not in this shard
  double* normalisers;  // [kNormaliserColumns]
  double* sums;         // [kSumColumns]
  void* grad;           // [vocab] in the logits' format; may be `student`
};

// Each for one row. A row that is no distribution (NaN, +inf, or nothing above -inf) gives NaN.
struct RowKernels {
  // Everything at once; scratch holds 2 * padded(vocab) floats.
  void (*fused)(const RowSettings&, const Row&, float* scratch);
  // The same in stages, between which shards of the vocabulary exchange what they found.
  void (*normalise)(const RowSettings&, const Row&);  // writes normalisers
  void (*sum)(const RowSettings&, const Row&);        // reads normalisers, writes sums
  void (*gradient)(const RowSettings&, const Row&);   // reads both, writes grad
  // grad = coefficient * p / T, with p of `student` under its normalisers.
  void (*softmax)(const RowSettings&, const Row&, float coefficient);
};

constexpr int64_t kMostLanes = 16;
constexpr int64_t padded(int64_t vocab) { return (vocab + kMostLanes - 1) / kMostLanes * kMostLanes; }

// One translation unit each, built from row_kernel_impl.h for its instruction set.
RowKernels row_kernels_generic(Format format);
#if defined(__x86_64__)
RowKernels row_kernels_avx2(Format format);
RowKernels row_kernels_avx512(Format format);
#endif

// The widest that this processor runs; `name` (may be null) receives "avx512", "avx2" or "generic".
RowKernels best_row_kernels(Format format, const char** name);

}  // namespace opsd
