// opsd::clipped_kl_rows: the clipped forward KL of every row with its telemetry and its gradient
// along the student's logits, fused: two passes over a row for the softmax statistics of student
// and teacher, one for the entries and one for the gradient, nothing of the row's size in between.
//
// The definition, and the meaning of the telemetry columns, is
// opsd/trainer/loss/reference.py; tests compare the two. Stable ABI only, so that one build
// serves every later torch.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTelemetryColumns = 7;

enum class Clip { kNone, kClamp, kScale };

Clip parse_clip(const std::string& name) {
  if (name == "none") return Clip::kNone;
  if (name == "clamp") return Clip::kClamp;
  STD_TORCH_CHECK(name == "scale", "clip must be none, clamp or scale, got ", name);
  return Clip::kScale;
}

// log p_v = logits[v] / T - log_normaliser.
template <typename scalar_t>
float log_normaliser(const scalar_t* logits, int64_t vocab, float inverse_t) {
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t v = 0; v < vocab; ++v) top = std::max(top, static_cast<float>(logits[v]));
  top *= inverse_t;
  double sum = 0;  // 150,000 terms: a float accumulator loses up to 1e-4 of it
  for (int64_t v = 0; v < vocab; ++v) {
    sum += std::exp(static_cast<float>(logits[v]) * inverse_t - top);
  }
  return top + static_cast<float>(std::log(sum));
}

template <typename scalar_t>
struct RowInputs {
  const scalar_t* student;
  const scalar_t* teacher;
  int64_t vocab;
  int64_t sampled;  // -1: not given
  Clip clip;
  float clip_value;
  float inverse_t;
};

// Writes one row and returns its loss.
template <typename scalar_t>
float one_row(const RowInputs<scalar_t>& in, float* telemetry, scalar_t* grad) {
  const float student_norm = log_normaliser(in.student, in.vocab, in.inverse_t);
  const float teacher_norm = log_normaliser(in.teacher, in.vocab, in.inverse_t);
  const auto log_s = [&](int64_t v) {
    return static_cast<float>(in.student[v]) * in.inverse_t - student_norm;
  };
  const auto log_t = [&](int64_t v) {
    return static_cast<float>(in.teacher[v]) * in.inverse_t - teacher_norm;
  };
  // What is left of the teacher's pull on an entry: 1, 0 (clamp) or c / e (scale).
  const auto kept = [&](float entry) {
    if (in.clip == Clip::kNone || entry <= in.clip_value) return 1.0f;
    return in.clip == Clip::kClamp ? 0.0f : in.clip_value / entry;
  };
  double loss = 0, divergence = 0, positive = 0, clipped_mass = 0;
  double student_entropy = 0, teacher_entropy = 0, kept_mass = 0;
  for (int64_t v = 0; v < in.vocab; ++v) {
    const float s = log_s(v), t = log_t(v);
    const float p = std::exp(s), q = std::exp(t);
    const float entry = q > 0 ? q * (t - s) : 0.0f;
    divergence += entry;
    positive += std::max(entry, 0.0f);
    loss += std::min(entry, in.clip_value);
    clipped_mass += entry > in.clip_value ? q : 0.0f;
    kept_mass += kept(entry) * q;
    student_entropy -= p > 0 ? p * s : 0.0f;
    teacher_entropy -= q > 0 ? q * t : 0.0f;
  }
  for (int64_t v = 0; v < in.vocab; ++v) {
    const float s = log_s(v), t = log_t(v);
    const float q = std::exp(t);
    const float entry = q > 0 ? q * (t - s) : 0.0f;
    const float slope = std::exp(s) * static_cast<float>(kept_mass) - kept(entry) * q;
    grad[v] = static_cast<scalar_t>(slope * in.inverse_t);
  }
  const double columns[kTelemetryColumns] = {
      divergence, positive, clipped_mass, student_entropy, teacher_entropy,
      in.sampled < 0 ? 0.0f : log_s(in.sampled), in.sampled < 0 ? 0.0f : log_t(in.sampled)};
  for (int64_t k = 0; k < kTelemetryColumns; ++k) telemetry[k] = static_cast<float>(columns[k]);
  return static_cast<float>(loss);
}

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

