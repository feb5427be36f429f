// A backend in front of another one.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "absl/functional/function_ref.h"
#include "kernels/backend.h"

namespace ring {

// Hands everything to `inner`; what a subclass wants to do around the ops it
// does in Op.
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner)
      : inner_(std::move(inner)) {}

  const char* description() const override { return inner_->description(); }
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(
      int64_t bytes) override {
    return inner_->Allocate(bytes);
  }
  int64_t AvailableBytes() override { return inner_->AvailableBytes(); }
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateHost(
      int64_t bytes) override {
    return inner_->AllocateHost(bytes);
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    inner_->CopyToDevice(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    inner_->CopyToHost(host, device, bytes);
  }
  void Copy(void* to, const void* from, int64_t bytes) override {
    inner_->Copy(to, from, bytes);
  }
  void Zero(void* device, int64_t bytes) override {
    inner_->Zero(device, bytes);
  }
  void Synchronize() override { inner_->Synchronize(); }
  int64_t Mark() override { return inner_->Mark(); }
  void WaitUntil(int64_t mark) override { inner_->WaitUntil(mark); }
  void set_wait_poll(std::function<void()> poll) override {
    inner_->set_wait_poll(std::move(poll));
  }
  void* native_queue(Queue queue) override {
    return inner_->native_queue(queue);
  }
  void Use(Queue queue) override { inner_->Use(queue); }
  void WaitFor(Queue waiter, Queue signaller) override {
    inner_->WaitFor(waiter, signaller);
  }
  void RunStep(int64_t recording, absl::FunctionRef<void()> fn) override {
    inner_->RunStep(recording, fn);
  }
  void ForgetSteps() override { inner_->ForgetSteps(); }

  void RandomWeights(const RandomWeightsArgs& args) override;
  void QuantizeBlocks(const QuantizeBlocksArgs& args) override;
  void Embedding(const EmbeddingArgs& args) override;
  void GatherRows(const GatherRowsArgs& args) override;
  void LocalExperts(const LocalExpertsArgs& args) override;
  void ScatterInts(const ScatterIntsArgs& args) override;
  void RopeTable(const RopeTableArgs& args) override;
  void ResidualNorm(const ResidualNormArgs& args) override;
  void Linear(const LinearArgs& args) override;
  void PagedAttention(const PagedAttentionArgs& args) override;
  void LightningAttention(const LightningAttentionArgs& args) override;
  void MoeRouting(const MoeRoutingArgs& args) override;
  void DenseFfn(const DenseFfnArgs& args) override;
  void GroupedFfn(const GroupedFfnArgs& args) override;
  void PlanCopies(const PlanCopiesArgs& args) override;
  void PackCopies(const PackCopiesArgs& args) override;
  void AddCopies(const AddCopiesArgs& args) override;
  void AdjustLogits(const AdjustLogitsArgs& args) override;
  void CountTokens(const CountTokensArgs& args) override;
  void LogitStats(const LogitStatsArgs& args) override;
  void MergeStats(const MergeStatsArgs& args) override;
  void ThresholdHistogram(const ThresholdHistogramArgs& args) override;
  void NarrowThreshold(const NarrowThresholdArgs& args) override;
  void DrawTokens(const DrawTokensArgs& args) override;
  void FinishTokens(const FinishTokensArgs& args) override;
  void TopLogits(const TopLogitsArgs& args) override;
  void MergeTopLogits(const MergeTopLogitsArgs& args) override;

 protected:
  // Runs one op, whose method is called `name`.
  virtual void Op(const char* name, absl::FunctionRef<void()> op) {
    (void)name;
    op();
  }

 private:
  const std::unique_ptr<Backend> inner_;
};

}  // namespace ring
