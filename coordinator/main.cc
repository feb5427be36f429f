// ring-coordinator: loads the model's text side, listens, and ends in an
// orderly way on SIGTERM.
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/flags.h"
#include "coordinator/served_model.h"
#include "coordinator/server.h"
#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "kernels/base/signal_watcher.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

// Set when the program was asked to end.
class EndRequest {
 public:
  void Set() {
    MutexLock lock(&mutex_);
    set_ = true;
    changed_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(&mutex_);
    while (!set_) changed_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool set_ GUARDED_BY(mutex_) = false;
};

// Readers of the file never see half of it.
absl::Status WritePortFile(const std::string& path,
                           const std::string& address) {
  const std::string partial = path + ".partial";
  FILE* file = std::fopen(partial.c_str(), "w");
  const bool written =
      file != nullptr && std::fprintf(file, "%s\n", address.c_str()) > 0;
  const bool closed = file != nullptr && std::fclose(file) == 0;
  if (!written || !closed || std::rename(partial.c_str(), path.c_str()) != 0) {
    return absl::InvalidArgumentError("cannot write --port-file " + path);
  }
  return absl::OkStatus();
}

absl::Status Run(CoordinatorFlags flags) {
  EndRequest end_request;
  Server* running = nullptr;
  bool cut_short = false;
  Mutex running_mutex;
  // The first signal starts the drain, the second cuts it short.
  SignalWatcher signals([&](int, int count) {
    end_request.Set();
    MutexLock lock(&running_mutex);
    if (count == 1 || running == nullptr) return;
    cut_short = true;
    running->CancelAll();
  });
  flags.server.on_drain = [&end_request] { end_request.Set(); };

  RING_ASSIGN_OR_RETURN(std::unique_ptr<const ServedModel> model,
                        LoadServedModel(flags.model_dir));
  LogInfo("model loaded", "name", model->name, "digest", model->digest,
          "context", model->context_length, "ids", model->num_token_ids);
  RING_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                        Server::Start(flags.server, std::move(model)));
  {
    MutexLock lock(&running_mutex);
    running = server.get();
  }
  absl::Status status = absl::OkStatus();
  if (!flags.port_file.empty()) {
    status = WritePortFile(flags.port_file, server->address());
  }
  LogInfo("listening", "address", server->address());
  if (status.ok()) {
    end_request.Wait();
    const bool idle =
        server->Drain(std::chrono::steady_clock::now() + flags.drain_timeout);
    MutexLock lock(&running_mutex);
    LogInfo("stopped", "drained", idle && !cut_short ? "yes" : "no");
  }
  MutexLock lock(&running_mutex);
  running = nullptr;
  return status;
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) {
  ring::SetLogIdentity("coordinator");
  signal(SIGPIPE, SIG_IGN);
  const absl::Status status = ring::Run(ring::ParseFlags(argc, argv));
  if (status.ok()) return 0;
  // It has not begun to serve: what the message names has to be mended.
  std::fprintf(stderr, "ring-coordinator: %s\n",
               std::string(status.message()).c_str());
  return 2;
}
