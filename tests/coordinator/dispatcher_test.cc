// Requests, groups and clients that come and go on many threads at once; no
// gRPC, so that ThreadSanitizer sees every lock.
#include "coordinator/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/served_model.h"
#include "kernels/base/mutex.h"

namespace ring {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int32_t kEos = 808;

const ServedModel& Model() {
  static const ServedModel* const model =
      LoadServedModel(RING_TEST_DATA "/ring-tiny")->release();
  return *model;
}

// Counts what one client saw.
class ClientStream : public EventStream {
 public:
  bool Send(v1::GenerateEvent event) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(closed_);
    EXPECT_FALSE(finished_);
    if (event.has_accepted()) accepted_ = true;
    if (event.has_finished()) finished_ = true;
    if (event.has_delta() && refuses_) return false;
    return true;
  }
  void Close(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(closed_);
    // Exactly one terminal event or status.
    EXPECT_EQ(finished_, status.ok());
    closed_ = true;
    status_ = status;
    changed_.NotifyAll();
  }

  // From now on the client is one that does not read.
  void Refuse() {
    MutexLock lock(&mutex_);
    refuses_ = true;
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

GroupInfo Info(uint64_t key, int64_t max_sequences) {
  GroupInfo info;
  info.key = key;
  info.epoch = 1;
  info.host = "fake";
  info.max_sequences = max_sequences;
  info.kv_tokens = 1000;
  info.context_length = 1000;
  return info;
}

std::shared_ptr<Request> MakeRequest(Dispatcher* dispatcher,
                                     std::shared_ptr<EventStream> stream,
                                     std::string name = "",
                                     int64_t max_tokens = 0) {
  Request::Args args;
  args.id = dispatcher->NextRequestId();
  args.name = name.empty() ? std::to_string(args.id) : std::move(name);
  args.prompt.ids = {5, 6, 7};
  args.options.max_tokens = max_tokens;
  args.model = &Model();
  args.stream = std::move(stream);
  args.arrived_at = std::chrono::steady_clock::now();
  return std::make_shared<Request>(std::move(args));
}

v1::TokenEvents Tokens(uint64_t id, int64_t start, int32_t token) {
  v1::TokenEvents events;
  v1::RequestTokens* tokens = events.add_requests();
  tokens->set_id(id);
  tokens->set_start_index(start);
  tokens->add_token_ids(token);
  if (token == kEos) tokens->set_finish(v1::GROUP_FINISH_EOS);
  return events;
}

TEST(DispatcherTest, TellsWhenItServes) {
  std::vector<bool> told;
  Dispatcher dispatcher(
      {.on_serving = [&told](bool serving) { told.push_back(serving); }});
  const auto first = dispatcher.AddGroup(Info(1, 1), std::make_shared<Link>());
  const auto second = dispatcher.AddGroup(Info(2, 1), std::make_shared<Link>());
  dispatcher.RemoveGroup(*first, "test");
  EXPECT_EQ(told, std::vector<bool>{true});
  dispatcher.RemoveGroup(*second, "test");
  EXPECT_EQ(told, (std::vector<bool>{true, false}));
  ASSERT_TRUE(dispatcher.AddGroup(Info(3, 1), std::make_shared<Link>()).ok());
  dispatcher.Drain();
  EXPECT_EQ(told, (std::vector<bool>{true, false, true, false}));
}

// The largest group counts, here of 1,000 and 2,000 tokens.
TEST(DispatcherTest, NeverFittingMaxTokensAreRefusedWithTheNumbers) {
  Dispatcher dispatcher({});
  const auto small = dispatcher.AddGroup(Info(1, 1), std::make_shared<Link>());
  GroupInfo info = Info(2, 1);
  info.kv_tokens = info.context_length = 2000;
  const auto large_link = std::make_shared<Link>();
  const auto large = dispatcher.AddGroup(info, large_link);
  const auto stream = std::make_shared<ClientStream>();

  const absl::Status refused =
      dispatcher.Submit(MakeRequest(&dispatcher, stream, "", 1998));
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr("3 tokens and max_tokens is 1998"),
                    HasSubstr("at most 2000 tokens")));
  EXPECT_EQ(dispatcher.live_requests(), 0);

  // What fits the large group alone runs there, and waits there alone.
  ASSERT_TRUE(
      dispatcher.Submit(MakeRequest(&dispatcher, stream, "", 1997)).ok());
  v1::Submit submit;
  ASSERT_TRUE(large_link->Next(&submit));
  EXPECT_EQ(submit.max_tokens(), 1997);
  const auto waiting = std::make_shared<ClientStream>();
  ASSERT_TRUE(
      dispatcher.Submit(MakeRequest(&dispatcher, waiting, "", 1500)).ok());
  EXPECT_FALSE(waiting->closed());
  dispatcher.RemoveGroup(*large, "test");
  EXPECT_EQ(waiting->WaitForEnd().code(), absl::StatusCode::kUnavailable);

  // Without max_tokens the room bounds the completion.
  const auto plain = std::make_shared<ClientStream>();
  EXPECT_TRUE(dispatcher.Submit(MakeRequest(&dispatcher, plain)).ok());
  dispatcher.RemoveGroup(*small, "test");
}

