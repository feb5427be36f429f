// Clients and worker groups of a Dispatcher without gRPC, for unit tests and
// fuzz targets.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/dispatcher.h"
#include "coordinator/served_model.h"
#include "kernels/base/check.h"
#include "kernels/base/mutex.h"

namespace ring::testing {

inline constexpr int32_t kEos = 808;

inline const ServedModel& Model() {
  static const ServedModel* const model =
      LoadServedModel(RING_TEST_DATA "/ring-tiny")->release();
  return *model;
}

// Counts what one client saw.
class ClientStream : public EventStream {
 public:
  bool Send(v1::GenerateEvent event) override {
    MutexLock lock(&mutex_);
    RING_CHECK(!closed_);
    RING_CHECK(!finished_);
    if (event.has_accepted()) accepted_ = true;
    if (event.has_finished()) finished_ = true;
    if (event.has_delta() && refuses_) return false;
    tokens_ += event.delta().token_ids_size();
    return true;
  }
  void Close(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    RING_CHECK(!closed_);
    // Exactly one terminal event or status.
    RING_CHECK_EQ(finished_, status.ok());
    closed_ = true;
    status_ = status;
    changed_.NotifyAll();
  }

  // From now on the client is one that does not read.
  void Refuse() {
    MutexLock lock(&mutex_);
    refuses_ = true;
  }
  int64_t tokens() {
    MutexLock lock(&mutex_);
    return tokens_;
  }
  bool closed() {
    MutexLock lock(&mutex_);
    return closed_;
  }
  absl::Status WaitForEnd() {
    MutexLock lock(&mutex_);
    while (!closed_) changed_.Wait(&mutex_);
    return status_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool refuses_ GUARDED_BY(mutex_) = false;
  bool accepted_ GUARDED_BY(mutex_) = false;
  int64_t tokens_ GUARDED_BY(mutex_) = 0;
  bool finished_ GUARDED_BY(mutex_) = false;
  bool closed_ GUARDED_BY(mutex_) = false;
  absl::Status status_ GUARDED_BY(mutex_);
};

// Collects what a group is told.
class Link : public GroupLink {
 public:
  void Send(v1::ToWorker message) override {
    MutexLock lock(&mutex_);
    if (message.has_submit()) submits_.push_back(message.submit());
    if (message.has_cancel()) ++cancels_;
    changed_.NotifyAll();
  }
  void Close(const absl::Status&) override {
    MutexLock lock(&mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }
  // False once the link is closed.
  bool Next(v1::Submit* submit) {
    MutexLock lock(&mutex_);
    while (!closed_ && submits_.empty()) changed_.Wait(&mutex_);
    if (submits_.empty()) return false;
    *submit = std::move(submits_.front());
    submits_.pop_front();
    return true;
  }
  int cancels() {
    MutexLock lock(&mutex_);
    return cancels_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::deque<v1::Submit> submits_ GUARDED_BY(mutex_);
  int cancels_ GUARDED_BY(mutex_) = 0;
  bool closed_ GUARDED_BY(mutex_) = false;
};

inline GroupInfo Info(uint64_t key, int64_t max_sequences) {
  GroupInfo info;
  info.key = key;
  info.epoch = 1;
  info.host = "fake";
  info.max_sequences = max_sequences;
  info.kv_tokens = 1000;
  info.context_length = 1000;
  return info;
}

// A request of three tokens.
inline Request::Args RequestArgs(Dispatcher* dispatcher,
                                 std::shared_ptr<EventStream> stream) {
  Request::Args args;
  args.id = dispatcher->NextRequestId();
  args.name = std::to_string(args.id);
  args.prompt.ids = {5, 6, 7};
  args.model = &Model();
  args.stream = std::move(stream);
  args.arrived_at = std::chrono::steady_clock::now();
  return args;
}

inline std::shared_ptr<Request> MakeRequest(Dispatcher* dispatcher,
                                            std::shared_ptr<EventStream> stream,
                                            std::string name = "",
                                            int64_t max_tokens = 0) {
  Request::Args args = RequestArgs(dispatcher, std::move(stream));
  if (!name.empty()) args.name = std::move(name);
  args.options.max_tokens = max_tokens;
  return std::make_shared<Request>(std::move(args));
}

inline v1::TokenEvents Tokens(uint64_t id, int64_t start, int32_t token) {
  v1::TokenEvents events;
  v1::RequestTokens* tokens = events.add_requests();
  tokens->set_id(id);
  tokens->set_start_index(start);
  tokens->add_token_ids(token);
  if (token == kEos) tokens->set_finish(v1::GROUP_FINISH_EOS);
  return events;
}

}  // namespace ring::testing
