// CUDA's names, as far as row_ops_cuda.cu uses them, on the CPU: a thread block is one OS thread whose
// CUDA threads are fibers that take turns at every barrier; a cluster is several such OS threads. For
// tests of the kernels' logic where there is no GPU. Nothing here is fast, and nothing of the memory
// model is checked.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define OPSD_CUDA_KEY CPU
#define OPSD_CUDA_THREADS 64
#define OPSD_CUDA_CLUSTERS
#define OPSD_CUDA_DYNAMIC_SHARED(name) unsigned char* name = cuda_on_cpu::dynamic_shared()
#define aoti_torch_get_current_cuda_stream cuda_on_cpu::no_stream

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
// One OS thread is one block: what its fibers share is what the OS thread owns.
#define __shared__ thread_local

using std::max;
using std::min;

struct uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned x, y, z;
};

namespace cuda_on_cpu {

constexpr int kThreads = OPSD_CUDA_THREADS;
constexpr int64_t kSharedBytes = 227 * 1024;

struct Cluster {
  explicit Cluster(int blocks) : barrier(blocks), bases(blocks, nullptr) {}
  std::barrier<> barrier;
  std::vector<char*> bases;  // an address in each block's thread-local memory
};

struct Index {
  unsigned x;
};

struct Block {
  ucontext_t scheduler{};
  ucontext_t fibers[kThreads]{};
  std::vector<std::unique_ptr<char[]>> stacks;
  bool done[kThreads]{};
  double exchanged[kThreads]{};
  int current = 0;
  Cluster* cluster = nullptr;
  std::unique_ptr<unsigned char[]> dynamic{new unsigned char[kSharedBytes]};
};

inline thread_local Block* block = nullptr;
inline thread_local Index thread_index{};
inline thread_local Index block_index{};

inline unsigned char* dynamic_shared() {
  auto address = reinterpret_cast<uintptr_t>(block->dynamic.get());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

// The same thread-local variable in another block of the cluster: it has the same distance from the
// start of its thread's memory.
template <class T>
T* in_block(T* mine, int rank) {
  char* base = reinterpret_cast<char*>(&block_index);
  return reinterpret_cast<T*>(block->cluster->bases[rank] + (reinterpret_cast<char*>(mine) - base));
}

// Every fiber runs up to its next barrier before any goes on.
inline void wait() { swapcontext(&block->fibers[block->current], &block->scheduler); }

inline double exchange(double mine, int other_lane_mask) {
  block->exchanged[block->current] = mine;
  wait();
  const double theirs = block->exchanged[block->current ^ other_lane_mask];
  wait();
  return theirs;
}

template <class Kernel, class Arguments>
struct Job {
  Kernel kernel;
  const Arguments* arguments;
};

template <class Kernel, class Arguments>
void enter(unsigned low, unsigned high) {
  const auto* job = reinterpret_cast<const Job<Kernel, Arguments>*>(
      static_cast<uintptr_t>(low) | static_cast<uintptr_t>(high) << 32);
  job->kernel(*job->arguments);
  block->done[block->current] = true;
  swapcontext(&block->fibers[block->current], &block->scheduler);
}

template <class Kernel, class Arguments>
void run_block(const Job<Kernel, Arguments>& job, unsigned number, int rank, Cluster& cluster) {
  Block mine;
  mine.cluster = &cluster;
  cluster.bases[rank] = reinterpret_cast<char*>(&block_index);
  block = &mine;
  block_index.x = number;
  const auto address = reinterpret_cast<uintptr_t>(&job);
  for (int i = 0; i < kThreads; ++i) {
    mine.stacks.push_back(std::make_unique<char[]>(1 << 16));
    getcontext(&mine.fibers[i]);
    mine.fibers[i].uc_stack = {mine.stacks[i].get(), 0, 1 << 16};
    mine.fibers[i].uc_link = nullptr;
    makecontext(&mine.fibers[i], reinterpret_cast<void (*)()>(&enter<Kernel, Arguments>), 2,
                static_cast<unsigned>(address), static_cast<unsigned>(address >> 32));
  }
  for (bool going = true; going;) {
    going = false;
    for (int i = 0; i < kThreads; ++i) {
      if (mine.done[i]) continue;
      mine.current = i;
      thread_index.x = static_cast<unsigned>(i);
      swapcontext(&mine.scheduler, &mine.fibers[i]);
      going = going || !mine.done[i];
    }
  }
  block = nullptr;
}

inline int no_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::thread_index)
#define blockIdx (cuda_on_cpu::block_index)

inline void __syncthreads() { cuda_on_cpu::wait(); }
inline double __shfl_xor_sync(unsigned, double x, int mask) { return cuda_on_cpu::exchange(x, mask); }
inline float __expf(float x) { return std::exp(x); }
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// --- the runtime

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
struct cudaFuncAttributes {
  int ptxVersion;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cuda_on_cpu::kSharedBytes;
  return cudaSuccess;
}
// CUDA_ON_CPU_MAJOR=8 stands for a device without clusters.
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  const char* major = std::getenv("CUDA_ON_CPU_MAJOR");
  attributes->ptxVersion = 10 * (major == nullptr ? 9 : std::atoi(major));
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Kernel, class Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, Kernel* kernel,
                               const Arguments& arguments) {
  const int blocks = config->numAttrs > 0 ? static_cast<int>(config->attrs->val.clusterDim.x) : 1;
  const cuda_on_cpu::Job<Kernel*, Arguments> job{kernel, &arguments};
  for (unsigned first = 0; first < config->gridDim.x; first += blocks) {
    cuda_on_cpu::Cluster cluster(blocks);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < blocks; ++rank) {
      threads.emplace_back([&, rank] { cuda_on_cpu::run_block(job, first + rank, rank, cluster); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  return cudaSuccess;
}
