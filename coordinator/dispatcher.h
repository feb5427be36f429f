// Brings requests and worker groups together.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/group_link.h"
#include "coordinator/request.h"
#include "coordinator/request_table.h"
#include "coordinator/retry_after.h"
#include "coordinator/router.h"
#include "kernels/base/mutex.h"
#include "ring/v1/cluster.pb.h"
#include "ring/v1/inference.pb.h"

namespace ring {

// Every live request and every group of this coordinator. A request is given
// to a group as soon as the router finds one with room; until then it waits in
// one queue, first come first served, whose bound is `max_queued`.
// Thread-safe. Never calls out but to Request, GroupLink and `on_serving`.
class Dispatcher {
 public:
  struct Options {
    int64_t max_queued = 1024;
    std::string model_name = {};  // for messages
    int32_t num_token_ids = 0;    // told to groups
    // Called whenever the answer to "can requests be served" changes.
    std::function<void(bool serving)> on_serving = {};
  };

  explicit Dispatcher(Options options);

  // ----- requests -----

  uint64_t NextRequestId() { return ++last_request_id_; }

  // Accepts a request, or returns why not; then nothing was sent to it.
  // UNAVAILABLE: no group serves, or the coordinator drains.
  // INVALID_ARGUMENT: no group can ever hold the prompt and its max_tokens.
  // ALREADY_EXISTS: a live request has its name.
  // RESOURCE_EXHAUSTED, with RetryAfter: the queue is full.
  absl::Status Submit(std::shared_ptr<Request> request);

  // RESOURCE_EXHAUSTED, as Submit's, when no request could be accepted now: to
  // ask before a prompt is tokenized.
  absl::Status CheckQueue();

  // Ends a request with `why`, here and in its group. Ignored if it has ended.
  void Cancel(uint64_t id, const absl::Status& why);

  // The same by the client's name for it. NOT_FOUND.
  absl::Status Abort(const std::string& name);

  // ----- groups -----

  // Takes a group in, sends it Welcome and returns its id. A leader that joins
  // again replaces its former self. FAILED_PRECONDITION: its epoch is not newer
  // than one seen. UNAVAILABLE: the coordinator drains.
  absl::StatusOr<int64_t> AddGroup(GroupInfo info,
                                   std::shared_ptr<GroupLink> link);

  // The group is gone: its requests end with UNAVAILABLE. Ignored when it is
  // not (any more) here.
  void RemoveGroup(int64_t group, const std::string& why);

  // News of a group, in the order it sent them. What does not concern a
  // request that it runs is ignored.
  void OnLoad(int64_t group, const v1::Load& load);
  void OnTokens(int64_t group, const v1::TokenEvents& events);
  void OnFailed(int64_t group, uint64_t id, const absl::Status& status);

  // ----- the end -----

  // Sends no more requests to the group and tells it to finish. Returns the
  // number it still runs. NOT_FOUND.
  absl::StatusOr<int64_t> DrainGroup(int64_t group);

  // Admits nothing from now on.
  void Drain();
  // Waits until no request is live. False: `deadline` has passed before.
  bool WaitUntilIdle(std::chrono::steady_clock::time_point deadline);
  // Ends all live requests with `why`.
  void CancelAll(const absl::Status& why);
  // The same, and ends all streams to groups; admits nothing from now on.
  void Shutdown(const absl::Status& why);

  int64_t live_requests();
  v1::GetLoadResponse GetLoad();

 private:
  // Gives waiting requests to groups while there is room.
  void Pump() REQUIRES(mutex_);
  // What follows an outcome of Request::OnTokens other than kLive.
  void End(int64_t group, Request::Outcome outcome, Request* request);
  // Takes a request out of all books. The request itself is not told.
  void Forget(uint64_t id) REQUIRES(mutex_);
  void Fail(uint64_t id, const absl::Status& why) REQUIRES(mutex_);
  // Without a choice: all of the request.
  void SendCancel(int64_t group, uint64_t id,
                  std::optional<int> choice = std::nullopt) REQUIRES(mutex_);
  void Remove(int64_t group, const std::string& why) REQUIRES(mutex_);
  // Fails the waiting requests that no group that is left can hold.
  void FailStranded() REQUIRES(mutex_);
  void UpdateServing() REQUIRES(mutex_);
  absl::Status CheckAdmission(const Request& request) REQUIRES(mutex_);
  absl::Status QueueIsFull() REQUIRES(mutex_);
  // "worker group 2 (host node7, pid 123)"
  std::string Describe(int64_t group) REQUIRES(mutex_);

  const Options options_;
  const std::chrono::steady_clock::time_point started_at_;
  std::atomic<uint64_t> last_request_id_{0};

  Mutex mutex_;
  CondVar idle_;
  RequestTable table_ GUARDED_BY(mutex_);
  Router router_ GUARDED_BY(mutex_);
  // Shared with gRPC, which keeps a stream until its last callback.
  std::map<int64_t, std::shared_ptr<GroupLink>> links_ GUARDED_BY(mutex_);
  bool draining_ GUARDED_BY(mutex_) = false;
  bool serving_ GUARDED_BY(mutex_) = false;
  int64_t finished_requests_ GUARDED_BY(mutex_) = 0;
  int64_t failed_requests_ GUARDED_BY(mutex_) = 0;
  int64_t generated_tokens_ GUARDED_BY(mutex_) = 0;
  RetryEstimate retry_estimate_ GUARDED_BY(mutex_);
};

}  // namespace ring
