#include "kernels/cuda_backend.h"

#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_stream.cuh"
#include "kernels/elementwise/embedding.h"
#include "kernels/elementwise/scatter.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/linear/linear.h"
#include "kernels/moe_routing/moe_routing.h"
#include "kernels/norm/residual_norm.h"
#include "kernels/paged_attention/paged_attention.h"
#include "kernels/pinned_ring.h"
#include "kernels/rope/rope.h"
#include "kernels/sampling/logit_adjustment.h"
#include "kernels/sampling/sampling.h"
#include "kernels/sampling/top_logits.h"
#include "kernels/token_copies/token_copies.h"
#include "kernels/weights/block_quantize.h"
#include "kernels/weights/random_weights.h"

namespace ring {
namespace {

constexpr int64_t kScratchBytes = int64_t{64} << 20;    // of each queue
constexpr int64_t kCublasBytes = int64_t{32} << 20;     // of each queue
constexpr int64_t kStagingBytes = int64_t{8} << 20;     // pinned, of the host
constexpr int64_t kStagedCopyBytes = int64_t{1} << 20;  // larger ones go direct
constexpr int kNumQueues = 2;
constexpr auto kPollInterval = std::chrono::milliseconds(5);

class GpuBuffer final : public DeviceBuffer {
 public:
  GpuBuffer(void* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  ~GpuBuffer() override { RING_CUDA_CHECK(cudaFree(data_)); }
  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  void* const data_;
  const int64_t bytes_;
};

class PinnedBuffer final : public DeviceBuffer {
 public:
  PinnedBuffer(void* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  ~PinnedBuffer() override { RING_CUDA_CHECK(cudaFreeHost(data_)); }
  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  void* const data_;
  const int64_t bytes_;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, const cudaDeviceProp& properties)
      : description_(absl::StrCat("cuda:", device, " (", properties.name, ", ",
                                  properties.totalGlobalMem >> 30, " GiB)")) {}

  ~CudaBackend() override {
    ForgetSteps();
    for (Resources& queue : queues_) {
      if (queue.cublas != nullptr) {
        RING_CUBLAS_CHECK(cublasDestroy(queue.cublas));
      }
      if (queue.signal != nullptr) {
        RING_CUDA_CHECK(cudaEventDestroy(queue.signal));
      }
      if (queue.stream != nullptr) {
        RING_CUDA_CHECK(cudaStreamDestroy(queue.stream));
      }
      RING_CUDA_CHECK(cudaFree(queue.scratch));
      RING_CUDA_CHECK(cudaFree(queue.cublas_memory));
    }
    for (const Milestone& milestone : milestones_) {
      RING_CUDA_CHECK(cudaEventDestroy(milestone.reached));
    }
    for (cudaEvent_t event : spare_events_) {
      RING_CUDA_CHECK(cudaEventDestroy(event));
    }
    RING_CUDA_CHECK(cudaFreeHost(staging_));
  }

