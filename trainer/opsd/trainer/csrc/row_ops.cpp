// The schemas of the row operators. Rows are tokens; "normalisers" and "sums" are [rows, columns] in
// float64 with the columns of row_kernel.h.

#include <torch/csrc/stable/library.h>

#define OPSD_SETTINGS                                               \
  "str divergence, float jsd_beta, str clip, float clip_value, " \
  "float temperature, float softcap"

STABLE_TORCH_LIBRARY_FRAGMENT(opsd, m) {
  // Loss, telemetry and the gradient along the student's logits, in one go.
  m.def(
      "clipped_kl_rows(Tensor student_logits, Tensor teacher_logits, "
      "Tensor? sampled_ids, " OPSD_SETTINGS
      ") -> (Tensor loss_rows, Tensor telemetry_rows, Tensor grad_student_logits)");
  // The same; the gradient takes the place of the student's logits.
  m.def(
      "clipped_kl_rows_(Tensor(a!) student_logits, Tensor teacher_logits, "
      "Tensor? sampled_ids, " OPSD_SETTINGS
      ") -> (Tensor loss_rows, Tensor telemetry_rows)");
  // The same in stages, for a vocabulary that is spread over ranks.
  m.def(
      "kl_normalisers(Tensor student_logits, Tensor? teacher_logits, "
      "float temperature, float softcap) -> Tensor");
  m.def(
      "kl_sums(Tensor student_logits, Tensor teacher_logits, Tensor normalisers, "
      "Tensor? sampled_ids, " OPSD_SETTINGS ") -> Tensor");
  m.def(
      "kl_gradient_(Tensor(a!) student_logits, Tensor teacher_logits, Tensor normalisers, "
      "Tensor sums, " OPSD_SETTINGS ") -> ()");
  // The student's probabilities times a coefficient a row, in the place of its logits.
  m.def(
      "softmax_gradient_(Tensor(a!) student_logits, Tensor normalisers, Tensor coefficients, "
      "float temperature, float softcap) -> ()");
}
