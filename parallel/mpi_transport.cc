#include "parallel/mpi_transport.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

// MPI counts in int; pieces stay well below.
constexpr int64_t kMaxPiece = int64_t{1} << 30;

// Ranks in step wait for each other for some tens of microseconds. Who waits
// longer waits for a slower rank, which may need this core.
constexpr auto kYieldFor = std::chrono::microseconds(200);
constexpr auto kFirstSleep = std::chrono::microseconds(20);
constexpr auto kLongestSleep = std::chrono::microseconds(1000);

absl::Status ToStatus(int code, const char* call) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  return absl::InternalError(
      absl::StrCat(call, ": ", absl::string_view(text, length)));
}

class MpiTransportImpl final : public MpiTransport {
 public:
  MpiTransportImpl(const Options& options, int rank)
      : members_(options.members),
        tag_(options.tag),
        deadline_(options.deadline),
        rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  absl::Status Exchange(absl::Span<const SendBlock> sends,
                        absl::Span<const RecvBlock> recvs) override {
    requests_.clear();
    // Receives first: a message that finds its place waiting is not copied
    // twice.
    for (const RecvBlock& block : recvs) {
      for (int64_t at = 0; at < block.bytes; at += kMaxPiece) {
        RING_RETURN_IF_ERROR(ToStatus(
            MPI_Irecv(static_cast<char*>(block.data) + at,
                      Piece(block.bytes - at), MPI_BYTE, members_[block.from],
                      tag_, MPI_COMM_WORLD, NewRequest()),
            "MPI_Irecv"));
      }
    }
    for (const SendBlock& block : sends) {
      for (int64_t at = 0; at < block.bytes; at += kMaxPiece) {
        RING_RETURN_IF_ERROR(
            BeginSend(block.to, static_cast<const char*>(block.data) + at,
                      Piece(block.bytes - at)));
      }
    }
    return CompleteRequests("exchanging blocks");
  }

  absl::Status Send(int to, absl::string_view message) override {
    if (static_cast<int64_t>(message.size()) > kMaxPiece) {
      return absl::InvalidArgumentError(
          absl::StrCat("a control message of ", message.size(),
                       " bytes is longer than ", kMaxPiece));
    }
    return BeginSend(to, message.data(), static_cast<int>(message.size()));
  }

  absl::Status CompleteSends() override {
    const absl::Status status = CompleteRequests("sending a message");
    requests_.clear();
    return status;
  }

  absl::Status Receive(int from, std::string* message) override {
    MPI_Message arrived = MPI_MESSAGE_NULL;
    MPI_Status envelope;
    RING_RETURN_IF_ERROR(Wait(
        [&](int* done) {
          return ToStatus(MPI_Improbe(members_[from], tag_, MPI_COMM_WORLD,
                                      done, &arrived, &envelope),
                          "MPI_Improbe");
        },
        absl::StrCat("waiting for a message of rank ", members_[from])));
    int bytes = 0;
    RING_RETURN_IF_ERROR(
        ToStatus(MPI_Get_count(&envelope, MPI_BYTE, &bytes), "MPI_Get_count"));
    message->resize(bytes);
    MPI_Request request = MPI_REQUEST_NULL;
    RING_RETURN_IF_ERROR(ToStatus(
        MPI_Imrecv(message->data(), bytes, MPI_BYTE, &arrived, &request),
        "MPI_Imrecv"));
    return Wait(
        [&](int* done) {
          return ToStatus(MPI_Test(&request, done, MPI_STATUS_IGNORE),
                          "MPI_Test");
        },
        "receiving a message");
  }

 private:
  static int Piece(int64_t bytes) {
    return static_cast<int>(std::min(bytes, kMaxPiece));
  }

  MPI_Request* NewRequest() {
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  absl::Status BeginSend(int to, const char* data, int bytes) {
    return ToStatus(MPI_Isend(data, bytes, MPI_BYTE, members_[to], tag_,
                              MPI_COMM_WORLD, NewRequest()),
                    "MPI_Isend");
  }

  absl::Status CompleteRequests(absl::string_view doing) {
    return Wait(
        [&](int* done) {
          return ToStatus(
              MPI_Testall(static_cast<int>(requests_.size()), requests_.data(),
                          done, MPI_STATUSES_IGNORE),
              "MPI_Testall");
        },
        doing);
  }

  // Calls `test` until it sets done.
  absl::Status Wait(absl::FunctionRef<absl::Status(int* done)> test,
                    absl::string_view doing) {
    int done = 0;
    RING_RETURN_IF_ERROR(test(&done));
    if (done != 0) return absl::OkStatus();
    const Clock::time_point start = Clock::now();
    Clock::duration sleep = kFirstSleep;
    while (true) {
      RING_RETURN_IF_ERROR(test(&done));
      if (done != 0) return absl::OkStatus();
      const Clock::duration waited = Clock::now() - start;
      if (waited < kYieldFor) {
        sched_yield();
        continue;
      }
      if (waited > deadline_) {
        return absl::DeadlineExceededError(
            absl::StrCat("rank ", members_[rank_], " gave up after ",
                         deadline_.count(), " ms of ", doing));
      }
      std::this_thread::sleep_for(sleep);
      sleep = std::min<Clock::duration>(sleep * 2, kLongestSleep);
    }
  }

  const std::vector<int> members_;
  const int tag_;
  const std::chrono::milliseconds deadline_;
  const int rank_;
  std::vector<MPI_Request> requests_;  // of the call in progress, and of Send
};

}  // namespace

std::unique_ptr<MpiTransport> MpiTransport::Create(const Options& options) {
  int world_rank = 0;
  RING_CHECK_EQ(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank), MPI_SUCCESS);
  const auto self =
      std::find(options.members.begin(), options.members.end(), world_rank);
  RING_CHECK(self != options.members.end())
      << "rank " << world_rank << " is no member of its transport";
  return std::make_unique<MpiTransportImpl>(
      options, static_cast<int>(self - options.members.begin()));
}

}  // namespace ring