  // Takes what the backend itself needs; false if memory is short.
  bool TakeResources() {
    for (Resources& queue : queues_) {
      if (cudaStreamCreateWithFlags(&queue.stream, cudaStreamNonBlocking) !=
              cudaSuccess ||
          cudaEventCreateWithFlags(&queue.signal, cudaEventDisableTiming) !=
              cudaSuccess ||
          cudaMalloc(&queue.scratch, kScratchBytes) != cudaSuccess ||
          cudaMalloc(&queue.cublas_memory, kCublasBytes) != cudaSuccess ||
          cublasCreate(&queue.cublas) != CUBLAS_STATUS_SUCCESS) {
        return false;
      }
      RING_CUBLAS_CHECK(cublasSetStream(queue.cublas, queue.stream));
      RING_CUBLAS_CHECK(
          cublasSetWorkspace(queue.cublas, queue.cublas_memory, kCublasBytes));
      RING_CUBLAS_CHECK(cublasSetMathMode(
          queue.cublas, static_cast<cublasMath_t>(
                            CUBLAS_DEFAULT_MATH |
                            CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
      queue.launcher = std::make_unique<cuda::Stream>(cuda::Stream::Parts{
          queue.stream, queue.cublas, queue.scratch, kScratchBytes});
    }
    if (cudaMallocHost(&staging_, kStagingBytes) != cudaSuccess) return false;
    ring_ = PinnedRing(staging_, kStagingBytes);
    return true;
  }

  const char* description() const override { return description_.c_str(); }

  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(
      int64_t bytes) override {
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, bytes > 0 ? bytes : 1);
    if (error != cudaSuccess) {
      cudaGetLastError();  // forgets it
      return absl::ResourceExhaustedError(absl::StrCat(
          "cannot allocate ", bytes, " bytes of GPU memory: ", AvailableBytes(),
          " are left"));
    }
    // On the null stream, which the queues do not wait for.
    RING_CUDA_CHECK(cudaMemset(data, 0, bytes));
    RING_CUDA_CHECK(cudaStreamSynchronize(nullptr));
    return std::make_unique<GpuBuffer>(data, bytes);
  }

  int64_t AvailableBytes() override {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    RING_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    return static_cast<int64_t>(free_bytes);
  }

  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateHost(
      int64_t bytes) override {
    void* data = nullptr;
    if (cudaMallocHost(&data, bytes > 0 ? bytes : 1) != cudaSuccess) {
      cudaGetLastError();  // forgets it
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot pin ", bytes, " bytes of host memory"));
    }
    return std::make_unique<PinnedBuffer>(data, bytes);
  }

  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    if (bytes <= 0) return;
    if (bytes <= kStagedCopyBytes) {
      void* const staged = Stage(bytes);
      std::memcpy(staged, host, bytes);
      host = staged;
    }
    Transfer(device, host, bytes, cudaMemcpyHostToDevice);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    if (bytes <= 0) return;
    if (bytes > kStagedCopyBytes) {
      Transfer(host, device, bytes, cudaMemcpyDeviceToHost);
      return;
    }
    void* const staged = Stage(bytes);
    Transfer(staged, device, bytes, cudaMemcpyDeviceToHost);
    arrivals_.push_back({host, staged, bytes, ring_.position()});
  }
  void Copy(void* to, const void* from, int64_t bytes) override {
    Transfer(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  void Zero(void* device, int64_t bytes) override {
    if (bytes <= 0) return;
    RING_CUDA_CHECK(cudaMemsetAsync(device, 0, bytes, stream()->get()));
  }

  void Synchronize() override {
    for (const Resources& queue : queues_) {
      Await([&] { return cudaStreamQuery(queue.stream); },
            [&] { return cudaStreamSynchronize(queue.stream); });
    }
    Deliver(ring_.position());
    for (const Milestone& milestone : milestones_) {
      spare_events_.push_back(milestone.reached);
    }
    milestones_.clear();
  }
  int64_t Mark() override {
    cudaEvent_t event = nullptr;
    if (spare_events_.empty()) {
      RING_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    } else {
      event = spare_events_.back();
      spare_events_.pop_back();
    }
    RING_CUDA_CHECK(cudaEventRecord(event, queues_[0].stream));
    milestones_.push_back({next_mark_, event, ring_.position()});
    return next_mark_++;
  }
  void WaitUntil(int64_t mark) override {
    while (!milestones_.empty() && milestones_.front().mark <= mark) {
      PassMilestone();
    }
  }
  void set_wait_poll(std::function<void()> poll) override {
    wait_poll_ = std::move(poll);
  }
  void* native_queue(Queue queue) override {
    return queues_[static_cast<int>(queue)].stream;
  }
  void Use(Queue queue) override { current_ = static_cast<int>(queue); }
  void WaitFor(Queue waiter, Queue signaller) override {
    const Resources& from = queues_[static_cast<int>(signaller)];
    const Resources& to = queues_[static_cast<int>(waiter)];
    RING_CUDA_CHECK(cudaEventRecord(from.signal, from.stream));
    RING_CUDA_CHECK(cudaStreamWaitEvent(to.stream, from.signal));
  }

  void RunStep(int64_t recording, absl::FunctionRef<void()> fn) override {
    if (recording == 0) {
      fn();
      return;
    }
    const cudaStream_t main = queues_[0].stream;
    auto found = graphs_.find(recording);
    if (found == graphs_.end()) {
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t executable = nullptr;
      RING_CUDA_CHECK(
          cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal));
      fn();
      RING_CUDA_CHECK(cudaStreamEndCapture(main, &graph));
      RING_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
      RING_CUDA_CHECK(cudaGraphDestroy(graph));
      found = graphs_.emplace(recording, executable).first;
    }
    RING_CUDA_CHECK(cudaGraphLaunch(found->second, main));
  }

  void ForgetSteps() override {
    for (auto& [recording, graph] : graphs_) {
      RING_CUDA_CHECK(cudaGraphExecDestroy(graph));
    }
    graphs_.clear();
  }

  void RandomWeights(const RandomWeightsArgs& args) override {
    cuda::RandomWeights(args, stream());
  }
  void QuantizeBlocks(const QuantizeBlocksArgs& args) override {
    cuda::QuantizeBlocks(args, stream());
  }
  void Embedding(const EmbeddingArgs& args) override {
    cuda::Embedding(args, stream());
  }
  void GatherRows(const GatherRowsArgs& args) override {
    cuda::GatherRows(args, stream());
  }
  void LocalExperts(const LocalExpertsArgs& args) override {
    cuda::LocalExperts(args, stream());
  }
  void ScatterInts(const ScatterIntsArgs& args) override {
    cuda::ScatterInts(args, stream());
  }
  void RopeTable(const RopeTableArgs& args) override {
    cuda::RopeTable(args, stream());
  }
  void ResidualNorm(const ResidualNormArgs& args) override {
    cuda::ResidualNorm(args, stream());
  }
  void Linear(const LinearArgs& args) override { cuda::Linear(args, stream()); }
  void PagedAttention(const PagedAttentionArgs& args) override {
    cuda::PagedAttention(args, stream());
  }
  void LightningAttention(const LightningAttentionArgs& args) override {
    cuda::LightningAttention(args, stream());
  }
  void MoeRouting(const MoeRoutingArgs& args) override {
    cuda::MoeRouting(args, stream());
  }
  void DenseFfn(const DenseFfnArgs& args) override {
    cuda::DenseFfn(args, stream());
  }
  void GroupedFfn(const GroupedFfnArgs& args) override {
    cuda::GroupedFfn(args, stream());
  }
  void PlanCopies(const PlanCopiesArgs& args) override {
    cuda::PlanCopies(args, stream());
  }
  void PackCopies(const PackCopiesArgs& args) override {
    cuda::PackCopies(args, stream());
  }
  void AddCopies(const AddCopiesArgs& args) override {
    cuda::AddCopies(args, stream());
  }
  void AdjustLogits(const AdjustLogitsArgs& args) override {
    cuda::AdjustLogits(args, stream());
  }
  void CountTokens(const CountTokensArgs& args) override {
    cuda::CountTokens(args, stream());
  }
  void LogitStats(const LogitStatsArgs& args) override {
    cuda::LogitStats(args, stream());
  }
  void MergeStats(const MergeStatsArgs& args) override {
    cuda::MergeStats(args, stream());
  }
  void ThresholdHistogram(const ThresholdHistogramArgs& args) override {
    cuda::ThresholdHistogram(args, stream());
  }
  void NarrowThreshold(const NarrowThresholdArgs& args) override {
    cuda::NarrowThreshold(args, stream());
  }
  void DrawTokens(const DrawTokensArgs& args) override {
    cuda::DrawTokens(args, stream());
  }
  void FinishTokens(const FinishTokensArgs& args) override {
    cuda::FinishTokens(args, stream());
  }
  void TopLogits(const TopLogitsArgs& args) override {
    cuda::TopLogits(args, stream());
  }
  void MergeTopLogits(const MergeTopLogitsArgs& args) override {
    cuda::MergeTopLogits(args, stream());
  }

 private:
  // What one queue owns.
  struct Resources {
    cudaStream_t stream = nullptr;
    cudaEvent_t signal = nullptr;  // of WaitFor
    cublasHandle_t cublas = nullptr;
    void* cublas_memory = nullptr;
    void* scratch = nullptr;
    std::unique_ptr<cuda::Stream> launcher;
  };

  // Waits by `wait`, or where somebody polls until `query` says that all is
  // done.
  void Await(absl::FunctionRef<cudaError_t()> query,
             absl::FunctionRef<cudaError_t()> wait) {
    if (wait_poll_ == nullptr) {
      RING_CUDA_CHECK(wait());
      return;
    }
    auto next_poll = std::chrono::steady_clock::now() + kPollInterval;
    for (;;) {
      const cudaError_t state = query();
      if (state == cudaSuccess) return;
      if (state != cudaErrorNotReady) RING_CUDA_CHECK(state);
      cudaGetLastError();  // forgets "not ready"
      const auto now = std::chrono::steady_clock::now();
      if (now < next_poll) continue;
      wait_poll_();
      next_poll = now + kPollInterval;
    }
  }

  // What lies in staging memory and belongs to the caller's.
  struct Arrival {
    void* host;
    const void* staged;
    int64_t bytes;
    int64_t position;  // of the ring, after it
  };

  // A mark that nobody has waited for yet.
  struct Milestone {
    int64_t mark;
    cudaEvent_t reached;
    int64_t staged;  // position of the ring
  };

  // Pinned memory for one small copy, until the work queued now is done.
  void* Stage(int64_t bytes) {
    for (;;) {
      if (void* const staged = ring_.Take(bytes)) return staged;
      if (milestones_.empty()) {
        Synchronize();
      } else {
        PassMilestone();
      }
    }
  }

  void PassMilestone() {
    const Milestone milestone = milestones_.front();
    milestones_.pop_front();
    Await([&] { return cudaEventQuery(milestone.reached); },
          [&] { return cudaEventSynchronize(milestone.reached); });
    spare_events_.push_back(milestone.reached);
    Deliver(milestone.staged);
  }

  // The copies staged up to `position` are done.
  void Deliver(int64_t position) {
    while (!arrivals_.empty() && arrivals_.front().position <= position) {
      const Arrival& arrival = arrivals_.front();
      std::memcpy(arrival.host, arrival.staged, arrival.bytes);
      arrivals_.pop_front();
    }
    ring_.ReturnUpTo(position);
  }

  cuda::Stream* stream() { return queues_[current_].launcher.get(); }

  void Transfer(void* to, const void* from, int64_t bytes,
                cudaMemcpyKind kind) {
    if (bytes <= 0) return;
    RING_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream()->get()));
  }

