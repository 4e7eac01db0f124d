// What the row operators check and unpack, the same for every device. The schemas are in
// row_ops.cpp; opsd/trainer/loss/native.py is their only caller. Stable ABI only, so that one build
// serves every later torch.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "row_kernel.h"

namespace opsd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Format format_of(ScalarType dtype) {
  if (dtype == ScalarType::Float) return Format::kFloat32;
  if (dtype == ScalarType::BFloat16) return Format::kBFloat16;
  STD_TORCH_CHECK(dtype == ScalarType::Half, "student_logits must be float32, bfloat16 or float16");
  return Format::kFloat16;
}

inline int64_t bytes_of(Format format) { return format == Format::kFloat32 ? 4 : 2; }

inline RowSettings settings_of(const std::string& divergence, double jsd_beta,
                               const std::string& clip, double clip_value, double temperature,
                               double softcap) {
  RowSettings set{};
  if (divergence == "forward_kl") {
    set.divergence = Divergence::kForwardKL;
  } else if (divergence == "reverse_kl") {
    set.divergence = Divergence::kReverseKL;
  } else {
    STD_TORCH_CHECK(divergence == "jsd", "divergence must be forward_kl, reverse_kl or jsd, got ",
                    divergence);
    STD_TORCH_CHECK(jsd_beta > 0 && jsd_beta < 1, "jsd_beta must lie inside (0, 1)");
    set.divergence = Divergence::kJSD;
  }
  set.clip_value = static_cast<float>(clip_value);
  if (clip == "none") {
    set.clip = Clip::kNone;
    set.clip_value = std::numeric_limits<float>::infinity();
  } else if (clip == "clamp") {
    set.clip = Clip::kClamp;
  } else {
    STD_TORCH_CHECK(clip == "scale", "clip must be none, clamp or scale, got ", clip);
    set.clip = Clip::kScale;
  }
  STD_TORCH_CHECK(set.clip == Clip::kNone || set.clip_value > 0, "clip_value must be above 0");
  STD_TORCH_CHECK(temperature > 0, "temperature must be above 0");
  STD_TORCH_CHECK(softcap >= 0 && std::isfinite(softcap), "softcap must be 0 (none) or above");
  set.jsd_beta = static_cast<float>(jsd_beta);
  set.inverse_t = static_cast<float>(1.0 / temperature);
  set.softcap = static_cast<float>(softcap);
  return set;
}

// One entry or one short row a token, contiguous, or nothing.
inline std::optional<Tensor> per_row(const std::optional<Tensor>& given, const char* name,
                                     int64_t rows, int64_t columns, ScalarType dtype) {
  if (!given.has_value()) return std::nullopt;
  STD_TORCH_CHECK(given->numel() == rows * columns && given->size(0) == rows, name,
                  " must have ", columns, " entries a row");
  STD_TORCH_CHECK(given->scalar_type() == dtype, name, " has the wrong dtype");
  return torch::stable::contiguous(*given);
}

template <class T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

// The logits of both, checked against each other; owns what the pointers lead to.
struct Logits {
  Tensor student;
  std::optional<Tensor> teacher, sampled;
  int64_t rows, vocab;
  Format format;

  Logits(const Tensor& student_logits, const std::optional<Tensor>& teacher_logits,
         const std::optional<Tensor>& sampled_ids, bool in_place)
      : student(student_logits) {
    STD_TORCH_CHECK(student.dim() == 2, "student_logits must be [rows, vocabulary]");
    format = format_of(student.scalar_type());
    rows = student.size(0);
    vocab = student.size(1);
    STD_TORCH_CHECK(vocab > 0, "student_logits must have at least one column");
    if (in_place) {
      STD_TORCH_CHECK(student.is_contiguous(), "student_logits must be contiguous");
    } else {
      student = torch::stable::contiguous(student);
    }
    if (teacher_logits.has_value()) {
      STD_TORCH_CHECK(teacher_logits->dim() == 2 && teacher_logits->size(0) == rows &&
                          teacher_logits->size(1) == vocab,
                      "teacher_logits must have the shape of student_logits");
      STD_TORCH_CHECK(teacher_logits->scalar_type() == student.scalar_type(),
                      "teacher_logits must have student_logits' dtype");
      STD_TORCH_CHECK(teacher_logits->get_device_index() == student.get_device_index(),
                      "teacher_logits must be on student_logits' device");
      teacher = torch::stable::contiguous(*teacher_logits);
    }
    sampled = per_row(sampled_ids, "sampled_ids", rows, 1, ScalarType::Long);
  }

  Tensor new_rows(int64_t columns, ScalarType dtype) const {
    return torch::stable::new_empty(student, {rows, columns}, dtype);
  }
};

}  // namespace opsd
