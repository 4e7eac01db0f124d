// The body of a row kernel, written with GCC's vector extensions for OPSD_LANES floats at a time.
// Included once by each row_kernel_*.cpp, inside a namespace without a name and after a
// `#pragma GCC target`. It calls nothing with external linkage but the C library: an inline function
// of the standard library that the linker merges could otherwise carry instructions that another
// processor lacks.
//
// Four passes over a row: the greatest logits, the normalisers, the sums, the gradient. The fused
// kernel keeps the exponentials of the second pass in scratch memory (which fits into the second
// level's cache for vocabularies of today), the staged ones compute them anew.

constexpr int kLanes = OPSD_LANES;
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

constexpr float kInfinity = __builtin_inff();
constexpr int kFlush = 32;  // vectors summed in fp32 before they go into an fp64 sum

inline Floats all(float x) { return Floats{} + x; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats magnitude(Floats x) { return (Floats)((Words)x & 0x7fffffffu); }

inline double sum_of(Floats x) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// --- elementary functions: Cephes' single-precision polynomials, at most 2 ulp off

struct Exponential {
  Floats minus_one;  // exp(x) - 1, accurate near 0
  Floats value;      // exp(x); 0 below the smallest normal number
};

// x at most 88; NaN is not looked at (a row that holds one never comes here).
inline Exponential exponential(Floats x) {
  const Floats low = all(-87.3f);
  const Floats bounded = larger(x, low);
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (bounded * 1.44269504f + magic) - magic;
  const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  const Floats g = y * (r * r) + r;  // exp(r) - 1
  const Ints exponent = __builtin_convertvector(n, Ints);
  const Floats scale = (Floats)((exponent + 127) << 23);
  const Floats minus_one = scale * g + (scale - 1.0f);
  const auto underflow = x < low;
  return {underflow ? all(-1.0f) : minus_one, underflow ? all(0.0f) : scale * g + scale};
}

// log(1 + u) for u in (-1, 0].
inline Floats log_one_plus(Floats u) {
  const Floats whole = larger(u + 1.0f, all(1.17549435e-38f));
  const Words bits = (Words)whole;
  // The mantissa in [1/sqrt(2), sqrt(2)), and the exponent that belongs to it.
  const Words shifted = bits - 0x3f3504f3u;
  const Ints e = (Ints)shifted >> 23;
  const Floats mantissa = (Floats)((shifted & 0x007fffffu) + 0x3f3504f3u);
  const auto near = u > -0.25f;  // 1 + u has lost bits that u still has
  const Floats x = near ? u : mantissa - 1.0f;
  const Floats k = near ? all(0.0f) : __builtin_convertvector(e, Floats);
  const Floats z = x * x;
  Floats y = x * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * x + 1.1676998740e-1f;
  y = y * x - 1.2420140846e-1f;
  y = y * x + 1.4249322787e-1f;
  y = y * x - 1.6668057665e-1f;
  y = y * x + 2.0000714765e-1f;
  y = y * x - 2.4999993993e-1f;
  y = y * x + 3.3333331174e-1f;
  y = y * x * z;
  y = y - k * 2.12194440e-4f;
  y = y - z * 0.5f;
  return (x + y) + k * 0.693359375f;
}

// --- rows in memory, a vector at a time; `count` below kLanes is the row's end

template <Format format>
struct Memory;

template <>
struct Memory<Format::kFloat32> {
  using Element = float;
  using Vector = Floats;
  static Floats widen(Vector x) { return x; }
  static Vector narrow(Floats x) { return x; }
};

template <>
struct Memory<Format::kBFloat16> {
  using Element = uint16_t;
  using Vector = Halves;
  static Floats widen(Vector x) { return (Floats)(__builtin_convertvector(x, Words) << 16); }
  static Vector narrow(Floats x) {
    const Words bits = (Words)x;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // ties to even
    const Words kept = x == x ? rounded : Words{} + 0x7fc0u;
    return __builtin_convertvector(kept, Halves);
  }
};

template <>
struct Memory<Format::kFloat16> {
  // In whole numbers: not every compiler has the type.
  using Element = uint16_t;
  using Vector = Halves;
  static Floats widen(Vector x) {
    const Words bits = __builtin_convertvector(x, Words);
    const Words size = bits & 0x7fffu;
    const Words normal = (size << 13) + (112u << 23);
    const Words special = (size << 13) | 0x7f800000u;
    const Floats subnormal = __builtin_convertvector(size, Floats) * 5.9604644775390625e-8f;
    Words wide = size >= 0x7c00u ? special : normal;
    wide = size < 0x0400u ? (Words)subnormal : wide;
    return (Floats)(wide | ((bits & 0x8000u) << 16));
  }
  static Vector narrow(Floats x) {
    const Words bits = (Words)x;
    const Words size = bits & 0x7fffffffu;
    const Words normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
    // Adding 1/2 leaves a subnormal's bits, rounded, at the end of the sum's.
    const Words subnormal = (Words)((Floats)size + 0.5f) - 0x3f000000u;
    Words half = size < 0x38800000u ? subnormal : normal;
    half = size >= 0x477ff000u ? Words{} + 0x7c00u : half;
    half = size > 0x7f800000u ? Words{} + 0x7e00u : half;
    return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), Halves);
  }
};

// What is beyond the row's end reads as -inf: an entry of probability 0.
template <Format format>
inline Floats load(const void* row, int64_t at, int64_t count) {
  using M = Memory<format>;
  const auto* from = static_cast<const typename M::Element*>(row) + at;
  typename M::Vector raw{};
  if (count >= kLanes) {
    __builtin_memcpy(&raw, from, sizeof raw);
    return M::widen(raw);
  }
  for (int64_t i = 0; i < count; ++i) raw[i] = from[i];
  float wide[kLanes];
  const Floats read = M::widen(raw);
  __builtin_memcpy(wide, &read, sizeof wide);
  for (int64_t i = count; i < kLanes; ++i) wide[i] = -kInfinity;
  Floats x;
  __builtin_memcpy(&x, wide, sizeof x);
  return x;
}

template <Format format>
inline void store(void* row, int64_t at, int64_t count, Floats x) {
  using M = Memory<format>;
  auto* to = static_cast<typename M::Element*>(row) + at;
  const typename M::Vector raw = M::narrow(x);
  if (count >= kLanes) {
    __builtin_memcpy(to, &raw, sizeof raw);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = raw[i];
}

template <Format format>
inline float element(const void* row, int64_t at) {
  const Floats x = load<format>(row, at, 1);
  return x[0];
}

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
