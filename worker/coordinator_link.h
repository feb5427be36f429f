// The leader's side of the stream to the coordinator.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/credentials.h"
#include "worker/generation_request.h"
#include "worker/request_sink.h"

namespace ring {

// What the group says of itself when it joins.
struct GroupDescription {
  std::string model_digest;
  std::string device;  // "cpu", "cuda"
  int dp = 1;
  int tp = 1;
  // Of each of the dp data-parallel groups.
  int64_t max_sequences = 0;
  int64_t kv_tokens = 0;
  int64_t max_batch_tokens = 0;
  int64_t context_length = 0;
};

// Keeps one Join stream open. Requests from it go to a RequestSink, news from
// the engine go up through Publish. When the stream breaks, everything in the
// sink is cancelled and the link joins again with a new epoch: 50 ms later,
// then twice as long each time, up to 2 s, for ever. Whatever is published for
// requests of an earlier stream is dropped.
//
// Two threads: one connects and reads, one writes. Publish and PublishLoad only
// add to what the writer sends next, merged per request: its size is bounded by
// the completions of the sequences that run. Thread-safe.
class CoordinatorLink final : public EventSink {
 public:
  struct Options {
    std::string coordinator;  // HOST:PORT
    TlsFiles tls;
    GroupDescription group;
    // Called once, on the link's thread, when joining again is of no use:
    // another model, another protocol version. The message says why. The
    // link is dead afterwards.
    std::function<void(absl::Status)> on_refused;
  };

  // Asks the coordinator, once and for a few seconds, whether it would take
  // this group; nothing joins. FAILED_PRECONDITION or INVALID_ARGUMENT: it
  // would not, or the TLS files are wrong; NOT_FOUND: one is missing. Any other
  // error: no answer, which a coordinator that is not there yet gives as well.
  static absl::Status Ask(const Options& options);

  // Starts to connect. `sink` must outlive the link. INVALID_ARGUMENT or
  // NOT_FOUND: TLS files.
  static absl::StatusOr<std::unique_ptr<CoordinatorLink>> Start(
      Options options, RequestSink* sink);

  // Leaves the coordinator and stops both threads.
  ~CoordinatorLink() override;

  // EventSink.
  void Publish(std::vector<TokenEvent> events) override;
  void PublishLoad(const LoadReport& load) override;

 private:
  class Impl;
  explicit CoordinatorLink(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace ring
