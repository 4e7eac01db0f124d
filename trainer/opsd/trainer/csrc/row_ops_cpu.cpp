// The row operators on the CPU: one thread a row.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <new>

#include "row_ops.h"

namespace opsd {
namespace {

using Maybe = std::optional<Tensor>;
using Name = std::string;

// What one thread needs for fused rows; aligned for the widest vectors.
struct Scratch {
  explicit Scratch(int64_t floats)
      : data(static_cast<float*>(::operator new(sizeof(float) * floats, std::align_val_t(64)))) {}
  ~Scratch() { ::operator delete(data, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data;
};

void check_sampled(const Logits& logits, int64_t lowest) {
  const auto* sampled = data_of<int64_t>(logits.sampled);
  for (int64_t r = 0; sampled != nullptr && r < logits.rows; ++r) {
    STD_TORCH_CHECK(sampled[r] >= lowest && sampled[r] < logits.vocab,
                    "sampled_ids must lie inside the vocabulary, got ", sampled[r]);
  }
}

// Calls work(row number, Row with its logits and gradient, scratch) for every row, on all cores.
template <class Work>
void each_row(const Logits& logits, void* grad, int64_t scratch_floats, const Work& work) {
  const int64_t row_bytes = logits.vocab * bytes_of(logits.format);
  const auto* student = static_cast<const char*>(logits.student.const_data_ptr());
  const auto* teacher = data_of<char>(logits.teacher);
  const auto* sampled = data_of<int64_t>(logits.sampled);
  torch::stable::parallel_for(0, logits.rows, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_floats);
    for (int64_t r = begin; r < end; ++r) {
      Row row{};
      row.student = student + r * row_bytes;
      row.teacher = teacher == nullptr ? nullptr : teacher + r * row_bytes;
      row.sampled = sampled == nullptr ? -1 : sampled[r];
      row.grad = grad == nullptr ? nullptr : static_cast<char*>(grad) + r * row_bytes;
      work(r, row, scratch.data);
    }
  });
}

std::tuple<Tensor, Tensor> fused(const Logits& logits, RowSettings set, void* grad) {
  set.vocab = logits.vocab;
  check_sampled(logits, 0);
  Tensor loss = torch::stable::new_empty(logits.student, {logits.rows}, ScalarType::Float);
  Tensor telemetry = logits.new_rows(kTelemetryColumns, ScalarType::Float);
  auto* loss_data = static_cast<float*>(loss.mutable_data_ptr());
  auto* telemetry_data = static_cast<float*>(telemetry.mutable_data_ptr());
  const RowKernels kernels = best_row_kernels(logits.format, nullptr);
  each_row(
      logits, grad, 2 * padded(logits.vocab),
      [&](int64_t r, Row& row, float* scratch) {
        double normalisers[kNormaliserColumns], sums[kSumColumns];
        row.normalisers = normalisers;
        row.sums = sums;
        kernels.fused(set, row, scratch);
        loss_data[r] = static_cast<float>(sums[kLoss]);
        for (int k = 0; k < kTelemetryColumns; ++k) {
          telemetry_data[r * kTelemetryColumns + k] = static_cast<float>(sums[kDivergence + k]);
        }
      });
  return {loss, telemetry};
}

std::tuple<Tensor, Tensor, Tensor> clipped_kl_rows(Tensor student, Tensor teacher,
                                                   Maybe sampled, Name divergence, double jsd_beta,
                                                   Name clip, double clip_value,
                                                   double temperature, double softcap) {
  const Logits logits(student, teacher, sampled, false);
  Tensor grad = logits.new_rows(logits.vocab, student.scalar_type());
  auto [loss, telemetry] = fused(
      logits, settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap),
      grad.mutable_data_ptr());
  return {loss, telemetry, grad};
}

std::tuple<Tensor, Tensor> clipped_kl_rows_(Tensor student, Tensor teacher,
                                            Maybe sampled, Name divergence, double jsd_beta,
                                            Name clip, double clip_value, double temperature,
                                            double softcap) {
  return fused(
      Logits(student, teacher, sampled, true),
      settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap),
      student.mutable_data_ptr());
}

