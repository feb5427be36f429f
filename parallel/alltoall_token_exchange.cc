#include "parallel/alltoall_token_exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

class AllToAllTokenExchange final : public TokenExchange {
 public:
  AllToAllTokenExchange(Communicator* world, const ExpertPlacement* placement,
                        const Options& options)
      : world_(world),
        placement_(placement),
        options_(options),
        row_bytes_(options.hidden *
                   static_cast<int64_t>(SizeOf(options.x_dtype))),
        route_bytes_(options.top_k * kSlotBytes),
        sent_(world->size()),
        received_(world->size()),
        send_bytes_(world->size()),
        recv_bytes_(world->size()),
        next_copy_(world->size()) {
    const int64_t copies = MaxCopies();
    const int64_t arrivals = MaxArrivals();
    destinations_.resize(options.max_rows * options.top_k);
    copy_rows_.resize(copies);
    send_routes_.resize(copies * route_bytes_);
    recv_routes_.resize(arrivals * route_bytes_);
    local_experts_.resize(arrivals * options.top_k);
    weights_.resize(arrivals * options.top_k);
  }

  absl::Status Allocate(Backend* backend) {
    RING_ASSIGN_OR_RETURN(send_x_, backend->Allocate(MaxCopies() * row_bytes_));
    RING_ASSIGN_OR_RETURN(recv_x_,
                          backend->Allocate(MaxArrivals() * row_bytes_));
    RING_ASSIGN_OR_RETURN(parts_, backend->Allocate(MaxCopies() * PartBytes()));
    return absl::OkStatus();
  }

  DispatchedRows Dispatch(int64_t rows, const void* x, const int32_t* experts,
                          const float* weights, int layer) override {
    RING_CHECK_LE(rows, options_.max_rows);
    PlanCopies(rows, experts, layer);
    Pack(rows, x, experts, weights, layer);
    world_->ExchangeCounts(sent_, absl::MakeSpan(received_));
    SetBytes(sent_, row_bytes_, &send_bytes_);
    SetBytes(received_, row_bytes_, &recv_bytes_);
    world_->AllToAll(send_x_->data(), send_bytes_, recv_x_->data(),
                     recv_bytes_);
    SetBytes(sent_, route_bytes_, &send_bytes_);
    SetBytes(received_, route_bytes_, &recv_bytes_);
    world_->AllToAll(send_routes_.data(), send_bytes_, recv_routes_.data(),
                     recv_bytes_);
    return Unpack();
  }

  void Combine(const float* y, float* out) override {
    SetBytes(received_, PartBytes(), &send_bytes_);
    SetBytes(sent_, PartBytes(), &recv_bytes_);
    world_->AllToAll(y, send_bytes_, parts_->data(), recv_bytes_);
    // Copies lie in order of destination, so every row adds in rank order.
    const float* part = static_cast<const float*>(parts_->data());
    for (int64_t copy = 0; copy < num_copies_; ++copy) {
      float* const row = out + copy_rows_[copy] * options_.hidden;
      for (int64_t c = 0; c < options_.hidden; ++c) row[c] += part[c];
      part += options_.hidden;
    }
  }

 private:
  // A copy travels with its route: for each slot the destination's local
  // expert, then for each slot the weight.
  static constexpr int64_t kSlotBytes = sizeof(int32_t) + sizeof(float);

  int64_t MaxCopies() const {
    return options_.max_rows * std::min(options_.top_k, world_->size());
  }
  int64_t MaxArrivals() const { return options_.max_rows * world_->size(); }
  int64_t PartBytes() const {
    return options_.hidden * static_cast<int64_t>(sizeof(float));
  }

  static void SetBytes(const std::vector<int64_t>& counts, int64_t bytes_each,
                       std::vector<int64_t>* bytes) {
    for (size_t r = 0; r < counts.size(); ++r) {
      (*bytes)[r] = counts[r] * bytes_each;
    }
  }