template <typename scalar_t>
void all_rows(const Tensor& student, const Tensor& teacher, const bool* mask,
              const int64_t* sampled, RowInputs<scalar_t> base, const Outputs& out) {
  const int64_t vocab = student.size(1);
  const auto* student_data = static_cast<const scalar_t*>(student.const_data_ptr());
  const auto* teacher_data = static_cast<const scalar_t*>(teacher.const_data_ptr());
  auto* loss = static_cast<float*>(std::get<0>(out).mutable_data_ptr());
  auto* telemetry = static_cast<float*>(std::get<1>(out).mutable_data_ptr());
  auto* grad = static_cast<scalar_t*>(std::get<2>(out).mutable_data_ptr());
  torch::stable::parallel_for(0, student.size(0), 1, [&](int64_t begin, int64_t end) {
    RowInputs<scalar_t> row = base;
    for (int64_t r = begin; r < end; ++r) {
      float* row_telemetry = telemetry + r * kTelemetryColumns;
      if (mask != nullptr && !mask[r]) {
        loss[r] = 0;
        std::fill_n(row_telemetry, kTelemetryColumns, 0.0f);
        std::fill_n(grad + r * vocab, vocab, static_cast<scalar_t>(0.0f));
        continue;
      }
      row.student = student_data + r * vocab;
      row.teacher = teacher_data + r * vocab;
      row.sampled = sampled == nullptr ? -1 : sampled[r];
      loss[r] = one_row(row, row_telemetry, grad + r * vocab);
    }
  });
}

// A contiguous copy of an optional [R] tensor, checked.
std::optional<Tensor> per_row(const std::optional<Tensor>& given, const char* name, int64_t rows,
                              ScalarType dtype) {
  if (!given.has_value()) return std::nullopt;
  STD_TORCH_CHECK(given->dim() == 1 && given->size(0) == rows, name, " must have one entry a row");
  STD_TORCH_CHECK(given->scalar_type() == dtype, name, " has the wrong dtype");
  return torch::stable::contiguous(*given);
}

Outputs clipped_kl_rows(Tensor student, Tensor teacher, std::optional<Tensor> row_mask,
                        std::optional<Tensor> sampled_ids, std::string clip, double clip_value,
                        double temperature) {
  STD_TORCH_CHECK(student.dim() == 2, "student_logits must be [rows, vocabulary]");
  STD_TORCH_CHECK(teacher.dim() == 2 && teacher.size(0) == student.size(0) &&
                      teacher.size(1) == student.size(1),
                  "teacher_logits must have the shape of student_logits");
  const ScalarType dtype = student.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "student_logits must be float32 or bfloat16");
  STD_TORCH_CHECK(teacher.scalar_type() == dtype, "teacher_logits must have student_logits' dtype");
  STD_TORCH_CHECK(temperature > 0, "temperature must be above 0");
  const int64_t rows = student.size(0), vocab = student.size(1);
  student = torch::stable::contiguous(student);
  teacher = torch::stable::contiguous(teacher);
  const auto mask = per_row(row_mask, "row_mask", rows, ScalarType::Bool);
  const auto sampled = per_row(sampled_ids, "sampled_ids", rows, ScalarType::Long);
  const auto* mask_data =
      mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr;
  const auto* sampled_data =
      sampled ? static_cast<const int64_t*>(sampled->const_data_ptr()) : nullptr;
  for (int64_t r = 0; sampled_data != nullptr && r < rows; ++r) {
    STD_TORCH_CHECK(sampled_data[r] >= 0 && sampled_data[r] < vocab,
                    "sampled_ids must lie inside the vocabulary, got ", sampled_data[r]);
  }
  const Outputs out{
      torch::stable::new_empty(student, {rows}, ScalarType::Float),
      torch::stable::new_empty(student, {rows, kTelemetryColumns}, ScalarType::Float),
      torch::stable::new_empty(student, {rows, vocab}, dtype)};
  const Clip mode = parse_clip(clip);
  const float bound = mode == Clip::kNone ? std::numeric_limits<float>::infinity()
                                          : static_cast<float>(clip_value);
  const auto inverse_t = static_cast<float>(1.0 / temperature);
  if (dtype == ScalarType::Float) {
    all_rows<float>(student, teacher, mask_data, sampled_data,
                    {nullptr, nullptr, vocab, -1, mode, bound, inverse_t}, out);
  } else {
    all_rows<BFloat16>(student, teacher, mask_data, sampled_data,
                       {nullptr, nullptr, vocab, -1, mode, bound, inverse_t}, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(opsd, m) {
  m.def(
      "clipped_kl_rows(Tensor student_logits, Tensor teacher_logits, Tensor? row_mask, "
      "Tensor? sampled_ids, str clip, float clip_value, float temperature) "
      "-> (Tensor loss_rows, Tensor telemetry_rows, Tensor grad_student_logits)");
}

STABLE_TORCH_LIBRARY_IMPL(opsd, CPU, m) {
  m.impl("clipped_kl_rows", TORCH_BOX(&clipped_kl_rows));
}
