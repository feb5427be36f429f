#include "worker/engine_bytes.h"

#include <memory>
#include <utility>

#include "kernels/base/check.h"
#include "parallel/block_communicator.h"
#include "worker/cache/cache_pool.h"

namespace ring {
namespace {

// Addresses that nobody may read or write.
class CountedBuffer final : public DeviceBuffer {
 public:
  explicit CountedBuffer(int64_t bytes) : bytes_(bytes) {}
  void* data() override { return reinterpret_cast<void*>(kAddress); }
  int64_t bytes() const override { return bytes_; }

 private:
  static constexpr uintptr_t kAddress = 256;
  const int64_t bytes_;
};

// A device without memory that counts what it is asked for. It takes copies and
// runs no op.
class CountingBackend final : public Backend {
 public:
  int64_t bytes() const { return bytes_; }

  const char* description() const override { return "counting"; }
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(
      int64_t bytes) override {
    bytes_ += bytes;
    return std::make_unique<CountedBuffer>(bytes);
  }
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateHost(
      int64_t bytes) override {
    return std::make_unique<CountedBuffer>(bytes);
  }
  int64_t AvailableBytes() override { return 0; }

  void CopyToDevice(void*, const void*, int64_t) override {}
  void CopyToHost(void*, const void*, int64_t) override { Refuse(); }
  void Copy(void*, const void*, int64_t) override {}
  void Zero(void*, int64_t) override {}
  void Synchronize() override {}
  int64_t Mark() override { return 0; }
  void WaitUntil(int64_t) override {}
  void set_wait_poll(std::function<void()>) override {}
  void* native_queue(Queue) override { return nullptr; }
  void Use(Queue) override {}
  void WaitFor(Queue, Queue) override {}
  void RunStep(int64_t, absl::FunctionRef<void()>) override { Refuse(); }
  void ForgetSteps() override {}

  void RandomWeights(const RandomWeightsArgs&) override { Refuse(); }
  void QuantizeBlocks(const QuantizeBlocksArgs&) override { Refuse(); }
  void Embedding(const EmbeddingArgs&) override { Refuse(); }
  void GatherRows(const GatherRowsArgs&) override { Refuse(); }
  void LocalExperts(const LocalExpertsArgs&) override { Refuse(); }
  void ScatterInts(const ScatterIntsArgs&) override { Refuse(); }
  void RopeTable(const RopeTableArgs&) override { Refuse(); }
  void ResidualNorm(const ResidualNormArgs&) override { Refuse(); }
  void Linear(const LinearArgs&) override { Refuse(); }
  void PagedAttention(const PagedAttentionArgs&) override { Refuse(); }
  void LightningAttention(const LightningAttentionArgs&) override { Refuse(); }
  void MoeRouting(const MoeRoutingArgs&) override { Refuse(); }
  void DenseFfn(const DenseFfnArgs&) override { Refuse(); }
  void GroupedFfn(const GroupedFfnArgs&) override { Refuse(); }
  void PlanCopies(const PlanCopiesArgs&) override { Refuse(); }
  void PackCopies(const PackCopiesArgs&) override { Refuse(); }
  void AddCopies(const AddCopiesArgs&) override { Refuse(); }
  void AdjustLogits(const AdjustLogitsArgs&) override { Refuse(); }
  void CountTokens(const CountTokensArgs&) override { Refuse(); }
  void LogitStats(const LogitStatsArgs&) override { Refuse(); }
  void MergeStats(const MergeStatsArgs&) override { Refuse(); }
  void ThresholdHistogram(const ThresholdHistogramArgs&) override { Refuse(); }
  void NarrowThreshold(const NarrowThresholdArgs&) override { Refuse(); }
  void DrawTokens(const DrawTokensArgs&) override { Refuse(); }
  void FinishTokens(const FinishTokensArgs&) override { Refuse(); }
  void TopLogits(const TopLogitsArgs&) override { Refuse(); }
  void MergeTopLogits(const MergeTopLogitsArgs&) override { Refuse(); }

 private:
  static void Refuse() {
    RING_CHECK(false) << "an engine that is only measured runs no step";
  }

  int64_t bytes_ = 0;
};

// Ranks that are not there: their number is all that memory depends on. Takes
// what a communicator between CPUs takes for itself.
class AbsentRanks final : public BlockCommunicator {
 public:
  AbsentRanks(const Options& options, int rank, int size)
      : BlockCommunicator(options, *AllocateParts(options, size)),
        rank_(rank),
        size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }

 private:
  void Exchange(const char* collective, absl::Span<const SendBlock>,
                absl::Span<const RecvBlock>) override {
    RING_CHECK(false) << collective << " with ranks that are not there";
  }

  const int rank_;
  const int size_;
};

}  // namespace

EngineBytes MeasureEngine(const ModelConfig& config, const Mesh& mesh,
                          const ExpertPlacement& placement,
                          const Engine::Options& options) {
  CountingBackend backend;
  Progress progress;
  BlockCommunicator::Options collectives;
  collectives.backend = &backend;
  collectives.progress = &progress;
  collectives.max_reduce_rows = options.max_batch_tokens;
  collectives.max_reduce_cols = config.hidden_size;
  AbsentRanks world(collectives, mesh.rank(), mesh.world_size());
  AbsentRanks tp(collectives, mesh.tp_rank(), mesh.tp());
  AbsentRanks dp(collectives, mesh.dp_rank(), mesh.dp());
  Engine::Parts parts;
  parts.config = &config;
  parts.mesh = &mesh;
  parts.placement = &placement;
  parts.tp = &tp;
  parts.dp = &dp;
  parts.world = &world;
  parts.backend = &backend;
  parts.progress = &progress;
  const auto engine = Engine::Create(parts, options);
  RING_CHECK(engine.ok()) << engine.status().ToString();

  EngineBytes bytes;
  bytes.kv_pages =
      CachePool::PageBytes(config, mesh, options.kv_dtype) * options.num_pages;
  bytes.state_slots =
      CachePool::SlotBytes(config, mesh) * options.max_sequences;
  bytes.workspace = backend.bytes() - bytes.kv_pages - bytes.state_slots;
  return bytes;
}

}  // namespace ring