  // The destination of every slot, -1 where an earlier slot of its row already
  // goes there; the copies for each destination, and where they begin.
  void PlanCopies(int64_t rows, const int32_t* experts, int layer) {
    std::fill(sent_.begin(), sent_.end(), 0);
    for (int64_t row = 0; row < rows; ++row) {
      int* const to = &destinations_[row * options_.top_k];
      for (int j = 0; j < options_.top_k; ++j) {
        const int rank =
            placement_->RankOf(layer, experts[row * options_.top_k + j]);
        const bool again = std::find(to, to + j, rank) != to + j;
        to[j] = again ? -1 : rank;
        if (!again) ++sent_[rank];
      }
    }
    num_copies_ = 0;
    for (int r = 0; r < world_->size(); ++r) {
      next_copy_[r] = num_copies_;
      num_copies_ += sent_[r];
    }
  }

  void Pack(int64_t rows, const void* x, const int32_t* experts,
            const float* weights, int layer) {
    const int top_k = options_.top_k;
    char* const send_x = static_cast<char*>(send_x_->data());
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t* const row_experts = experts + row * top_k;
      for (int j = 0; j < top_k; ++j) {
        const int to = destinations_[row * top_k + j];
        if (to < 0) continue;
        const int64_t copy = next_copy_[to]++;
        copy_rows_[copy] = row;
        std::memcpy(send_x + copy * row_bytes_,
                    static_cast<const char*>(x) + row * row_bytes_, row_bytes_);
        char* const route = &send_routes_[copy * route_bytes_];
        for (int k = 0; k < top_k; ++k) {
          const int32_t local =
              placement_->RankOf(layer, row_experts[k]) == to
                  ? placement_->LocalIndex(layer, row_experts[k])
                  : -1;
          std::memcpy(route + k * sizeof(local), &local, sizeof(local));
        }
        std::memcpy(route + top_k * sizeof(int32_t), weights + row * top_k,
                    top_k * sizeof(float));
      }
    }
  }

  DispatchedRows Unpack() {
    const int top_k = options_.top_k;
    DispatchedRows in;
    for (const int64_t count : received_) in.rows += count;
    for (int64_t row = 0; row < in.rows; ++row) {
      const char* const route = &recv_routes_[row * route_bytes_];
      std::memcpy(&local_experts_[row * top_k], route, top_k * sizeof(int32_t));
      std::memcpy(&weights_[row * top_k], route + top_k * sizeof(int32_t),
                  top_k * sizeof(float));
    }
    in.x = recv_x_->data();
    in.local_experts = local_experts_.data();
    in.weights = weights_.data();
    return in;
  }

  Communicator* const world_;
  const ExpertPlacement* const placement_;
  const Options options_;
  const int64_t row_bytes_;
  const int64_t route_bytes_;

  // Of the latest Dispatch. Copies are numbered by destination, then by row.
  std::vector<int64_t> sent_;       // [world] copies to each rank
  std::vector<int64_t> received_;   // [world] copies from each rank
  std::vector<int> destinations_;   // [max_rows, top_k]
  std::vector<int64_t> copy_rows_;  // [copies] row of each copy
  int64_t num_copies_ = 0;

  // Scratch.
  std::vector<int64_t> send_bytes_;  // [world]
  std::vector<int64_t> recv_bytes_;  // [world]
  std::vector<int64_t> next_copy_;   // [world]
  std::vector<char> send_routes_;    // [copies, route_bytes]
  std::vector<char> recv_routes_;    // [arrivals, route_bytes]

  std::vector<int32_t> local_experts_;    // [arrivals, top_k]
  std::vector<float> weights_;            // [arrivals, top_k]
  std::unique_ptr<DeviceBuffer> send_x_;  // [copies, hidden] x_dtype
  std::unique_ptr<DeviceBuffer> recv_x_;  // [arrivals, hidden] x_dtype
  std::unique_ptr<DeviceBuffer> parts_;   // [copies, hidden] fp32
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
  auto exchange =
      std::make_unique<AllToAllTokenExchange>(world, placement, options);
  RING_RETURN_IF_ERROR(exchange->Allocate(backend));
  return exchange;
}

}  // namespace ring
