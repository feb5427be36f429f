#include "parallel/alltoall_token_exchange.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/token_copies/token_copies.h"

namespace ring {
namespace {

class AllToAllTokenExchange final : public TokenExchange {
 public:
  AllToAllTokenExchange(Communicator* world, const ExpertPlacement& placement,
                        Backend* backend, const Options& options)
      : world_(world),
        backend_(backend),
        options_(options),
        num_experts_(placement.num_experts()),
        row_bytes_(options.hidden *
                   static_cast<int64_t>(SizeOf(options.x_dtype))),
        counts_of_ranks_(int64_t{world->size()} * world->size()),
        sent_(world->size()),
        received_(world->size()) {}

  absl::Status Allocate(const ExpertPlacement& placement) {
    constexpr int64_t kInt = sizeof(int32_t);
    const int64_t ranks = world_->size();
    const int64_t rows = options_.max_rows;
    const int64_t copies = rows * std::min<int64_t>(options_.top_k, ranks);
    const int64_t arrivals = rows * ranks;
    const auto allocate = [&](std::unique_ptr<DeviceBuffer>* buffer,
                              int64_t bytes) -> absl::Status {
      RING_ASSIGN_OR_RETURN(*buffer, backend_->Allocate(bytes));
      return absl::OkStatus();
    };
    RING_RETURN_IF_ERROR(
        allocate(&counts_, (1 + ranks) * ranks * sizeof(int64_t)));
    RING_RETURN_IF_ERROR(allocate(&copy_of_, rows * ranks * kInt));
    RING_RETURN_IF_ERROR(allocate(&send_x_, copies * row_bytes_));
    RING_RETURN_IF_ERROR(allocate(&recv_x_, arrivals * row_bytes_));
    RING_RETURN_IF_ERROR(allocate(&send_experts_, copies * SlotBytes()));
    RING_RETURN_IF_ERROR(allocate(&recv_experts_, arrivals * SlotBytes()));
    RING_RETURN_IF_ERROR(allocate(&send_weights_, copies * SlotBytes()));
    RING_RETURN_IF_ERROR(allocate(&recv_weights_, arrivals * SlotBytes()));
    RING_RETURN_IF_ERROR(allocate(&parts_, copies * PartBytes()));

    std::vector<int32_t> tables;
    for (int layer = 0; layer < placement.num_layers(); ++layer) {
      for (int e = 0; e < num_experts_; ++e) {
        tables.push_back(placement.RankOf(layer, e));
      }
      for (int e = 0; e < num_experts_; ++e) {
        tables.push_back(placement.LocalIndex(layer, e));
      }
    }
    const int64_t bytes = static_cast<int64_t>(tables.size()) * kInt;
    RING_RETURN_IF_ERROR(allocate(&placement_, bytes));
    backend_->CopyToDevice(placement_->data(), tables.data(), bytes);
    backend_->Synchronize();
    return absl::OkStatus();
  }

  DispatchedRows Dispatch(int64_t rows, const void* x, const int32_t* experts,
                          const float* weights, int layer) override {
    RING_CHECK_LE(rows, options_.max_rows);
    rows_ = rows;
    PlanCopiesArgs plan;
    plan.experts = experts;
    plan.rows = rows;
    plan.top_k = options_.top_k;
    plan.rank_of = RankOf(layer);
    plan.num_ranks = world_->size();
    plan.counts = SentCounts();
    plan.copy_of = static_cast<int32_t*>(copy_of_->data());
    backend_->PlanCopies(plan);
    const int64_t counts_known = ExchangeCounts();

    PackCopiesArgs pack;
    pack.x = x;
    pack.row_bytes = row_bytes_;
    pack.experts = experts;
    pack.weights = weights;
    pack.rows = rows;
    pack.top_k = options_.top_k;
    pack.rank_of = plan.rank_of;
    pack.local_index = plan.rank_of + num_experts_;
    pack.num_ranks = plan.num_ranks;
    pack.counts = plan.counts;
    pack.copy_of = plan.copy_of;
    pack.packed_x = send_x_->data();
    pack.packed_experts = static_cast<int32_t*>(send_experts_->data());
    pack.packed_weights = static_cast<float*>(send_weights_->data());
    backend_->PackCopies(pack);

    WaitForCounts(counts_known);
    world_->AllToAll(
        {{send_x_->data(), recv_x_->data(), row_bytes_},
         {send_experts_->data(), recv_experts_->data(), SlotBytes()},
         {send_weights_->data(), recv_weights_->data(), SlotBytes()}},
        sent_, received_);
    DispatchedRows in;
    for (const int64_t count : received_) in.rows += count;
    in.x = recv_x_->data();
    in.local_experts = static_cast<const int32_t*>(recv_experts_->data());
    in.weights = static_cast<const float*>(recv_weights_->data());
    return in;
  }

