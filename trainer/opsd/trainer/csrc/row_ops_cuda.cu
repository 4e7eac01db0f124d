// The row operators on NVIDIA GPUs (sm_80 and up): checks, plans and launches.

#include "row_kernel_cuda.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include "row_ops.h"

namespace opsd {
namespace {

// --- launching

void expect(cudaError_t status) {
  STD_TORCH_CHECK(status == cudaSuccess, "CUDA: ", cudaGetErrorString(status));
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  expect(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

// Launches go to the tensors' device.
struct OnDevice {
  explicit OnDevice(int device) {
    expect(cudaGetDevice(&before));
    expect(cudaSetDevice(device));
  }
  ~OnDevice() { cudaSetDevice(before); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  int before = 0;
};

// Blocks of a row, and the bytes of shared memory that each needs to keep its slice (0: it cannot).
struct Plan {
  int blocks;
  int64_t bytes;
};

Plan plan_of(const Logits& logits, int64_t most, bool clusters) {
  // Half of it, so that two blocks share a processor: one loads while the other computes.
  for (const int64_t limit : {most / 2, most}) {
    for (int blocks = 1; blocks <= (clusters ? kMostBlocks : 1); blocks *= 2) {
      const int64_t bytes = 2 * slice_of(logits.vocab, blocks) * bytes_of(logits.format);
      if (bytes <= limit) return {blocks, bytes};
    }
  }
  return {1, 0};
}

template <Format format, Divergence divergence, Stage stage>
void launch_kernel(const Logits& logits, Arguments a) {
  const int device = logits.student.get_device_index();
  const OnDevice here(device);
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "no CUDA stream");
  auto* kernel = &row_kernel<format, divergence, stage>;
  Plan plan{1, 0};
  if (stage == Stage::kFused) {
    const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) -
                         static_cast<int64_t>(sizeof(Shared)) - 1024;
    // The device may run what was compiled for an older one, which knows no clusters.
    cudaFuncAttributes built{};
    expect(cudaFuncGetAttributes(&built, kernel));
    plan = plan_of(logits, most, built.ptxVersion >= 90);
    // Always the most: another thread may launch the same kernel for other rows.
    if (plan.bytes > 0) {
      expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(most)));
    }
  }
  a.blocks = plan.blocks;
  a.on_chip = plan.bytes > 0;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(plan.blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(logits.rows * plan.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = plan.blocks > 1 ? 1 : 0;
  expect(cudaLaunchKernelEx(&config, kernel, a));
}

template <Stage stage, Format format>
void launch_divergence(const Logits& logits, const Arguments& a) {
  if constexpr (stage == Stage::kNormalise || stage == Stage::kSoftmax) {
    return launch_kernel<format, Divergence::kForwardKL, stage>(logits, a);
  } else {
    switch (a.set.divergence) {
      case Divergence::kForwardKL:
        return launch_kernel<format, Divergence::kForwardKL, stage>(logits, a);
      case Divergence::kReverseKL:
        return launch_kernel<format, Divergence::kReverseKL, stage>(logits, a);
      case Divergence::kJSD:
        return launch_kernel<format, Divergence::kJSD, stage>(logits, a);
    }
  }
}

template <Stage stage>
void launch(const Logits& logits, Arguments a) {
  a.set.vocab = logits.vocab;
  a.student = logits.student.const_data_ptr();
  a.teacher = data_of<void>(logits.teacher);
  a.sampled = data_of<int64_t>(logits.sampled);
  if (logits.rows == 0) return;
  switch (logits.format) {
    case Format::kFloat32:
      return launch_divergence<stage, Format::kFloat32>(logits, a);
    case Format::kBFloat16:
      return launch_divergence<stage, Format::kBFloat16>(logits, a);
    case Format::kFloat16:
      return launch_divergence<stage, Format::kFloat16>(logits, a);
  }
}

// --- the operators; ids are checked by the caller, on the device they cannot be without waiting

using Maybe = std::optional<Tensor>;
using Name = std::string;

std::tuple<Tensor, Tensor> fused(const Logits& logits, const RowSettings& set, void* grad) {
  Tensor loss = torch::stable::new_empty(logits.student, {logits.rows}, ScalarType::Float);
  Tensor telemetry = logits.new_rows(kTelemetryColumns, ScalarType::Float);
  Arguments a{};
  a.set = set;
  a.loss = static_cast<float*>(loss.mutable_data_ptr());
  a.telemetry = static_cast<float*>(telemetry.mutable_data_ptr());
  a.grad = grad;
  launch<Stage::kFused>(logits, a);
  return {loss, telemetry};
}

std::tuple<Tensor, Tensor, Tensor> clipped_kl_rows(Tensor student, Tensor teacher, Maybe sampled,
                                                   Name divergence, double jsd_beta, Name clip,
                                                   double clip_value, double temperature,
                                                   double softcap) {
  const Logits logits(student, teacher, sampled, false);
  Tensor grad = logits.new_rows(logits.vocab, student.scalar_type());
  auto [loss, telemetry] = fused(
      logits, settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap),
      grad.mutable_data_ptr());
  return {loss, telemetry, grad};
}

std::tuple<Tensor, Tensor> clipped_kl_rows_(Tensor student, Tensor teacher, Maybe sampled,
                                            Name divergence, double jsd_beta, Name clip,
                                            double clip_value, double temperature, double softcap) {
  return fused(
      Logits(student, teacher, sampled, true),
      settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap),
      student.mutable_data_ptr());
}

Tensor kl_normalisers(Tensor student, Maybe teacher, double temperature, double softcap) {
  const Logits logits(student, teacher, std::nullopt, false);
  Tensor out = logits.new_rows(kNormaliserColumns, ScalarType::Double);
  Arguments a{};
  a.set = settings_of("forward_kl", 0.5, "none", 0, temperature, softcap);
  a.normalisers = static_cast<double*>(out.mutable_data_ptr());
  launch<Stage::kNormalise>(logits, a);
  return out;
}

Tensor kl_sums(Tensor student, Tensor teacher, Tensor normalisers, Maybe sampled, Name divergence,
               double jsd_beta, Name clip, double clip_value, double temperature, double softcap) {
  const Logits logits(student, teacher, sampled, false);
  const auto norm =
      per_row(normalisers, "normalisers", logits.rows, kNormaliserColumns, ScalarType::Double);
  Tensor out = logits.new_rows(kSumColumns, ScalarType::Double);
  Arguments a{};
  a.set = settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap);
  a.normalisers = const_cast<double*>(data_of<double>(norm));
  a.sums = static_cast<double*>(out.mutable_data_ptr());
  launch<Stage::kSum>(logits, a);
  return out;
}

