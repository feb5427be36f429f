// Requests, groups and clients that come and go on many threads at once; no
// gRPC, so that ThreadSanitizer sees every lock.
#include "coordinator/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/coordinator/dispatcher_fakes.h"

namespace ring {
namespace {

using ::testing::AllOf;
using testing::ClientStream;
using ::testing::HasSubstr;
using testing::Info;
using testing::kEos;
using testing::Link;
using testing::MakeRequest;
using testing::Tokens;

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
