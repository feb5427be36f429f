// The seam between the model and the machine it runs on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace ring {

struct AddCopiesArgs;
struct AdjustLogitsArgs;
struct CountTokensArgs;
struct DenseFfnArgs;
struct DrawTokensArgs;
struct EmbeddingArgs;
struct FinishTokensArgs;
struct GatherRowsArgs;
struct GroupedFfnArgs;
struct LightningAttentionArgs;
struct LinearArgs;
struct LocalExpertsArgs;
struct LogitStatsArgs;
struct MergeStatsArgs;
struct MergeTopLogitsArgs;
struct MoeRoutingArgs;
struct NarrowThresholdArgs;
struct PackCopiesArgs;
struct PagedAttentionArgs;
struct PlanCopiesArgs;
struct QuantizeBlocksArgs;
struct RandomWeightsArgs;
struct ResidualNormArgs;
struct RopeTableArgs;
struct ScatterIntsArgs;
struct ThresholdHistogramArgs;
struct TopLogitsArgs;

// Device memory. Freed with its backend still alive.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual void* data() = 0;  // aligned to 256 bytes
  virtual int64_t bytes() const = 0;
};

// Ops run in order on the current queue. kSide carries work that may overlap
// kMain; on CPU both are the caller and every op is done on return.
enum class Queue { kMain, kSide };

// One device of one rank. Model code calls these methods only and never asks
// which device it is on. The header that declares an op's `...Args` holds its
// contract.
//
// Confined to the engine thread. Device errors after start are broken promises
// and end the rank; only Allocate reports failure.
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu (avx512_bf16, 2 threads)": for logs.
  virtual const char* description() const = 0;

  // Zeroed memory. All of it is taken before serving starts.
  // RESOURCE_EXHAUSTED names the bytes asked for and those left.
  virtual absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(
      int64_t bytes) = 0;

  // What Allocate can still give, of memory that others may take as well.
  virtual int64_t AvailableBytes() = 0;

  // Host memory whose copies to the device run beside the host. Contents are
  // undefined. Errors as Allocate.
  virtual absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateHost(
      int64_t bytes) = 0;

  // Host <-> device, ordered with the ops of the current queue. The host
  // memory must stay as it is until Synchronize, or a mark that is made later.
  virtual void CopyToDevice(void* device, const void* host, int64_t bytes) = 0;
  virtual void CopyToHost(void* host, const void* device, int64_t bytes) = 0;
  // Copies within the device.
  virtual void Copy(void* to, const void* from, int64_t bytes) = 0;
  virtual void Zero(void* device, int64_t bytes) = 0;
  // Waits until everything queued is done.
  virtual void Synchronize() = 0;
  // A point after everything queued on kMain so far; WaitUntil waits until the
  // work before it is done, and the copies to the host have arrived. Marks are
  // waited for in the order they were made; Synchronize waits for all.
  virtual int64_t Mark() = 0;
  virtual void WaitUntil(int64_t mark) = 0;

  // Called by Synchronize and WaitUntil every few milliseconds that they wait,
  // by the engine thread: a library that works on the queues too looks for its
  // errors there. Null: nothing is called.
  virtual void set_wait_poll(std::function<void()> poll) = 0;
  // The queue as a library of the device's maker takes it (a cudaStream_t), for
  // work that is no op: collectives. Null where the caller is the queue.
  virtual void* native_queue(Queue queue) = 0;

  // Selects the queue of the following ops.
  virtual void Use(Queue queue) = 0;
  // Makes `waiter` wait for all that `signaller` has been given so far.
  virtual void WaitFor(Queue waiter, Queue signaller) = 0;

  // Runs the ops of one step. `recording` > 0 promises that fn enqueues the
  // same ops with the same arguments whenever it is called with this number,
  // and does nothing else: a device may then record it once and replay it.
  // 0: run as it is.
  virtual void RunStep(int64_t recording, absl::FunctionRef<void()> fn) = 0;
  // Drops all records. Done before something that recorded ops use goes away.
  virtual void ForgetSteps() = 0;

  // Weights that are made or changed while loading.
  virtual void RandomWeights(const RandomWeightsArgs& args) = 0;
  virtual void QuantizeBlocks(const QuantizeBlocksArgs& args) = 0;

  virtual void Embedding(const EmbeddingArgs& args) = 0;
  virtual void GatherRows(const GatherRowsArgs& args) = 0;
  virtual void LocalExperts(const LocalExpertsArgs& args) = 0;
  virtual void ScatterInts(const ScatterIntsArgs& args) = 0;
  virtual void RopeTable(const RopeTableArgs& args) = 0;
  virtual void ResidualNorm(const ResidualNormArgs& args) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void PagedAttention(const PagedAttentionArgs& args) = 0;
  virtual void LightningAttention(const LightningAttentionArgs& args) = 0;
  virtual void MoeRouting(const MoeRoutingArgs& args) = 0;
  virtual void DenseFfn(const DenseFfnArgs& args) = 0;
  virtual void GroupedFfn(const GroupedFfnArgs& args) = 0;
  virtual void PlanCopies(const PlanCopiesArgs& args) = 0;
  virtual void PackCopies(const PackCopiesArgs& args) = 0;
  virtual void AddCopies(const AddCopiesArgs& args) = 0;
  virtual void AdjustLogits(const AdjustLogitsArgs& args) = 0;
  virtual void CountTokens(const CountTokensArgs& args) = 0;
  virtual void LogitStats(const LogitStatsArgs& args) = 0;
  virtual void MergeStats(const MergeStatsArgs& args) = 0;
  virtual void ThresholdHistogram(const ThresholdHistogramArgs& args) = 0;
  virtual void NarrowThreshold(const NarrowThresholdArgs& args) = 0;
  virtual void DrawTokens(const DrawTokensArgs& args) = 0;
  virtual void FinishTokens(const FinishTokensArgs& args) = 0;
  virtual void TopLogits(const TopLogitsArgs& args) = 0;
  virtual void MergeTopLogits(const MergeTopLogitsArgs& args) = 0;
};

}  // namespace ring
