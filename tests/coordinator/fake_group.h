// A worker group without a model: joins a coordinator over real gRPC and says
// what a test tells it to say.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "ring/v1/cluster.grpc.pb.h"
#include "tests/coordinator/good_hello.h"

namespace ring::testing {

// One Join stream. A thread collects what the coordinator sends; the test's
// thread writes. Waits give up after 10 s and then fail the test.
class FakeGroup {
 public:
  FakeGroup(const std::string& address, const v1::Hello& hello);
  // Leaves if it is still there.
  ~FakeGroup();

  // Waits for Welcome; false when the stream was refused (see WaitForEnd).
  bool WaitForWelcome(v1::Welcome* welcome = nullptr);
  v1::Submit WaitForSubmit();
  // The id that was cancelled.
  uint64_t WaitForCancel();
  bool WaitForDrain();
  // The status that the stream ended with.
  absl::Status WaitForEnd();

  // Sends tokens of a request; their indices go on from those sent before.
  // Beside each the log probabilities of as many likely tokens.
  void SendTokens(uint64_t id, const std::vector<int32_t>& tokens,
                  v1::GroupFinish finish = v1::GROUP_FINISH_NONE,
                  int likely_tokens = 0);
  void Send(const v1::FromWorker& message);

  // Drops the connection as a crash would.
  void Break();

 private:
  void Read();
  // Takes the next message of a kind out of what came, waiting for it.
  bool Take(v1::ToWorker::MessageCase kind, v1::ToWorker* message);

  std::shared_ptr<grpc::Channel> channel_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::FromWorker, v1::ToWorker>>
      stream_;
  std::vector<std::pair<uint64_t, int64_t>> next_index_;  // per request

  Mutex mutex_;
  CondVar changed_;
  std::deque<v1::ToWorker> came_ GUARDED_BY(mutex_);
  bool ended_ GUARDED_BY(mutex_) = false;
  absl::Status status_ GUARDED_BY(mutex_);
  std::thread reader_;
};

}  // namespace ring::testing
