// The body of a row kernel, written with the compiler's vector extensions for OPSD_LANES floats at a
// time. Included once by each row_kernel_*.cpp, inside a namespace without a name and after a pragma
// that chooses the instruction set. It calls nothing with external linkage but the C library: an inline function
// of the standard library that the linker merges could otherwise carry instructions that another
// processor lacks.
//
// Four passes over a row: the greatest logits, the normalisers, the sums, the gradient. The fused
// kernel keeps the exponentials of the second pass in scratch memory (which fits into the second
// level's cache for vocabularies of today), the staged ones compute them anew.

#include "row_vectors.h"

// --- one row

#define OPSD_FN inline
#define OPSD_FN_PLAIN inline
#define OPSD_LOG __builtin_log
#define OPSD_INFINITY __builtin_inff()
using F = Floats;
#include "row_math.h"

// Vectors summed in fp32, flushed now and then into an fp64 sum.
struct Total {
  double whole = 0;
  Floats partial{};
  void flush() {
    whole += sum_of(partial);
    partial = Floats{};
  }
};

template <Format format>
inline Floats logit(const void* row, int64_t v, const RowSettings& set) {
  return capped(load<format>(row, v, set.vocab - v), set.softcap);
}

// Writes top, sum and weighted; `kept_exponentials` (may be null) receives exp((logit - top) / T).
template <Format format>
void normalise_one(const void* row, const RowSettings& set, double* out, float* kept_exponentials) {
  Floats tops = all(-kInfinity);
  Ints unordered{};
  for (int64_t v = 0; v < set.vocab; v += kLanes) {
    const Floats x = load<format>(row, v, set.vocab - v);
    tops = larger(x, tops);
    unordered |= x != x;
  }
  float top = -kInfinity;
  bool bad = false;
  for (int i = 0; i < kLanes; ++i) {
    top = tops[i] > top ? tops[i] : top;
    bad = bad || unordered[i] != 0;
  }
  if (bad || top == kInfinity) {
    out[0] = out[1] = out[2] = __builtin_nan("");
    return;
  }
  out[0] = top;
  out[1] = out[2] = 0;
  if (top == -kInfinity) return;  // a shard of the vocabulary may be masked as a whole
  if (set.softcap > 0.0f) {
    const Floats cap = capped(all(top), set.softcap);
    top = cap[0];
    out[0] = top;
  }
  Total sum, weighted;
  int since = 0;
  for (int64_t v = 0; v < set.vocab; v += kLanes) {
    const Floats x = (logit<format>(row, v, set) - top) * set.inverse_t;
    const Floats share = exponential(x).value;
    if (kept_exponentials != nullptr) __builtin_memcpy(kept_exponentials + v, &share, sizeof share);
    sum.partial += share;
    weighted.partial += share > 0.0f ? share * x : Floats{};
    if (++since == kFlush) {
      sum.flush();
      weighted.flush();
      since = 0;
    }
  }
  sum.flush();
  weighted.flush();
  out[1] = sum.whole;
  out[2] = weighted.whole;
}

template <Format format>
void normalise(const RowSettings& set, const Row& row) {
  normalise_one<format>(row.student, set, row.normalisers, nullptr);
  if (row.teacher == nullptr) {
    row.normalisers[3] = row.normalisers[4] = row.normalisers[5] = 0;
  } else {
    normalise_one<format>(row.teacher, set, row.normalisers + 3, nullptr);
  }
}

// Whether the row has both distributions.
inline bool sound(const double* normalisers) {
  return normalisers[1] > 0 && normalisers[4] > 0;
}

inline RowLogs logs_of(const RowSettings& set, const Row& row) {
  const double norm[4] = {row.normalisers[0], row.normalisers[1], row.normalisers[3],
                          row.normalisers[4]};
  return row_logs(norm, set.inverse_t);
}

// As the definition has it: NaN everywhere, for the caller to find.
inline void spoil(double* sums) {
  for (int k = 0; k < kSumColumns; ++k) sums[k] = __builtin_nan("");
}

template <Format format>
void fill(const RowSettings& set, void* grad, float x) {
  for (int64_t v = 0; v < set.vocab; v += kLanes) store<format>(grad, v, set.vocab - v, all(x));
}

