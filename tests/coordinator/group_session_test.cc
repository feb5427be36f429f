// Worker groups that say what they should not: the group or the request that
// it concerns ends with the reason, and nothing else does.
#include "coordinator/group_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/dispatcher_fakes.h"
#include "tests/coordinator/good_hello.h"

namespace ring {
namespace {

using testing::ClientStream;
using testing::GoodHello;
using ::testing::HasSubstr;
using testing::kEos;
using testing::Link;
using testing::RequestArgs;
using testing::Tokens;

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

v1::FromWorker Message(v1::Hello hello) {
  v1::FromWorker message;
  *message.mutable_hello() = std::move(hello);
  return message;
}

v1::FromWorker Message(v1::TokenEvents events) {
  v1::FromWorker message;
  *message.mutable_tokens() = std::move(events);
  return message;
}

v1::FromWorker Failed(uint64_t id, int code, const std::string& text) {
  v1::FromWorker message;
  message.mutable_failed()->set_id(id);
  message.mutable_failed()->set_code(code);
  message.mutable_failed()->set_message(text);
  return message;
}

// Two groups of one sequence, each with a request.
class GroupSessionTest : public ::testing::Test {
 protected:
  struct Client {
    uint64_t id = 0;
    std::shared_ptr<ClientStream> stream = std::make_shared<ClientStream>();
  };

  void SetUp() override {
    ASSERT_TRUE(Join(&liar_, liar_link_, 1).ok());
    own_ = Submit();
    ASSERT_TRUE(Join(&other_, other_link_, 2).ok());
    others_ = Submit();
  }

  static absl::Status Join(GroupSession* session,
                           const std::shared_ptr<Link>& link, uint64_t key) {
    v1::Hello hello = GoodHello(Digest(), 1);
    hello.set_group_key(key);
    return session->Receive(Message(std::move(hello)), link);
  }

  Client Submit() {
    Client client;
    Request::Args args = RequestArgs(&dispatcher_, client.stream);
    args.options.max_tokens = 3;
    args.options.logprobs = true;
    client.id = args.id;
    EXPECT_TRUE(
        dispatcher_.Submit(std::make_shared<Request>(std::move(args))).ok());
    return client;
  }

  // The news that ends a request as it should.
  static v1::FromWorker LastToken(uint64_t id) {
    v1::TokenEvents events = Tokens(id, 0, kEos);
    events.mutable_requests(0)->add_logprobs(-1);
    return Message(std::move(events));
  }

  // Says something as the liar; leaves when that was an error.
  absl::Status Say(const v1::FromWorker& message) {
    const absl::Status status = liar_.Receive(message, liar_link_);
    if (!status.ok()) liar_.Leave(status);
    return status;
  }

  void ExpectTheOtherGroupServes() {
    EXPECT_FALSE(others_.stream->closed());
    EXPECT_EQ(others_.stream->tokens(), 0);
    EXPECT_TRUE(other_.Receive(LastToken(others_.id), other_link_).ok());
    EXPECT_TRUE(others_.stream->WaitForEnd().ok());
    EXPECT_EQ(others_.stream->tokens(), 1);
  }

  static const std::string& Digest() {
    static const auto* const digest = new std::string("0123");
    return *digest;
  }

