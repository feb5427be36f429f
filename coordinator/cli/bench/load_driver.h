// Sends the requests of a load and notes when their tokens come.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "coordinator/cli/bench/latency_summary.h"
#include "coordinator/cli/bench/load_plan.h"
#include "coordinator/cli/connection.h"
#include "kernels/base/mutex.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {

// One load. Requests ignore the model's ends of sequence, so completions have
// the planned lengths. All streams share the stub's connection; gRPC's threads
// read them. Run is confined to one thread, Stop may come from any.
class LoadDriver {
 public:
  struct Args {
    Connection connection;                // its timeout_s bounds each request
    v1::Inference::Stub* stub = nullptr;  // outlives the driver
    // What random prompts are made of; not empty.
    std::vector<int32_t> token_ids;
    // Requests in flight; the next is sent when one ends. 0: each is sent when
    // its time has come, whatever is in flight.
    int64_t concurrency = 0;
    int64_t max_requests = 0;  // 0: no bound
    double max_seconds = 0;    // none is sent later; 0: no bound
    uint64_t seed = 1;
  };
  struct Progress {
    double seconds = 0;
    int64_t running = 0;
    int64_t finished = 0;
    int64_t failed = 0;
    int64_t tokens = 0;
  };

  explicit LoadDriver(Args args);
  ~LoadDriver();

  // Sends the plan's requests and waits for all of them. Reports about twice a
  // second and at the end. Once. After Stop the records are those of requests
  // that had ended.
  std::vector<RequestRecord> Run(
      LoadPlan plan, const std::function<void(const Progress&)>& on_progress);

  // Sends nothing more and cancels what is in flight.
  void Stop();

 private:
  class Call;

  double Now() const;
  v1::GenerateRequest MakeRequest(int64_t index,
                                  const PlannedRequest& planned) const;
  // False: no more request is to be sent.
  bool WaitForTurn(const PlannedRequest& planned);
  void Start(int64_t index, const PlannedRequest& planned);
  // Waits until `time_s` or until at most `max_live` requests are in flight.
  // With max_live -1, Stop ends it as well.
  void WaitUntil(double time_s, int64_t max_live);
  Progress GetProgress() REQUIRES(mutex_);
  // The last callback of a call.
  void OnDone(int64_t index, RequestRecord record);

  const Args args_;
  const std::chrono::steady_clock::time_point started_at_;
  std::function<void(const Progress&)> on_progress_;
  double report_s_ = 0;  // when the next report is due
  std::atomic<int64_t> tokens_{0};

  Mutex mutex_;
  CondVar changed_;
  std::map<int64_t, std::unique_ptr<Call>> live_ GUARDED_BY(mutex_);
  std::vector<RequestRecord> records_ GUARDED_BY(mutex_);
  int64_t failed_ GUARDED_BY(mutex_) = 0;
  bool stopped_ GUARDED_BY(mutex_) = false;
};

}  // namespace ring
