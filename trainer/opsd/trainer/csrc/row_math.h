// The arithmetic of one vocabulary entry, written once for the CPU's vectors and for CUDA's floats.
// Included inside a namespace that has defined OPSD_FN and OPSD_FN_PLAIN (how a function is declared),
// OPSD_LOG (of a double), OPSD_INFINITY, F (float or a vector of floats), all(float), magnitude(F),
// exponential(F).{minus_one,value} and log_one_plus(F).
//
// p, q are the student's and the teacher's probability of the entry, d = log q - log p. The
// definitions are those of opsd/trainer/loss/reference.py.

struct Entry {
  F value;  // e
  F pull;   // de/ds without the bare probability: e itself, or JSD's whole derivative
};

template <Divergence divergence>
OPSD_FN Entry entry_of(F p, F q, F d, float beta) {
  const F zero = all(0.0f);
  Entry out;
  if constexpr (divergence == Divergence::kForwardKL) {
    out.value = q > 0.0f ? q * d : zero;
    out.pull = out.value;
  } else if constexpr (divergence == Divergence::kReverseKL) {
    out.value = p > 0.0f ? -(p * d) : zero;
    out.pull = out.value;
  } else {
    // With w = exp(-|d|): the logs of q and p over the mixture, without overflow or cancellation.
    const F w_minus_one = exponential(-magnitude(d)).minus_one;
    const auto teacher_leads = d >= 0.0f;
    const F share = teacher_leads ? all(1.0f - beta) : all(beta);
    const F leader = -log_one_plus(share * w_minus_one);
    const F t_over_m = teacher_leads ? leader : leader + d;
    const F s_over_m = teacher_leads ? leader - d : leader;
    out.pull = p > 0.0f ? (1.0f - beta) * (p * s_over_m) : zero;
    out.value = (q > 0.0f ? beta * (q * t_over_m) : zero) + out.pull;
  }
  return out;
}

// What clipping leaves of an entry's derivative.
OPSD_FN F kept(F value, Clip clip, float clip_value) {
  if (clip == Clip::kNone) return all(1.0f);
  const F left = clip == Clip::kClamp ? all(0.0f) : clip_value / value;
  return value > clip_value ? left : all(1.0f);
}

// dL/dz = (g - p sum(g)) / T with g the kept derivatives. The bare probabilities in g sum to 1 but
// for what clipping took (`lost`), so that
//
//     dL/dz = (own_part + p * share_of_p) / T
//
// and equal rows give a gradient of exactly 0.
template <Divergence divergence>
OPSD_FN F own_part(F p, F q, Entry e, F keep) {
  if constexpr (divergence == Divergence::kForwardKL) return p - keep * q;
  const F pulled = keep > 0.0f ? keep * e.pull : all(0.0f);
  if constexpr (divergence == Divergence::kReverseKL) return pulled - (1.0f - keep) * p;
  return pulled;
}

template <Divergence divergence>
OPSD_FN float share_of_p(double lost, double pull) {
  if constexpr (divergence == Divergence::kForwardKL) return static_cast<float>(-lost);
  if constexpr (divergence == Divergence::kReverseKL) return static_cast<float>(lost - pull);
  return static_cast<float>(-pull);
}

// One row's distributions. `d` keeps the digits of rows that are close, and those of rows that are
// far apart by a constant.
struct RowLogs {
  float student_top, teacher_top;              // greatest logits
  float student_log_sum, teacher_log_sum;      // log of the sum of exp((logit - top) / T)
  float student_scale, teacher_scale;          // 1 / that sum
  float student_origin, teacher_origin, gap;   // d = ((t - t_origin) - (s - s_origin)) / T - gap
};

// norm: student's greatest logit and sum of exponentials, then the teacher's.
OPSD_FN_PLAIN RowLogs row_logs(const double* norm, float inverse_t) {
  const double log_student = OPSD_LOG(norm[1]), log_teacher = OPSD_LOG(norm[3]);
  RowLogs out;
  out.student_top = static_cast<float>(norm[0]);
  out.teacher_top = static_cast<float>(norm[2]);
  out.student_log_sum = static_cast<float>(log_student);
  out.teacher_log_sum = static_cast<float>(log_teacher);
  out.student_scale = static_cast<float>(1.0 / norm[1]);
  out.teacher_scale = static_cast<float>(1.0 / norm[3]);
  const double shift = (norm[2] - norm[0]) * inverse_t;
  const bool far_apart = shift > 16.0 || shift < -16.0;
  out.student_origin = far_apart ? out.student_top : 0.0f;
  out.teacher_origin = far_apart ? out.teacher_top : 0.0f;
  out.gap = static_cast<float>((far_apart ? 0.0 : shift) + (log_teacher - log_student));
  return out;
}

struct EntryLogs {
  F student, teacher;  // log p, log q
  F difference;        // d
};

OPSD_FN EntryLogs entry_logs(F student, F teacher, const RowLogs& row, float inverse_t) {
  EntryLogs out;
  out.student = (student - row.student_top) * inverse_t - row.student_log_sum;
  out.teacher = (teacher - row.teacher_top) * inverse_t - row.teacher_log_sum;
  const F between = (teacher - row.teacher_origin) - (student - row.student_origin);
  out.difference = between * inverse_t - row.gap;
  return out;
}

// A logit through the soft cap: cap * tanh(x / cap). -inf, an entry that is masked, stays so.
OPSD_FN F capped(F x, float cap) {
  if (!(cap > 0.0f)) return x;
  const F y = x / cap;
  const F bounded = magnitude(y) < 15.0f ? magnitude(y) : all(15.0f);
  const F up = exponential(2.0f * bounded).minus_one;  // tanh(y) = (e^2y - 1) / (e^2y + 1)
  const F tanh = cap * (up / (up + 2.0f));
  const F signed_tanh = y < 0.0f ? -tanh : tanh;
  return x == all(-OPSD_INFINITY) ? x : signed_tanh;
}

// The cap's derivative, from its value.
OPSD_FN F cap_slope(F capped_x, float cap) {
  if (!(cap > 0.0f)) return all(1.0f);
  const F ratio = capped_x / cap;
  const F slope = 1.0f - ratio * ratio;
  return slope > 0.0f ? slope : all(0.0f);
}