TEST(DispatcherTest, ClientThatDoesNotReadIsEndedWithAReason) {
  Dispatcher dispatcher({});
  const auto link = std::make_shared<Link>();
  const auto group = dispatcher.AddGroup(Info(1, 1), link);
  const auto stream = std::make_shared<ClientStream>();
  const auto request = MakeRequest(&dispatcher, stream);
  ASSERT_TRUE(dispatcher.Submit(request).ok());
  stream->Refuse();
  dispatcher.OnTokens(*group, Tokens(request->id(), 0, 5));
  const absl::Status status = stream->WaitForEnd();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not read"));
  EXPECT_EQ(link->cancels(), 1);
  EXPECT_EQ(dispatcher.live_requests(), 0);
}

TEST(DispatcherTest, GapInTheTokensEndsTheRequest) {
  Dispatcher dispatcher({});
  const auto group = dispatcher.AddGroup(Info(1, 1), std::make_shared<Link>());
  const auto stream = std::make_shared<ClientStream>();
  const auto request = MakeRequest(&dispatcher, stream);
  ASSERT_TRUE(dispatcher.Submit(request).ok());
  dispatcher.OnTokens(*group, Tokens(request->id(), 0, 5));
  dispatcher.OnTokens(*group, Tokens(request->id(), 2, 5));
  EXPECT_EQ(stream->WaitForEnd().code(), absl::StatusCode::kInternal);
}

TEST(DispatcherTest, TokensOfAnotherGroupAreIgnored) {
  Dispatcher dispatcher({});
  const auto first = dispatcher.AddGroup(Info(1, 1), std::make_shared<Link>());
  const auto second = dispatcher.AddGroup(Info(2, 1), std::make_shared<Link>());
  const auto stream = std::make_shared<ClientStream>();
  const auto request = MakeRequest(&dispatcher, stream);
  ASSERT_TRUE(dispatcher.Submit(request).ok());
  dispatcher.OnTokens(*second, Tokens(request->id(), 0, kEos));
  dispatcher.OnTokens(*second, Tokens(999, 0, kEos));
  EXPECT_FALSE(stream->closed());
  dispatcher.OnTokens(*first, Tokens(request->id(), 0, kEos));
  EXPECT_TRUE(stream->WaitForEnd().ok());
}

TEST(DispatcherTest, NothingIsLostUnderManyThreads) {
  constexpr int kClients = 3;
  constexpr int kRequestsPerClient = 100;
  Dispatcher dispatcher({.max_queued = 8});
  std::atomic<int> ended{0};
  std::atomic<int> refused{0};

  // Two groups answer with a few tokens; each leaves and joins again.
  std::vector<std::thread> groups;
  std::atomic<bool> stopping{false};
  for (uint64_t key = 1; key <= 2; ++key) {
    groups.emplace_back([&dispatcher, &stopping, key] {
      std::mt19937 random(static_cast<uint32_t>(key));
      for (int64_t epoch = 1;; ++epoch) {
        const auto link = std::make_shared<Link>();
        GroupInfo info = Info(key, 2);
        info.epoch = epoch;
        const auto group = dispatcher.AddGroup(info, link);
        if (!group.ok()) return;  // the coordinator drains
        v1::Submit submit;
        for (int requests = 0; requests < 20 && link->Next(&submit);
             ++requests) {
          const int tokens = static_cast<int>(random() % 5);
          for (int i = 0; i < tokens; ++i) {
            dispatcher.OnTokens(*group, Tokens(submit.id(), i, 5));
          }
          if (random() % 8 == 0) {
            dispatcher.OnFailed(*group, submit.id(),
                                absl::InternalError("test"));
          } else {
            dispatcher.OnTokens(*group, Tokens(submit.id(), tokens, kEos));
          }
        }
        dispatcher.RemoveGroup(*group, "test");
        if (stopping) return;
      }
    });
  }
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(static_cast<uint32_t>(100 + client));
      for (int i = 0; i < kRequestsPerClient; ++i) {
        const auto stream = std::make_shared<ClientStream>();
        const auto request = MakeRequest(&dispatcher, stream);
        if (!dispatcher.Submit(request).ok()) {
          ++refused;
          continue;
        }
        if (random() % 4 == 0) {
          dispatcher.Cancel(request->id(), absl::CancelledError("test"));
        }
        stream->WaitForEnd().IgnoreError();
        ++ended;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(ended + refused, kClients * kRequestsPerClient);
  EXPECT_EQ(dispatcher.live_requests(), 0);
  const v1::GetLoadResponse load = dispatcher.GetLoad();
  EXPECT_EQ(load.finished_requests() + load.failed_requests(), ended);
  for (const v1::GroupLoad& group : load.groups()) {
    EXPECT_EQ(group.assigned_requests(), 0);
    EXPECT_EQ(group.assigned_tokens(), 0);
  }
  stopping = true;
  dispatcher.Shutdown(absl::UnavailableError("test"));
  for (std::thread& group : groups) group.join();
}

}  // namespace
}  // namespace ring
