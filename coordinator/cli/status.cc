// ring status: what is served, by whom, and how busy it is; once, or again
// every second.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/str_format.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/connection.h"
#include "coordinator/cli/generation.h"
#include "coordinator/cli/live_text.h"
#include "coordinator/cli/server_status.h"
#include "kernels/base/mutex.h"
#include "kernels/base/signal_watcher.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kEvery{1};

// Tokens per second between two looks at the same coordinator.
double TokensPerSecond(const v1::GetLoadResponse& before,
                       const v1::GetLoadResponse& now) {
  const int64_t us = now.uptime_us() - before.uptime_us();
  if (us <= 0) return 0;  // it has been started again
  return static_cast<double>(now.generated_tokens() -
                             before.generated_tokens()) *
         1e6 / static_cast<double>(us);
}

// One line, for logs.
std::string LineOf(const v1::GetLoadResponse& load, double tokens_per_s) {
  return absl::StrFormat(
      "groups %d, running %d, queued %d, finished %d, failed %d, tokens/s "
      "%.0f\n",
      load.groups_size(), load.running(), load.queued(),
      load.finished_requests(), load.failed_requests(), tokens_per_s);
}

// Shows the status every second until it is stopped.
class Watch {
 public:
  Watch(const StatusFlags& flags, const Connection& connection)
      : flags_(flags), reader_(connection) {}

  // The last status seen. An error ends the watch.
  absl::StatusOr<ServerStatus> Run() {
    std::optional<ServerStatus> last;
    // A look that takes long is not made up for.
    for (Clock::time_point next = Clock::now();;
         next = std::max(next + kEvery, Clock::now())) {
      {
        MutexLock lock(&mutex_);
        while (!stopped_ && changed_.WaitUntil(&mutex_, next)) {
        }
        if (stopped_ && last.has_value()) return *last;
      }
      absl::StatusOr<ServerStatus> status = reader_.Ask();
      if (absl::IsCancelled(status.status()) && last.has_value()) return *last;
      RING_RETURN_IF_ERROR(status.status());
      Show(last.has_value() ? TokensPerSecond(last->load, status->load) : 0,
           *status);
      RING_RETURN_IF_ERROR(CheckWritten());
      last = *std::move(status);
    }
  }

  // From the thread that waits for signals.
  void Stop() {
    reader_.Cancel();
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }

 private:
  void Show(double tokens_per_s, const ServerStatus& status) {
    if (flags_.json) {
      std::printf("%s", StatusJson(status).c_str());
    } else if (screen_.on_terminal()) {
      screen_.Show(StatusText(flags_.connection.server, status) +
                   absl::StrFormat("  %.0f tokens/s\n", tokens_per_s));
    } else {
      std::printf("%s", LineOf(status.load, tokens_per_s).c_str());
    }
  }

  const StatusFlags& flags_;
  StatusReader reader_;
  LiveText screen_{stdout};
  Mutex mutex_;
  CondVar changed_;
  bool stopped_ GUARDED_BY(mutex_) = false;
};

absl::StatusOr<ServerStatus> WatchStatus(const StatusFlags& flags,
                                         const Connection& connection) {
  Watch watch(flags, connection);
  // Before gRPC starts threads, so that none of them takes the signals.
  const SignalWatcher interrupt([&watch](int, int) { watch.Stop(); });
  return watch.Run();
}

absl::StatusOr<ServerStatus> PrintStatus(const StatusFlags& flags,
                                         const Connection& connection) {
  RING_ASSIGN_OR_RETURN(ServerStatus status, StatusReader(connection).Ask());
  std::printf("%s", flags.json
                        ? StatusJson(status).c_str()
                        : StatusText(flags.connection.server, status).c_str());
  RING_RETURN_IF_ERROR(CheckWritten());
  return status;
}

}  // namespace

int RunStatus(const StatusFlags& flags) {
  const absl::StatusOr<Connection> connection =
      ReadConnection(flags.connection);
  if (!connection.ok()) return ReportMistake("status", connection.status());
  const absl::StatusOr<ServerStatus> status =
      flags.watch ? WatchStatus(flags, *connection)
                  : PrintStatus(flags, *connection);
  if (!status.ok()) {
    return ReportFailure("status", *connection, status.status());
  }
  return status->serving() ? 0 : 1;
}

}  // namespace ring
