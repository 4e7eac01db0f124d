// The row kernels for NVIDIA GPUs: all that runs on the device.
//
// A row belongs to one thread block, or from sm_90 on to a cluster of blocks: each holds its slice of
// both rows in shared memory, so that the logits are read from global memory once and the gradient is
// written once; what the blocks found goes around through distributed shared memory. Where that is
// not possible the passes read global memory again (mostly from the second level's cache). Every
// reduction has a fixed order: the same input gives the same bits.

#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "row_kernel.h"

// A test compiles this file as plain C++, with CUDA's own names made of fibers: see
// tests/unit/trainer/loss/cuda_on_cpu. It sets these four.
#ifndef OPSD_CUDA_KEY
#define OPSD_CUDA_KEY CUDA
#define OPSD_CUDA_THREADS 512
#define OPSD_CUDA_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define OPSD_CUDA_CLUSTERS
#endif
#endif

namespace opsd {
namespace {

namespace cg = cooperative_groups;

#define OPSD_FN __device__ __forceinline__
#define OPSD_FN_PLAIN __device__ __forceinline__
#define OPSD_LOG log
#define OPSD_INFINITY INFINITY
using F = float;

OPSD_FN float all(float x) { return x; }
OPSD_FN float magnitude(float x) { return fabsf(x); }

// The compiler drops the half that a caller does not read.
struct Exponential {
  float minus_one, value;
};
OPSD_FN Exponential exponential(float x) { return {expm1f(x), __expf(x)}; }
OPSD_FN float log_one_plus(float u) { return log1pf(u); }

#include "row_math.h"

constexpr int kThreads = OPSD_CUDA_THREADS;
constexpr int kWarps = kThreads / 32;
constexpr int kMostBlocks = 8;  // in a cluster; what every sm_90 device can hold

OPSD_FN double nan_of() { return __longlong_as_double(0x7ff8000000000000LL); }

// Elements of one block's slice: a multiple of 8, so that slices start on 16 bytes where rows do.
__host__ __device__ __forceinline__ int64_t slice_of(int64_t vocab, int blocks) {
  return ((vocab + blocks - 1) / blocks + 7) / 8 * 8;
}

template <Format format>
struct Memory;
template <>
struct Memory<Format::kFloat32> {
  using Element = float;
  OPSD_FN static float widen(float x) { return x; }
  OPSD_FN static float narrow(float x) { return x; }
};
template <>
struct Memory<Format::kBFloat16> {
  using Element = __nv_bfloat16;
  OPSD_FN static float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  OPSD_FN static __nv_bfloat16 narrow(float x) { return __float2bfloat16(x); }
};
template <>
struct Memory<Format::kFloat16> {
  using Element = __half;
  OPSD_FN static float widen(__half x) { return __half2float(x); }
  OPSD_FN static __half narrow(float x) { return __float2half(x); }
};

enum class Stage { kFused, kNormalise, kSum, kGradient, kSoftmax };

struct Arguments {
  RowSettings set;
  const void* student;
  const void* teacher;        // null where only the student counts
  const int64_t* sampled;     // null: not given
  double* normalisers;        // [rows, kNormaliserColumns]
  double* sums;               // [rows, kSumColumns]
  float* loss;                // [rows]
  float* telemetry;           // [rows, kTelemetryColumns]
  const float* coefficients;  // [rows]
  void* grad;                 // [rows, vocab]; may be student
  int blocks;                 // of a row
  bool on_chip;               // slices are kept in shared memory
};

// --- sums over the blocks of a row, in a fixed order

constexpr int kReduced = 8;  // most values in one reduction
constexpr int kReductions = 3;

struct Shared {
  double warps[kReduced][kWarps];
  double found[kReductions][kReduced];  // one buffer a reduction: no block waits to reuse it
  double total[kReduced];
};

template <bool kGreatest>
OPSD_FN double merge(double a, double b) {
  return kGreatest ? fmax(a, b) : a + b;
}

// values[i] over all threads of the row's blocks; every thread receives the result.
template <bool kGreatest, int kCount>
OPSD_FN void reduce(double (&values)[kCount], Shared& shared, [[maybe_unused]] int which,
                    [[maybe_unused]] int blocks) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    double x = values[k];
    for (int step = 16; step > 0; step /= 2) {
      x = merge<kGreatest>(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    if (lane == 0) shared.warps[k][warp] = x;
  }
  __syncthreads();
  if (threadIdx.x < kCount) {
    double x = shared.warps[threadIdx.x][0];
    for (int w = 1; w < kWarps; ++w) x = merge<kGreatest>(x, shared.warps[threadIdx.x][w]);
    shared.found[which][threadIdx.x] = x;
    shared.total[threadIdx.x] = x;
  }
#ifdef OPSD_CUDA_CLUSTERS
  if (blocks > 1) {
    const cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    if (threadIdx.x < kCount) {
      double x = cluster.map_shared_rank(&shared, 0)->found[which][threadIdx.x];
      for (int b = 1; b < blocks; ++b) {
        x = merge<kGreatest>(x, cluster.map_shared_rank(&shared, b)->found[which][threadIdx.x]);
      }
      shared.total[threadIdx.x] = x;
    }
  }
#endif
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = shared.total[k];
  __syncthreads();
}

// --- one row

// This block's slice [begin, end) of a row's logits, in shared or in global memory.
template <Format format>
struct Slice {
  using M = Memory<format>;
  const typename M::Element* student;
  const typename M::Element* teacher;
  int64_t begin, end;