  void Combine(const float* y, float* out) override {
    world_->AllToAll({{y, parts_->data(), PartBytes()}}, received_, sent_);
    AddCopiesArgs add;
    add.parts = static_cast<const float*>(parts_->data());
    add.rows = rows_;
    add.cols = options_.hidden;
    add.num_ranks = world_->size();
    add.counts = SentCounts();
    add.copy_of = static_cast<const int32_t*>(copy_of_->data());
    add.out = out;
    backend_->AddCopies(add);
  }

 private:
  int64_t SlotBytes() const {
    return options_.top_k * static_cast<int64_t>(sizeof(int32_t));
  }
  int64_t PartBytes() const {
    return options_.hidden * static_cast<int64_t>(sizeof(float));
  }
  int64_t* SentCounts() const { return static_cast<int64_t*>(counts_->data()); }
  const int32_t* RankOf(int layer) const {
    return static_cast<const int32_t*>(placement_->data()) +
           int64_t{2} * layer * num_experts_;
  }

  // Tells every rank, and its host, who sends how much to whom. Returns a mark
  // for WaitForCounts: what is queued in between runs while the host waits.
  int64_t ExchangeCounts() {
    const int ranks = world_->size();
    int64_t* const counts = SentCounts();
    const int64_t bytes = ranks * static_cast<int64_t>(sizeof(int64_t));
    world_->AllGather(counts, counts + ranks, bytes);
    backend_->CopyToHost(counts_of_ranks_.data(), counts + ranks,
                         ranks * bytes);
    return backend_->Mark();
  }
  // The only wait for the device.
  void WaitForCounts(int64_t mark) {
    backend_->WaitUntil(mark);
    const int ranks = world_->size();
    const int me = world_->rank();
    for (int r = 0; r < ranks; ++r) {
      sent_[r] = counts_of_ranks_[int64_t{me} * ranks + r];
      received_[r] = counts_of_ranks_[int64_t{r} * ranks + me];
    }
  }

  Communicator* const world_;
  Backend* const backend_;
  const Options options_;
  const int num_experts_;
  const int64_t row_bytes_;
  // Of the latest Dispatch.
  int64_t rows_ = 0;
  std::vector<int64_t> counts_of_ranks_;  // [world, world] by sender
  std::vector<int64_t> sent_;             // [world] copies to each rank
  std::vector<int64_t> received_;         // [world] copies from each rank

  // Device memory; token_copies.h says how copies are numbered.
  std::unique_ptr<DeviceBuffer> placement_;  // [layers, 2, num_experts] int32
  std::unique_ptr<DeviceBuffer> counts_;     // [1 + world, world] sent; by all
  std::unique_ptr<DeviceBuffer> copy_of_;    // [max_rows, world] int32
  std::unique_ptr<DeviceBuffer> send_x_;     // [copies, hidden] x_dtype
  std::unique_ptr<DeviceBuffer> recv_x_;     // [arrivals, hidden] x_dtype
  std::unique_ptr<DeviceBuffer> send_experts_;  // [copies, top_k] int32
  std::unique_ptr<DeviceBuffer> recv_experts_;  // [arrivals, top_k] int32
  std::unique_ptr<DeviceBuffer> send_weights_;  // [copies, top_k] fp32
  std::unique_ptr<DeviceBuffer> recv_weights_;  // [arrivals, top_k] fp32
  std::unique_ptr<DeviceBuffer> parts_;         // [copies, hidden] fp32
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenExchange>> MakeAllToAllTokenExchange(
    Communicator* world, const ExpertPlacement* placement, Backend* backend,
    const TokenExchange::Options& options) {
  if (placement->world_size() != world->size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("experts are placed on ", placement->world_size(),
                     " ranks, the world has ", world->size()));
  }
  auto exchange = std::make_unique<AllToAllTokenExchange>(world, *placement,
                                                          backend, options);
  RING_RETURN_IF_ERROR(exchange->Allocate(*placement));
  return exchange;
}

}  // namespace ring
