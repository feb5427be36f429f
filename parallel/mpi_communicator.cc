#include "parallel/mpi_communicator.h"

#include <string>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

class MpiCommunicator final : public HostCommunicator {
 public:
  MpiCommunicator(std::unique_ptr<MpiTransport> transport,
                  const Options& options, std::unique_ptr<DeviceBuffer> parts)
      : HostCommunicator(options, std::move(parts)),
        transport_(std::move(transport)) {}

  static absl::StatusOr<std::unique_ptr<Communicator>> Create(
      std::unique_ptr<MpiTransport> transport, const Options& options) {
    RING_ASSIGN_OR_RETURN(auto parts,
                          AllocateParts(options, transport->size()));
    return std::make_unique<MpiCommunicator>(std::move(transport), options,
                                             std::move(parts));
  }

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }

 private:
  void ExchangeWithPeers(absl::Span<const SendBlock> sends,
                         absl::Span<const RecvBlock> recvs) override {
    const absl::Status status = transport_->Exchange(sends, recvs);
    RING_CHECK(status.ok()) << status;
  }

  const std::unique_ptr<MpiTransport> transport_;
};

class MpiControlChannel final : public ControlChannel {
 public:
  MpiControlChannel(std::unique_ptr<MpiTransport> transport, Progress* progress)
      : transport_(std::move(transport)), progress_(progress) {}

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }

  absl::Status Broadcast(std::string* message) override {
    CollectiveScope scope(progress_);
    if (rank() != 0) return transport_->Receive(0, message);
    for (int r = 1; r < size(); ++r) {
      RING_RETURN_IF_ERROR(transport_->Send(r, *message));
    }
    return transport_->CompleteSends();
  }

  absl::Status Gather(absl::string_view message,
                      std::vector<std::string>* all) override {
    CollectiveScope scope(progress_);
    all->clear();
    if (rank() == 0) return ReceiveAll(message, all);
    RING_RETURN_IF_ERROR(transport_->Send(0, message));
    return transport_->CompleteSends();
  }

  absl::Status AllGather(absl::string_view message,
                         std::vector<std::string>* all) override {
    CollectiveScope scope(progress_);
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) RING_RETURN_IF_ERROR(transport_->Send(r, message));
    }
    RING_RETURN_IF_ERROR(ReceiveAll(message, all));
    return transport_->CompleteSends();
  }

 private:
  absl::Status ReceiveAll(absl::string_view own,
                          std::vector<std::string>* all) {
    all->assign(size(), std::string());
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) {
        (*all)[r] = std::string(own);
      } else {
        RING_RETURN_IF_ERROR(transport_->Receive(r, &(*all)[r]));
      }
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<MpiTransport> transport_;
  Progress* const progress_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(
    std::unique_ptr<MpiTransport> transport,
    const HostCommunicator::Options& options) {
  return MpiCommunicator::Create(std::move(transport), options);
}

std::unique_ptr<ControlChannel> MakeMpiControlChannel(
    std::unique_ptr<MpiTransport> transport, Progress* progress) {
  return std::make_unique<MpiControlChannel>(std::move(transport), progress);
}

}  // namespace ring