  Dispatcher dispatcher_{{.num_token_ids = 813}};
  const std::shared_ptr<Link> liar_link_ = std::make_shared<Link>();
  const std::shared_ptr<Link> other_link_ = std::make_shared<Link>();
  GroupSession liar_{&Digest(), &dispatcher_};
  GroupSession other_{&Digest(), &dispatcher_};
  Client own_;
  Client others_;
};

TEST_F(GroupSessionTest, HelloComesFirstAndOnce) {
  GroupSession early(&Digest(), &dispatcher_);
  v1::FromWorker load;
  load.mutable_load();
  EXPECT_THAT(std::string(early.Receive(load, liar_link_).message()),
              HasSubstr("has to be Hello"));
  const absl::Status twice = Say(Message(GoodHello(Digest())));
  EXPECT_EQ(twice.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(twice.message()), HasSubstr("second Hello"));
  EXPECT_EQ(own_.stream->WaitForEnd().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(dispatcher_.GetLoad().groups_size(), 1);
  ExpectTheOtherGroupServes();
}

TEST_F(GroupSessionTest, MessagesOfALaterProtocolEndTheGroup) {
  v1::FromWorker later;
  later.GetReflection()->MutableUnknownFields(&later)->AddVarint(77, 1);
  const absl::Status status = Say(later);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("unknown kind"));
  EXPECT_THAT(std::string(own_.stream->WaitForEnd().message()),
              HasSubstr("unknown kind"));
  ExpectTheOtherGroupServes();
}

TEST(ReadHelloTest, NamesFieldValueAndRange) {
  const std::string digest = "0123";
  const auto error = [&](const std::function<void(v1::Hello*)>& change) {
    v1::Hello hello = GoodHello(digest);
    change(&hello);
    return std::string(ReadHello(hello, digest).status().message());
  };
  EXPECT_EQ(error([](v1::Hello*) {}), "");
  EXPECT_THAT(error([](v1::Hello* h) { h->set_protocol_version(-1); }),
              HasSubstr("protocol version -1"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_model_digest("4567"); }),
              HasSubstr("its digest is 4567, the coordinator's 0123"));
  EXPECT_THAT(
      error([](v1::Hello* h) { h->set_model_digest(std::string(1000, 'a')); }),
      HasSubstr("Hello.model_digest has 1000 bytes, more than the 255"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_dp(0); }),
              HasSubstr("Hello.dp = 0 is not in [1, 65536]"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_tp(65537); }),
              HasSubstr("Hello.tp = 65537 is not in [1, 65536]"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_max_sequences(-4); }),
              HasSubstr("Hello.max_sequences = -4 is not in"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_kv_tokens(kHuge); }),
              HasSubstr("Hello.kv_tokens = 9223372036854775807 is not in"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_max_batch_tokens(0); }),
              HasSubstr("Hello.max_batch_tokens = 0 is not in"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_context_length(0); }),
              HasSubstr("Hello.context_length = 0 is not in"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_host("a\x1b[2J"); }),
              HasSubstr("Hello.host = \"a\\033[2J\" is not printable"));
  EXPECT_THAT(error([](v1::Hello* h) { h->set_device(std::string(256, 'x')); }),
              HasSubstr("Hello.device has 256 bytes"));
}

TEST_F(GroupSessionTest, LoadThatNoGroupCanHaveEndsTheGroup) {
  using Setter = void (v1::Load::*)(int64_t);
  const std::pair<const char*, Setter> fields[] = {
      {"free_pages", &v1::Load::set_free_pages},
      {"free_slots", &v1::Load::set_free_slots},
      {"free_tokens", &v1::Load::set_free_tokens},
      {"queued", &v1::Load::set_queued},
      {"running", &v1::Load::set_running}};
  for (const auto& [name, set] : fields) {
    for (const int64_t value : {int64_t{-1}, kHuge}) {
      SCOPED_TRACE(absl::StrCat(name, " = ", value));
      GroupSession session(&Digest(), &dispatcher_);
      const auto link = std::make_shared<Link>();
      ASSERT_TRUE(Join(&session, link, 3).ok());
      const Client client = Submit();
      v1::FromWorker message;
      (message.mutable_load()->*set)(value);
      const absl::Status status = session.Receive(message, link);
      session.Leave(status);
      const std::string why =
          absl::StrCat("Load.", name, " = ", value, " is not in [0, ");
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr(why));
      ASSERT_TRUE(client.stream->closed());
      const absl::Status end = client.stream->WaitForEnd();
      EXPECT_EQ(end.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(end.message()), HasSubstr(why));
      EXPECT_EQ(dispatcher_.GetLoad().groups_size(), 2);
    }
  }
  EXPECT_FALSE(own_.stream->closed());
  ExpectTheOtherGroupServes();
}

// A group that praises itself gets no request that it has no room for.
TEST_F(GroupSessionTest, LoadIsShownAndNotBelieved) {
  v1::FromWorker message;
  message.mutable_load()->set_free_slots(1000);
  message.mutable_load()->set_free_tokens(int64_t{1} << 50);
  ASSERT_TRUE(Say(message).ok());
  EXPECT_EQ(dispatcher_.GetLoad().groups(0).free_slots(), 1000);
  const Client waiting = Submit();
  EXPECT_EQ(dispatcher_.GetLoad().queued(), 1);
  EXPECT_EQ(dispatcher_.GetLoad().groups(0).assigned_requests(), 1);
  ExpectTheOtherGroupServes();
  EXPECT_EQ(dispatcher_.GetLoad().queued(), 0);
  EXPECT_EQ(dispatcher_.GetLoad().groups(0).assigned_requests(), 1);
}