  const std::string description_;
  Resources queues_[kNumQueues];  // by Queue
  int current_ = 0;
  // Host data on its way to or from the device.
  void* staging_ = nullptr;
  PinnedRing ring_;  // over staging_
  std::deque<Arrival> arrivals_;
  std::deque<Milestone> milestones_;
  std::vector<cudaEvent_t> spare_events_;
  int64_t next_mark_ = 0;
  std::function<void()> wait_poll_;
  std::map<int64_t, cudaGraphExec_t> graphs_;  // by recording
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("device cuda:", device, ": ", cudaGetErrorString(error)));
  }
  if (device >= count) {
    return absl::NotFoundError(absl::StrCat(
        "device cuda:", device, ": this host has ", count,
        " GPUs, numbered from 0: start no more ranks on it than that"));
  }
  cudaDeviceProp properties;
  RING_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  if (properties.major != 9 || properties.minor != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "device cuda:", device, ": ", properties.name,
        " has compute capability ", properties.major, ".", properties.minor,
        ", the kernels are built for 9.0 (H100, H200)"));
  }
  RING_CUDA_CHECK(cudaSetDevice(device));
  auto backend = std::make_unique<CudaBackend>(device, properties);
  if (!backend->TakeResources()) {
    cudaGetLastError();  // forgets it
    return absl::ResourceExhaustedError(absl::StrCat(
        "device cuda:", device, ": no memory left for streams and scratch"));
  }
  return backend;
}

}  // namespace ring