// The sums pass. With scratch, exponentials come from it, and the two parts of the gradient go
// there: own_part into the first half, p into the second.
template <Format format, Divergence divergence>
void sum_row(const RowSettings& set, const Row& row, const RowLogs& logs, float* scratch) {
  constexpr int kCount = 8;
  Total totals[kCount];
  float* first = scratch;
  float* second = scratch == nullptr ? nullptr : scratch + padded(set.vocab);
  const Floats zero{};
  int since = 0;
  for (int64_t v = 0; v < set.vocab; v += kLanes) {
    const Floats student = logit<format>(row.student, v, set);
    const Floats teacher = logit<format>(row.teacher, v, set);
    const EntryLogs log = entry_logs(student, teacher, logs, set.inverse_t);
    Floats p, q;
    if (scratch == nullptr) {
      p = exponential((student - logs.student_top) * set.inverse_t).value;
      q = exponential((teacher - logs.teacher_top) * set.inverse_t).value;
    } else {
      __builtin_memcpy(&p, first + v, sizeof p);
      __builtin_memcpy(&q, second + v, sizeof q);
    }
    p *= logs.student_scale;
    q *= logs.teacher_scale;
    const Entry e = entry_of<divergence>(p, q, log.difference, set.jsd_beta);
    const Floats keep = kept(e.value, set.clip, set.clip_value);
    if (scratch != nullptr) {
      const Floats own = own_part<divergence>(p, q, e, keep);
      __builtin_memcpy(first + v, &own, sizeof own);
      __builtin_memcpy(second + v, &p, sizeof p);
    }
    totals[0].partial += smaller(e.value, all(set.clip_value));
    totals[1].partial += e.value;
    totals[2].partial += larger(e.value, zero);
    totals[3].partial += e.value > set.clip_value ? q : zero;
    totals[4].partial -= p > 0.0f ? p * log.student : zero;
    totals[5].partial -= q > 0.0f ? q * log.teacher : zero;
    totals[6].partial += (1.0f - keep) * (divergence == Divergence::kForwardKL ? q : p);
    totals[7].partial += keep > 0.0f ? keep * e.pull : zero;
    if (++since == kFlush) {
      for (Total& total : totals) total.flush();
      since = 0;
    }
  }
  constexpr SumColumn columns[kCount] = {kLoss,           kDivergence,     kPositive, kClippedMass,
                                         kStudentEntropy, kTeacherEntropy, kLost,     kPull};
  for (int k = 0; k < kCount; ++k) {
    totals[k].flush();
    row.sums[columns[k]] = totals[k].whole;
  }
  row.sums[kStudentLogprob] = row.sums[kTeacherLogprob] = 0;
  if (row.sampled < 0) return;
  const Floats student = capped(all(element<format>(row.student, row.sampled)), set.softcap);
  const Floats teacher = capped(all(element<format>(row.teacher, row.sampled)), set.softcap);
  const EntryLogs log = entry_logs(student, teacher, logs, set.inverse_t);
  row.sums[kStudentLogprob] = log.student[0];
  row.sums[kTeacherLogprob] = log.teacher[0];
}

template <Format format, Divergence divergence>
void write_gradient(const RowSettings& set, const Row& row, const RowLogs& logs) {
  const float share = share_of_p<divergence>(row.sums[kLost], row.sums[kPull]);
  const float scale = set.inverse_t;
  for (int64_t v = 0; v < set.vocab; v += kLanes) {
    const Floats student = logit<format>(row.student, v, set);
    const Floats teacher = logit<format>(row.teacher, v, set);
    const EntryLogs log = entry_logs(student, teacher, logs, set.inverse_t);
    const Floats p = exponential((student - logs.student_top) * set.inverse_t).value *
                     logs.student_scale;
    const Floats q = exponential((teacher - logs.teacher_top) * set.inverse_t).value *
                     logs.teacher_scale;
    const Entry e = entry_of<divergence>(p, q, log.difference, set.jsd_beta);
    const Floats keep = kept(e.value, set.clip, set.clip_value);
    const Floats own = own_part<divergence>(p, q, e, keep);
    const Floats grad = (own + p * share) * scale * cap_slope(student, set.softcap);
    store<format>(row.grad, v, set.vocab - v, grad);
  }
}