TEST_F(GroupSessionTest, TokensThatNoCompletionHasEndTheRequest) {
  struct Lie {
    const char* why;
    std::function<void(v1::RequestTokens*)> tell;
  };
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const Lie lies[] = {
      {"4 tokens where at most 3 can follow",
       [](v1::RequestTokens* news) {
         for (int i = 0; i < 3; ++i) {
           news->add_token_ids(5);
           news->add_logprobs(-1);
         }
       }},
      {"token 9223372036854775807 where token 0 comes next",
       [](v1::RequestTokens* news) { news->set_start_index(kHuge); }},
      {"token -1 where token 0 comes next",
       [](v1::RequestTokens* news) { news->set_start_index(-1); }},
      {"token id 813, which is not in [0, 812]",
       [](v1::RequestTokens* news) { news->set_token_ids(0, 813); }},
      {"token id -1, which is not in [0, 812]",
       [](v1::RequestTokens* news) { news->set_token_ids(0, -1); }},
      {"unknown finish 77",
       [](v1::RequestTokens* news) {
         news->set_finish(static_cast<v1::GroupFinish>(77));
       }},
      {"2 logprobs for 1 tokens",
       [](v1::RequestTokens* news) { news->add_logprobs(-1); }},
      {"the logprob nan",
       [](v1::RequestTokens* news) { news->set_logprobs(0, kNan); }},
      {"a time of -1 us",
       [](v1::RequestTokens* news) { news->set_queue_us(-1); }},
      {"a time of 9223372036854775807 us",
       [](v1::RequestTokens* news) { news->set_prefill_us(kHuge); }},
  };
  Client client = own_;
  int cancels = 0;
  for (const Lie& lie : lies) {
    SCOPED_TRACE(lie.why);
    v1::TokenEvents events = Tokens(client.id, 0, 5);
    events.mutable_requests(0)->add_logprobs(-1);
    lie.tell(events.mutable_requests(0));
    EXPECT_TRUE(Say(Message(std::move(events))).ok());
    ASSERT_TRUE(client.stream->closed());
    const absl::Status end = client.stream->WaitForEnd();
    EXPECT_EQ(end.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(end.message()), HasSubstr(lie.why));
    EXPECT_EQ(client.stream->tokens(), 0);
    EXPECT_EQ(liar_link_->cancels(), ++cancels);
    // Room is free again, here and in the books.
    client = Submit();
    EXPECT_EQ(dispatcher_.GetLoad().queued(), 0);
  }
  EXPECT_TRUE(Say(LastToken(client.id)).ok());
  EXPECT_TRUE(client.stream->WaitForEnd().ok());
  ExpectTheOtherGroupServes();
}

TEST_F(GroupSessionTest, NewsOfRequestsThatItDoesNotRunIsDropped) {
  const Client waiting = Submit();
  for (const uint64_t id : {others_.id, waiting.id, uint64_t{0},
                            std::numeric_limits<uint64_t>::max()}) {
    EXPECT_TRUE(Say(LastToken(id)).ok());
    EXPECT_TRUE(Say(Failed(id, 13, "not mine")).ok());
  }
  EXPECT_FALSE(waiting.stream->closed());
  EXPECT_EQ(waiting.stream->tokens(), 0);
  EXPECT_EQ(dispatcher_.GetLoad().running(), 2);
  EXPECT_EQ(dispatcher_.GetLoad().queued(), 1);
  EXPECT_EQ(liar_link_->cancels() + other_link_->cancels(), 0);
  EXPECT_FALSE(own_.stream->closed());
  ExpectTheOtherGroupServes();
}

TEST_F(GroupSessionTest, NewsAfterTheEndIsDropped) {
  v1::FromWorker twice = LastToken(own_.id);
  *twice.mutable_tokens()->add_requests() = twice.tokens().requests(0);
  EXPECT_TRUE(Say(twice).ok());
  EXPECT_TRUE(own_.stream->WaitForEnd().ok());
  EXPECT_TRUE(Say(LastToken(own_.id)).ok());
  EXPECT_TRUE(Say(Failed(own_.id, 13, "late")).ok());
  EXPECT_EQ(own_.stream->tokens(), 1);
  EXPECT_EQ(dispatcher_.GetLoad().finished_requests(), 1);
  EXPECT_EQ(dispatcher_.GetLoad().failed_requests(), 0);
  EXPECT_EQ(dispatcher_.GetLoad().groups(0).assigned_requests(), 0);
  ExpectTheOtherGroupServes();
}

TEST_F(GroupSessionTest, FailuresAreErrorsOfBoundedLength) {
  EXPECT_TRUE(Say(Failed(own_.id, 0, "fine")).ok());
  absl::Status end = own_.stream->WaitForEnd();
  EXPECT_EQ(end.code(), absl::StatusCode::kUnknown);
  EXPECT_THAT(std::string(end.message()), HasSubstr("(host fake, pid 1234): "
                                                    "fine"));
  const Client next = Submit();
  std::string text;
  while (text.size() < 1'000'000) text += "\xE2\x82\xAC";  // EURO SIGN
  EXPECT_TRUE(Say(Failed(next.id, 99, text)).ok());
  end = next.stream->WaitForEnd();
  EXPECT_EQ(end.code(), absl::StatusCode::kUnknown);
  EXPECT_THAT(std::string(end.message()),
              ::testing::EndsWith(": " + text.substr(0, 1023)));
  ExpectTheOtherGroupServes();
}

}  // namespace
}  // namespace ring