void kl_gradient_(Tensor student, Tensor teacher, Tensor normalisers, Tensor sums, Name divergence,
                  double jsd_beta, Name clip, double clip_value, double temperature,
                  double softcap) {
  const Logits logits(student, teacher, std::nullopt, true);
  const auto norm =
      per_row(normalisers, "normalisers", logits.rows, kNormaliserColumns, ScalarType::Double);
  const auto totals = per_row(sums, "sums", logits.rows, kSumColumns, ScalarType::Double);
  Arguments a{};
  a.set = settings_of(divergence, jsd_beta, clip, clip_value, temperature, softcap);
  a.normalisers = const_cast<double*>(data_of<double>(norm));
  a.sums = const_cast<double*>(data_of<double>(totals));
  a.grad = student.mutable_data_ptr();
  launch<Stage::kGradient>(logits, a);
}

void softmax_gradient_(Tensor student, Tensor normalisers, Tensor coefficients, double temperature,
                       double softcap) {
  const Logits logits(student, std::nullopt, std::nullopt, true);
  const auto norm =
      per_row(normalisers, "normalisers", logits.rows, kNormaliserColumns, ScalarType::Double);
  const auto factors = per_row(coefficients, "coefficients", logits.rows, 1, ScalarType::Float);
  Arguments a{};
  a.set = settings_of("forward_kl", 0.5, "none", 0, temperature, softcap);
  a.normalisers = const_cast<double*>(data_of<double>(norm));
  a.coefficients = data_of<float>(factors);
  a.grad = student.mutable_data_ptr();
  launch<Stage::kSoftmax>(logits, a);
}

}  // namespace
}  // namespace opsd

STABLE_TORCH_LIBRARY_IMPL(opsd, OPSD_CUDA_KEY, m) {
  m.impl("clipped_kl_rows", TORCH_BOX(&opsd::clipped_kl_rows));
  m.impl("clipped_kl_rows_", TORCH_BOX(&opsd::clipped_kl_rows_));
  m.impl("kl_normalisers", TORCH_BOX(&opsd::kl_normalisers));
  m.impl("kl_sums", TORCH_BOX(&opsd::kl_sums));
  m.impl("kl_gradient_", TORCH_BOX(&opsd::kl_gradient_));
  m.impl("softmax_gradient_", TORCH_BOX(&opsd::softmax_gradient_));
}