  OPSD_FN float student_at(int64_t v, const RowSettings& set) const {
    return capped(M::widen(student[v - begin]), set.softcap);
  }
  OPSD_FN float teacher_at(int64_t v, const RowSettings& set) const {
    return capped(M::widen(teacher[v - begin]), set.softcap);
  }
};

// Copies a slice of `count` elements, 16 bytes at a time where both ends allow.
template <class Element>
OPSD_FN void fetch(Element* to, const Element* from, int64_t count) {
  constexpr int kEach = 16 / sizeof(Element);
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const int64_t whole = count / kEach;
    for (int64_t i = threadIdx.x; i < whole; i += kThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    for (int64_t i = whole * kEach + threadIdx.x; i < count; i += kThreads) to[i] = from[i];
  } else {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) to[i] = from[i];
  }
}

// out: the student's (top, sum, weighted), then the teacher's. NaN where a row is no distribution.
template <Format format>
OPSD_FN void normalise(const Slice<format>& slice, const Arguments& a, Shared& shared,
                       double (&out)[kNormaliserColumns]) {
  const RowSettings& set = a.set;
  float student_top = -INFINITY, teacher_top = -INFINITY;
  float student_bad = 0, teacher_bad = 0;
  for (int64_t v = slice.begin + threadIdx.x; v < slice.end; v += kThreads) {
    const float s = Memory<format>::widen(slice.student[v - slice.begin]);
    student_top = fmaxf(student_top, capped(s, set.softcap));
    if (!(s < INFINITY)) student_bad = 1;
    if (slice.teacher == nullptr) continue;
    const float t = Memory<format>::widen(slice.teacher[v - slice.begin]);
    teacher_top = fmaxf(teacher_top, capped(t, set.softcap));
    if (!(t < INFINITY)) teacher_bad = 1;
  }
  double tops[4] = {student_top, teacher_top, student_bad, teacher_bad};
  reduce<true>(tops, shared, 0, a.blocks);
  const auto s_top = static_cast<float>(tops[0]), t_top = static_cast<float>(tops[1]);
  float partial[4] = {};
  for (int64_t v = slice.begin + threadIdx.x; v < slice.end; v += kThreads) {
    const float x = (slice.student_at(v, set) - s_top) * set.inverse_t;
    const float share = s_top > -INFINITY ? __expf(x) : 0.0f;
    partial[0] += share;
    partial[1] += share > 0.0f ? share * x : 0.0f;
    if (slice.teacher == nullptr) continue;
    const float y = (slice.teacher_at(v, set) - t_top) * set.inverse_t;
    const float other = t_top > -INFINITY ? __expf(y) : 0.0f;
    partial[2] += other;
    partial[3] += other > 0.0f ? other * y : 0.0f;
  }
  double sums[4] = {partial[0], partial[1], partial[2], partial[3]};
  reduce<false>(sums, shared, 1, a.blocks);
  const double nan = nan_of();
  const bool student_ok = tops[2] == 0, teacher_ok = tops[3] == 0;
  out[0] = student_ok ? tops[0] : nan;
  out[1] = student_ok ? sums[0] : nan;
  out[2] = student_ok ? sums[1] : nan;
  const bool none = slice.teacher == nullptr;
  out[3] = none ? 0 : teacher_ok ? tops[1] : nan;
  out[4] = none ? 0 : teacher_ok ? sums[2] : nan;
  out[5] = none ? 0 : teacher_ok ? sums[3] : nan;
}

struct Point {
  float student;  // capped logit
  float p, q;
  EntryLogs log;
};

template <Format format>
OPSD_FN Point point_at(const Slice<format>& slice, int64_t v, const RowLogs& logs,
                       const RowSettings& set) {
  Point out;
  out.student = slice.student_at(v, set);
  const float teacher = slice.teacher_at(v, set);
  out.log = entry_logs(out.student, teacher, logs, set.inverse_t);
  out.p = __expf((out.student - logs.student_top) * set.inverse_t) * logs.student_scale;
  out.q = __expf((teacher - logs.teacher_top) * set.inverse_t) * logs.teacher_scale;
  return out;
}

template <Format format, Divergence divergence>
OPSD_FN void sum_row(const Slice<format>& slice, const Arguments& a, const RowLogs& logs,
                     int64_t sampled, Shared& shared, double (&out)[kSumColumns]) {
  const RowSettings& set = a.set;
  float partial[8] = {};
  for (int64_t v = slice.begin + threadIdx.x; v < slice.end; v += kThreads) {
    const Point at = point_at(slice, v, logs, set);
    const Entry e = entry_of<divergence>(at.p, at.q, at.log.difference, set.jsd_beta);
    const float keep = kept(e.value, set.clip, set.clip_value);
    partial[0] += fminf(e.value, set.clip_value);
    partial[1] += e.value;
    partial[2] += fmaxf(e.value, 0.0f);
    partial[3] += e.value > set.clip_value ? at.q : 0.0f;
    partial[4] -= at.p > 0.0f ? at.p * at.log.student : 0.0f;
    partial[5] -= at.q > 0.0f ? at.q * at.log.teacher : 0.0f;
    partial[6] += (1.0f - keep) * (divergence == Divergence::kForwardKL ? at.q : at.p);
    partial[7] += keep > 0.0f ? keep * e.pull : 0.0f;
  }
  double sums[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) sums[k] = partial[k];
  reduce<false>(sums, shared, 2, a.blocks);
  out[kLoss] = sums[0];
  out[kDivergence] = sums[1];
  out[kPositive] = sums[2];
  out[kClippedMass] = sums[3];
  out[kStudentEntropy] = sums[4];
  out[kTeacherEntropy] = sums[5];
  out[kLost] = sums[6];
  out[kPull] = sums[7];
  out[kStudentLogprob] = out[kTeacherLogprob] = 0;
  if (sampled < slice.begin || sampled >= slice.end) return;
  const Point at = point_at(slice, sampled, logs, set);
  out[kStudentLogprob] = at.log.student;
  out[kTeacherLogprob] = at.log.teacher;
}

template <Format format, Divergence divergence>
OPSD_FN void write_gradient(const Slice<format>& slice, const Arguments& a, const RowLogs& logs,
                            double lost, double pull, typename Memory<format>::Element* grad) {
  const RowSettings& set = a.set;
  const float share = share_of_p<divergence>(lost, pull);
  const float scale = set.inverse_t;
  for (int64_t v = slice.begin + threadIdx.x; v < slice.end; v += kThreads) {
    const Point at = point_at(slice, v, logs, set);
    const Entry e = entry_of<divergence>(at.p, at.q, at.log.difference, set.jsd_beta);
    const float keep = kept(e.value, set.clip, set.clip_value);
    const float own = own_part<divergence>(at.p, at.q, e, keep);
    const float x = (own + at.p * share) * scale * cap_slope(at.student, set.softcap);
    grad[v] = Memory<format>::narrow(x);
  }
}

template <Format format>
OPSD_FN void write_softmax(const Slice<format>& slice, const Arguments& a, const double* norm,
                           float coefficient, typename Memory<format>::Element* grad) {
  const RowSettings& set = a.set;
  const auto top = static_cast<float>(norm[0]);
  const auto scale =
      static_cast<float>(coefficient * set.inverse_t / norm[1]);
  for (int64_t v = slice.begin + threadIdx.x; v < slice.end; v += kThreads) {
    const float s = slice.student_at(v, set);
    const float share = __expf((s - top) * set.inverse_t);
    grad[v] = Memory<format>::narrow(share * scale * cap_slope(s, set.softcap));
  }
}

template <Format format>
OPSD_FN void fill(const Slice<format>& slice, float x, typename Memory<format>::Element* grad) {
  for (int64_t v = slice.begin + threadIdx.x; v < slice.end; v += kThreads) {
    grad[v] = Memory<format>::narrow(x);
  }
}

template <Format format, Divergence divergence, Stage stage>
__global__ void __launch_bounds__(kThreads) row_kernel(const Arguments a) {
  using Element = typename Memory<format>::Element;
  OPSD_CUDA_DYNAMIC_SHARED(on_chip);
  __shared__ Shared shared;
#ifndef OPSD_CUDA_CLUSTERS
  if (a.blocks > 1) __trap();  // the launch knows better
#endif
  const RowSettings& set = a.set;
  const int64_t row = blockIdx.x / a.blocks;
  const int block = static_cast<int>(blockIdx.x % a.blocks);
  const int64_t each = slice_of(set.vocab, a.blocks);
  Slice<format> slice;
  slice.begin = min(set.vocab, block * each);
  slice.end = min(set.vocab, slice.begin + each);
  const auto* student = static_cast<const Element*>(a.student) + row * set.vocab;
  const auto* teacher =
      a.teacher == nullptr ? nullptr : static_cast<const Element*>(a.teacher) + row * set.vocab;
  auto* grad = static_cast<Element*>(a.grad) + row * set.vocab;
  slice.student = student + slice.begin;
  slice.teacher = teacher == nullptr ? nullptr : teacher + slice.begin;
  if (a.on_chip) {
    auto* kept_student = reinterpret_cast<Element*>(on_chip);
    auto* kept_teacher = kept_student + each;
    fetch(kept_student, slice.student, slice.end - slice.begin);
    fetch(kept_teacher, slice.teacher, slice.end - slice.begin);
    slice.student = kept_student;
    slice.teacher = kept_teacher;
    __syncthreads();
  }
  const int64_t sampled = a.sampled == nullptr ? -1 : a.sampled[row];
  double norm[kNormaliserColumns];
  if constexpr (stage == Stage::kFused || stage == Stage::kNormalise) {
    normalise(slice, a, shared, norm);
  } else {
    for (int k = 0; k < kNormaliserColumns; ++k) {
      norm[k] = a.normalisers[row * kNormaliserColumns + k];
    }
  }
  if constexpr (stage == Stage::kNormalise) {
    if (threadIdx.x < kNormaliserColumns) {
      a.normalisers[row * kNormaliserColumns + threadIdx.x] = norm[threadIdx.x];
    }
    return;
  }
  if constexpr (stage == Stage::kSoftmax) {
    if (norm[1] > 0) return write_softmax(slice, a, norm, a.coefficients[row], grad);
    return fill(slice, static_cast<float>(nan_of()), grad);
  }
  const bool sound = norm[1] > 0 && norm[4] > 0;  // the same in all blocks of the row
  double sums[kSumColumns];
  const double both[4] = {norm[0], norm[1], norm[3], norm[4]};
  const RowLogs logs = row_logs(both, set.inverse_t);
  if constexpr (stage == Stage::kGradient) {
    for (int k = 0; k < kSumColumns; ++k) sums[k] = a.sums[row * kSumColumns + k];
  } else {
    if (sound) {
      sum_row<format, divergence>(slice, a, logs, sampled, shared, sums);
    } else {
      for (int k = 0; k < kSumColumns; ++k) sums[k] = nan_of();
    }
  }
  if constexpr (stage == Stage::kSum) {
    if (threadIdx.x < kSumColumns) a.sums[row * kSumColumns + threadIdx.x] = sums[threadIdx.x];
    return;
  }
  if constexpr (stage == Stage::kFused) {
    if (threadIdx.x == 0 && block == 0) {
      a.loss[row] = static_cast<float>(sums[kLoss]);
      for (int k = 0; k < kTelemetryColumns; ++k) {
        if (k == kStudentLogprob - kDivergence || k == kTeacherLogprob - kDivergence) continue;
        a.telemetry[row * kTelemetryColumns + k] = static_cast<float>(sums[kDivergence + k]);
      }
    }
    // The block that holds the sampled token knows its log-probabilities; without one, the first.
    const bool mine = sampled < 0 ? block == 0 : sampled >= slice.begin && sampled < slice.end;
    if (threadIdx.x == 0 && mine) {
      float* columns = a.telemetry + row * kTelemetryColumns - kDivergence;
      columns[kStudentLogprob] = static_cast<float>(sums[kStudentLogprob]);
      columns[kTeacherLogprob] = static_cast<float>(sums[kTeacherLogprob]);
    }
  }
  __syncthreads();  // the gradient may take the place of the logits that were read above
  if (sound) {
    write_gradient<format, divergence>(slice, a, logs, sums[kLost], sums[kPull], grad);
  } else {
    fill(slice, static_cast<float>(nan_of()), grad);
  }
#ifdef OPSD_CUDA_CLUSTERS
  // No block's shared memory may go away while another one reads it.
  if (a.blocks > 1) cg::this_cluster().sync();
#endif
}

}  // namespace
}  // namespace opsd