// From what sum_row left in scratch.
template <Format format, Divergence divergence>
void write_kept_gradient(const RowSettings& set, const Row& row, const float* scratch) {
  const float share = share_of_p<divergence>(row.sums[kLost], row.sums[kPull]);
  const float scale = set.inverse_t;
  const float* second = scratch + padded(set.vocab);
  for (int64_t v = 0; v < set.vocab; v += kLanes) {
    Floats own, p;
    __builtin_memcpy(&own, scratch + v, sizeof own);
    __builtin_memcpy(&p, second + v, sizeof p);
    Floats grad = (own + p * share) * scale;
    if (set.softcap > 0.0f) grad *= cap_slope(logit<format>(row.student, v, set), set.softcap);
    store<format>(row.grad, v, set.vocab - v, grad);
  }
}

template <Format format>
void fused(const RowSettings& set, const Row& row, float* scratch) {
  normalise_one<format>(row.student, set, row.normalisers, scratch);
  normalise_one<format>(row.teacher, set, row.normalisers + 3, scratch + padded(set.vocab));
  if (!sound(row.normalisers)) {
    spoil(row.sums);
    fill<format>(set, row.grad, __builtin_nanf(""));
    return;
  }
  const RowLogs logs = logs_of(set, row);
  const auto finish = [&]<Divergence divergence>() {
    sum_row<format, divergence>(set, row, logs, scratch);
    write_kept_gradient<format, divergence>(set, row, scratch);
  };
  switch (set.divergence) {
    case Divergence::kForwardKL:
      return finish.template operator()<Divergence::kForwardKL>();
    case Divergence::kReverseKL:
      return finish.template operator()<Divergence::kReverseKL>();
    case Divergence::kJSD:
      return finish.template operator()<Divergence::kJSD>();
  }
}

template <Format format>
void sum(const RowSettings& set, const Row& row) {
  if (!sound(row.normalisers)) return spoil(row.sums);
  const RowLogs logs = logs_of(set, row);
  switch (set.divergence) {
    case Divergence::kForwardKL:
      return sum_row<format, Divergence::kForwardKL>(set, row, logs, nullptr);
    case Divergence::kReverseKL:
      return sum_row<format, Divergence::kReverseKL>(set, row, logs, nullptr);
    case Divergence::kJSD:
      return sum_row<format, Divergence::kJSD>(set, row, logs, nullptr);
  }
}

template <Format format>
void gradient(const RowSettings& set, const Row& row) {
  if (!sound(row.normalisers)) return fill<format>(set, row.grad, __builtin_nanf(""));
  const RowLogs logs = logs_of(set, row);
  switch (set.divergence) {
    case Divergence::kForwardKL:
      return write_gradient<format, Divergence::kForwardKL>(set, row, logs);
    case Divergence::kReverseKL:
      return write_gradient<format, Divergence::kReverseKL>(set, row, logs);
    case Divergence::kJSD:
      return write_gradient<format, Divergence::kJSD>(set, row, logs);
  }
}

template <Format format>
void softmax(const RowSettings& set, const Row& row, float coefficient) {
  if (!(row.normalisers[1] > 0)) return fill<format>(set, row.grad, __builtin_nanf(""));
  const auto top = static_cast<float>(row.normalisers[0]);
  const auto scale = static_cast<float>(coefficient * set.inverse_t /
                                        row.normalisers[1]);
  for (int64_t v = 0; v < set.vocab; v += kLanes) {
    const Floats x = logit<format>(row.student, v, set);
    const Floats share = exponential((x - top) * set.inverse_t).value;
    store<format>(row.grad, v, set.vocab - v, share * scale * cap_slope(x, set.softcap));
  }
}

template <Format format>
constexpr RowKernels kKernels = {&fused<format>, &normalise<format>, &sum<format>,
                                 &gradient<format>, &softmax<format>};

inline RowKernels kernels_for(Format format) {
  switch (format) {
    case Format::kFloat32:
      return kKernels<Format::kFloat32>;
    case Format::kBFloat16:
      return kKernels<Format::kBFloat16>;
    case Format::kFloat16:
      return kKernels<Format::kFloat16>;
  }
  return {};
}