Tensor kl_normalisers(Tensor student, Maybe teacher, double temperature,
                      double softcap) {
  const Logits logits(student, teacher, std::nullopt, false);
  RowSettings set = settings_of("forward_kl", 0.5, "none", 0, temperature, softcap);
  set.vocab = logits.vocab;
  Tensor out = logits.new_rows(kNormaliserColumns, ScalarType::Double);
  auto* data = static_cast<double*>(out.mutable_data_ptr());
  const RowKernels kernels = best_row_kernels(logits.format, nullptr);
  each_row(
      logits, nullptr, 0,
      [&](int64_t r, Row& row, float*) {
        row.normalisers = data + r * kNormaliserColumns;
        kernels.normalise(set, row);
      });
  return out;
}

Tensor kl_sums(Tensor student, Tensor teacher, Tensor normalisers, Maybe sampled,
               Name divergence, double jsd_beta, Name clip, double clip_value, double temperature,
               double softcap) {
  const Logits logits(student, teacher, sampled, false);
  check_sampled(logits, -1);
  RowSettings set = settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap);
  set.vocab = logits.vocab;
  const auto norm =
      per_row(normalisers, "normalisers", logits.rows, kNormaliserColumns, ScalarType::Double);
  Tensor out = logits.new_rows(kSumColumns, ScalarType::Double);
  auto* data = static_cast<double*>(out.mutable_data_ptr());
  auto* norm_data = const_cast<double*>(data_of<double>(norm));
  const RowKernels kernels = best_row_kernels(logits.format, nullptr);
  each_row(
      logits, nullptr, 0,
      [&](int64_t r, Row& row, float*) {
        row.normalisers = norm_data + r * kNormaliserColumns;
        row.sums = data + r * kSumColumns;
        kernels.sum(set, row);
      });
  return out;
}

void kl_gradient_(Tensor student, Tensor teacher, Tensor normalisers, Tensor sums,
                  Name divergence, double jsd_beta, Name clip, double clip_value,
                  double temperature, double softcap) {
  const Logits logits(student, teacher, std::nullopt, true);
  RowSettings set =
      settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap);
  set.vocab = logits.vocab;
  const auto norm =
      per_row(normalisers, "normalisers", logits.rows, kNormaliserColumns, ScalarType::Double);
  const auto totals = per_row(sums, "sums", logits.rows, kSumColumns, ScalarType::Double);
  auto* norm_data = const_cast<double*>(data_of<double>(norm));
  auto* sum_data = const_cast<double*>(data_of<double>(totals));
  const RowKernels kernels = best_row_kernels(logits.format, nullptr);
  each_row(
      logits, student.mutable_data_ptr(), 0,
      [&](int64_t r, Row& row, float*) {
        row.normalisers = norm_data + r * kNormaliserColumns;
        row.sums = sum_data + r * kSumColumns;
        kernels.gradient(set, row);
      });
}

void softmax_gradient_(Tensor student, Tensor normalisers, Tensor coefficients,
                       double temperature, double softcap) {
  const Logits logits(student, std::nullopt, std::nullopt, true);
  RowSettings set = settings_of("forward_kl", 0.5, "none", 0, temperature, softcap);
  set.vocab = logits.vocab;
  const auto norm =
      per_row(normalisers, "normalisers", logits.rows, kNormaliserColumns, ScalarType::Double);
  const auto factors = per_row(coefficients, "coefficients", logits.rows, 1, ScalarType::Float);
  auto* norm_data = const_cast<double*>(data_of<double>(norm));
  const auto* factor_data = data_of<float>(factors);
  const RowKernels kernels = best_row_kernels(logits.format, nullptr);
  each_row(
      logits, student.mutable_data_ptr(), 0,
      [&](int64_t r, Row& row, float*) {
        row.normalisers = norm_data + r * kNormaliserColumns;
        kernels.softmax(set, row, factor_data[r]);
      });
}

}  // namespace
}  // namespace opsd

STABLE_TORCH_LIBRARY_IMPL(opsd, CPU, m) {
  m.impl("clipped_kl_rows", TORCH_BOX(&opsd::clipped_kl_rows));
  m.impl("clipped_kl_rows_", TORCH_BOX(&opsd::clipped_kl_rows_));
  m.impl("kl_normalisers", TORCH_BOX(&opsd::kl_normalisers));
  m.impl("kl_sums", TORCH_BOX(&opsd::kl_sums));
  m.impl("kl_gradient_", TORCH_BOX(&opsd::kl_gradient_));
  m.impl("softmax_gradient_", TORCH_BOX(&opsd::softmax_gradient_));
}
