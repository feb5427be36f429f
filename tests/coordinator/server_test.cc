// The coordinator over real gRPC on loopback, with worker groups that a test
// plays itself.
#include "coordinator/server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/event_stream.h"
#include "coordinator/served_model.h"
#include "coordinator/text/utf8.h"
#include "ring/v1/inference.grpc.pb.h"
#include "tests/coordinator/fake_group.h"

namespace ring {
namespace {

using ::testing::ElementsAre;
using testing::FakeGroup;
using testing::GoodHello;
using ::testing::HasSubstr;

constexpr char kModelDir[] = RING_TEST_DATA "/ring-tiny";
constexpr int32_t kEos = 808;

// One Generate stream, read event by event.
class Call {
 public:
  Call(v1::Inference::Stub* stub, const v1::GenerateRequest& request,
       std::chrono::milliseconds timeout = std::chrono::seconds(20)) {
    context_.set_deadline(std::chrono::system_clock::now() + timeout);
    reader_ = stub->Generate(&context_, request);
  }

  // The next event; false at the end of the stream.
  bool Next(v1::GenerateEvent* event) { return reader_->Read(event); }
  v1::Accepted NextAccepted() {
    v1::GenerateEvent event;
    EXPECT_TRUE(Next(&event));
    EXPECT_TRUE(event.has_accepted()) << event.DebugString();
    return event.accepted();
  }
  v1::TokenDelta NextDelta() {
    v1::GenerateEvent event;
    EXPECT_TRUE(Next(&event));
    EXPECT_TRUE(event.has_delta()) << event.DebugString();
    return event.delta();
  }
  grpc::Status End() {
    v1::GenerateEvent event;
    while (reader_->Read(&event)) {
    }
    return reader_->Finish();
  }
  void Cancel() { context_.TryCancel(); }
  std::string TrailingMetadata(const std::string& key) {
    const auto& metadata = context_.GetServerTrailingMetadata();
    const auto it = metadata.find(key);
    return it == metadata.end()
               ? ""
               : std::string(it->second.data(), it->second.size());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader_;
};

// All of a completion.
struct Completion {
  v1::Accepted accepted;
  std::vector<int32_t> ids;
  std::string text;
  std::string reasoning;
  std::vector<float> logprobs;
  v1::Finished finished;
  grpc::Status status;
};

Completion ReadAll(Call* call) {
  Completion result;
  v1::GenerateEvent event;
  while (call->Next(&event)) {
    if (event.has_accepted()) result.accepted = event.accepted();
    if (event.has_finished()) result.finished = event.finished();
    if (!event.has_delta()) continue;
    const v1::TokenDelta& delta = event.delta();
    EXPECT_EQ(delta.start_index(), static_cast<int64_t>(result.ids.size()));
    EXPECT_EQ(ValidUtf8Prefix(delta.text()), delta.text().size());
    result.ids.insert(result.ids.end(), delta.token_ids().begin(),
                      delta.token_ids().end());
    result.logprobs.insert(result.logprobs.end(), delta.logprobs().begin(),
                           delta.logprobs().end());
    result.text += delta.text();
    result.reasoning += delta.reasoning();
  }
  result.status = call->End();
  return result;
}

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override { StartServer({}); }

  void StartServer(ServerOptions options) {
    auto model = LoadServedModel(kModelDir);
    ASSERT_TRUE(model.ok()) << model.status();
    digest_ = (*model)->digest;
    tokenizer_ = (*model)->tokenizer.get();
    auto server = Server::Start(std::move(options), *std::move(model));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const auto channel = grpc::CreateChannel(
        server_->address(), grpc::InsecureChannelCredentials());
    inference_ = v1::Inference::NewStub(channel);
    control_ = v1::Control::NewStub(channel);
  }

  std::unique_ptr<FakeGroup> JoinGroup(int64_t max_sequences = 4,
                                       uint64_t key = 1, int64_t epoch = 1) {
    v1::Hello hello = GoodHello(digest_, max_sequences);
    hello.set_group_key(key);
    hello.set_epoch(epoch);
    auto group = std::make_unique<FakeGroup>(server_->address(), hello);
    EXPECT_TRUE(group->WaitForWelcome());
    return group;
  }

  // Ids of a text without special tokens.
  std::vector<int32_t> Encode(const std::string& text) {
    return *tokenizer_->Encode(text, AddedTokens::kPlainText);
  }

  static v1::GenerateRequest TextRequest(const std::string& text) {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }

  // On a connection that takes 64 KB of a stream, however fast it is.
  std::unique_ptr<v1::Inference::Stub> NarrowStub() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 16);
    return v1::Inference::NewStub(grpc::CreateCustomChannel(
        server_->address(), grpc::InsecureChannelCredentials(), arguments));
  }

  grpc::Status Generate(const v1::GenerateRequest& request) {
    return Call(inference_.get(), request).End();
  }

  v1::GetLoadResponse GetLoad() {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    const grpc::Status status = control_->GetLoad(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  std::string digest_;
  const Tokenizer* tokenizer_ = nullptr;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Control::Stub> control_;
};

TEST_F(ServerTest, StreamsACompletion) {
  const auto group = JoinGroup();
  v1::GenerateRequest request = TextRequest("What is 1 + 1?");
  request.mutable_sampling()->set_seed(7);
  request.mutable_output()->set_logprobs(true);
  Call call(inference_.get(), request);
  const v1::Submit submit = group->WaitForSubmit();
  EXPECT_THAT(std::vector<int32_t>(submit.prompt_ids().begin(),
                                   submit.prompt_ids().end()),
              ::testing::ElementsAreArray(Encode("What is 1 + 1?")));
  EXPECT_EQ(submit.seed(), 7u);
  EXPECT_EQ(submit.temperature(), 0);  // "do_sample": false
  EXPECT_THAT(submit.eos_token_ids(), ElementsAre(807, 808));
  EXPECT_TRUE(submit.has_timeout_us());

  std::vector<int32_t> ids = Encode("It is 2.");
  for (const int32_t id : ids) group->SendTokens(submit.id(), {id});
  group->SendTokens(submit.id(), {kEos}, v1::GROUP_FINISH_EOS);
  ids.push_back(kEos);

  const Completion completion = ReadAll(&call);
  EXPECT_TRUE(completion.status.ok()) << completion.status.error_message();
  EXPECT_EQ(completion.ids, ids);
  EXPECT_EQ(completion.text, "It is 2.");
  EXPECT_EQ(completion.logprobs, std::vector<float>(ids.size(), -0.5f));
  EXPECT_EQ(completion.accepted.prompt_tokens(), submit.prompt_ids_size());
  EXPECT_EQ(completion.accepted.sampling().seed(), 7u);
  EXPECT_EQ(completion.accepted.stopping().max_tokens(),
            16384 - submit.prompt_ids_size());
  EXPECT_EQ(completion.finished.reason(), v1::FINISH_REASON_EOS);
  EXPECT_EQ(completion.finished.usage().completion_tokens(),
            static_cast<int64_t>(ids.size()));
  EXPECT_EQ(completion.finished.timings().prefill_us(), 20);
  EXPECT_GT(completion.finished.timings().ttft_us(), 0);
}

TEST_F(ServerTest, NeverSplitsACharacter) {
  const auto group = JoinGroup();
  const std::string text = "a\xE2\x82\xAC\xF0\x9F\x98\x80z";  // a EURO SMILE z
  Call call(inference_.get(), TextRequest("x"));
  const v1::Submit submit = group->WaitForSubmit();
  const std::vector<int32_t> ids = Encode(text);
  ASSERT_GT(ids.size(), 4u) << "the characters are single tokens";
  for (const int32_t id : ids) group->SendTokens(submit.id(), {id});
  group->SendTokens(submit.id(), {}, v1::GROUP_FINISH_CONTEXT_FULL);
  const Completion completion = ReadAll(&call);
  EXPECT_EQ(completion.text, text);
  EXPECT_EQ(completion.finished.reason(), v1::FINISH_REASON_CONTEXT_FULL);
}

TEST_F(ServerTest, StopStringEndsTheCompletionAndTheGroupsWork) {
  const auto group = JoinGroup();
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->add_stop_strings("never");
  request.mutable_stopping()->add_stop_strings("two th");
  Call call(inference_.get(), request);
  const v1::Submit submit = group->WaitForSubmit();
  const std::vector<int32_t> ids = Encode("one two three four");
  for (const int32_t id : ids) group->SendTokens(submit.id(), {id});
  EXPECT_EQ(group->WaitForCancel(), submit.id());
  const Completion completion = ReadAll(&call);
  EXPECT_TRUE(completion.status.ok());
  EXPECT_EQ(completion.text, "one ");
  EXPECT_LT(completion.ids.size(), ids.size());
  EXPECT_EQ(completion.finished.reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(completion.finished.stop_string(), "two th");
}

TEST_F(ServerTest, StopStringsCountFromMinTokensOn) {
  const auto group = JoinGroup();
  const std::vector<int32_t> one = Encode("one two three");
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->add_stop_strings("two");
  request.mutable_stopping()->set_min_tokens(static_cast<int64_t>(one.size()));
  Call call(inference_.get(), request);
  const v1::Submit submit = group->WaitForSubmit();
  std::vector<int32_t> ids = one;
  for (const int32_t id : Encode(" one two three")) ids.push_back(id);
  for (const int32_t id : ids) group->SendTokens(submit.id(), {id});
  EXPECT_EQ(group->WaitForCancel(), submit.id());
  const Completion completion = ReadAll(&call);
  EXPECT_EQ(completion.text, "one two three one ");
  EXPECT_EQ(completion.finished.reason(), v1::FINISH_REASON_STOP_STRING);
}

TEST_F(ServerTest, ReasoningHasItsOwnField) {
  const auto group = JoinGroup();
  Call call(inference_.get(), TextRequest("x"));
  const v1::Submit submit = group->WaitForSubmit();
  const auto ids = *tokenizer_->Encode("<think>\n1 and 1\n</think>\n2",
                                       AddedTokens::kRecognise);
  for (const int32_t id : ids) group->SendTokens(submit.id(), {id});
  group->SendTokens(submit.id(), {kEos}, v1::GROUP_FINISH_EOS);
  const Completion completion = ReadAll(&call);
  EXPECT_EQ(completion.reasoning, "1 and 1");
  EXPECT_EQ(completion.text, "2");
  EXPECT_GT(completion.finished.usage().reasoning_tokens(), 0);
}

TEST_F(ServerTest, SaysWhichLengthEndedIt) {
  const auto group = JoinGroup();
  for (const bool given : {true, false}) {
    v1::GenerateRequest request = TextRequest("x");
    if (given) request.mutable_stopping()->set_max_tokens(1);
    Call call(inference_.get(), request);
    const v1::Submit submit = group->WaitForSubmit();
    EXPECT_EQ(submit.max_tokens(), given ? 1 : 16383);
    group->SendTokens(submit.id(), {1}, v1::GROUP_FINISH_LENGTH);
    EXPECT_EQ(
        ReadAll(&call).finished.reason(),
        given ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_CONTEXT_FULL);
  }
}

TEST_F(ServerTest, ChatGoesThroughTheTemplate) {
  const auto group = JoinGroup();
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("Hi");
  request.mutable_chat()->set_enable_thinking(false);
  Call call(inference_.get(), request);
  const v1::Submit submit = group->WaitForSubmit();
  EXPECT_EQ(tokenizer_->Decode(std::vector<int32_t>(submit.prompt_ids().begin(),
                                                    submit.prompt_ids().end()),
                               /*keep_special=*/true),
            "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>"
            "<think>\n</think>");
  call.Cancel();
}

TEST_F(ServerTest, RefusesWhatItCannotDo) {
  const auto group = JoinGroup();
  const auto expect = [this](const v1::GenerateRequest& request,
                             const std::string& message) {
    const grpc::Status status = Generate(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(message));
  };
  v1::GenerateRequest request;
  expect(request, "no prompt");
  request.set_text("");
  expect(request, "prompt is empty");
  request.mutable_token_ids()->add_ids(813);
  expect(request, "id 813 at position 0 is not in [0, 812]");
  request.mutable_token_ids()->Clear();
  for (int i = 0; i < 16384; ++i) request.mutable_token_ids()->add_ids(5);
  expect(request, "the prompt has 16384 tokens, but the context is 16384");
  request.mutable_token_ids()->mutable_ids()->Truncate(10);
  request.mutable_stopping()->set_max_tokens(16375);
  expect(request,
         "the prompt has 10 tokens and max_tokens is 16375, but the context is "
         "16384");
  request.clear_stopping();
  request.set_text("x");
  request.mutable_sampling()->set_temperature(-1);
  expect(request, "temperature = -1 is not in [0, 100]");
  request.mutable_sampling()->clear_temperature();
  request.mutable_sampling()->set_frequency_penalty(3);
  expect(request, "frequency_penalty = 3 is not in [-2, 2]");
}

TEST_F(ServerTest, RefusesMoreChoicesThanAGroupRuns) {
  const auto group = JoinGroup(/*max_sequences=*/4);
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_output()->set_choices(5);
  const grpc::Status status = Generate(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              HasSubstr("choices = 5, but the worker groups run at most 4 "
                        "sequences at once (--max-sequences)"));
}

TEST_F(ServerTest, RefusesUnknownFieldsAtAnyDepth) {
  const auto group = JoinGroup();
  v1::GenerateRequest request = TextRequest("x");
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->GetReflection()->MutableUnknownFields(sampling)->AddVarint(77, 1);
  const grpc::Status status = Generate(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              HasSubstr("ring.v1.Sampling has no field number 77"));
}

TEST_F(ServerTest, NeverFittingPromptIsRefusedWithTheNumbers) {
  v1::Hello hello = GoodHello(digest_);
  hello.set_kv_tokens(8);
  FakeGroup group(server_->address(), hello);
  ASSERT_TRUE(group.WaitForWelcome());
  v1::GenerateRequest request;
  for (int i = 0; i < 8; ++i) request.mutable_token_ids()->add_ids(5);
  const grpc::Status status = Generate(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("the prompt has 8 tokens"));
  EXPECT_THAT(status.error_message(), HasSubstr("at most 8 tokens"));
}

TEST_F(ServerTest, WithoutAGroupItIsUnavailable) {
  const grpc::Status status = Generate(TextRequest("x"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("ring-worker"));
}

TEST_F(ServerTest, ALiveRequestIdIsTaken) {
  const auto group = JoinGroup();
  v1::GenerateRequest request = TextRequest("x");
  request.set_request_id("mine");
  Call first(inference_.get(), request);
  EXPECT_EQ(first.NextAccepted().request_id(), "mine");
  EXPECT_EQ(Generate(request).error_code(), grpc::StatusCode::ALREADY_EXISTS);

  const v1::Submit submit = group->WaitForSubmit();
  group->SendTokens(submit.id(), {kEos}, v1::GROUP_FINISH_EOS);
  EXPECT_TRUE(first.End().ok());
  // Once it has ended, the name is free again.
  Call second(inference_.get(), request);
  EXPECT_EQ(second.NextAccepted().request_id(), "mine");
}

TEST_F(ServerTest, CancelReachesTheGroup) {
  const auto group = JoinGroup();
  Call call(inference_.get(), TextRequest("x"));
  const v1::Submit submit = group->WaitForSubmit();
  call.Cancel();
  EXPECT_EQ(group->WaitForCancel(), submit.id());
  EXPECT_EQ(call.End().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(GetLoad().groups(0).assigned_requests(), 0);
  EXPECT_EQ(GetLoad().groups(0).assigned_tokens(), 0);
}

TEST_F(ServerTest, DeadlineReachesTheGroup) {
  const auto group = JoinGroup();
  Call call(inference_.get(), TextRequest("x"),
            std::chrono::milliseconds(1000));
  const v1::Submit submit = group->WaitForSubmit();
  EXPECT_LE(submit.timeout_us(), 1100000);  // gRPC rounds up on the wire
  EXPECT_EQ(group->WaitForCancel(), submit.id());
  EXPECT_EQ(call.End().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(ServerTest, AbortEndsARequest) {
  const auto group = JoinGroup();
  v1::GenerateRequest request = TextRequest("x");
  request.set_request_id("victim");
  Call call(inference_.get(), request);
  const v1::Submit submit = group->WaitForSubmit();
  const auto abort = [this] {
    grpc::ClientContext context;
    v1::AbortRequest abort_request;
    v1::AbortResponse response;
    abort_request.set_request_id("victim");
    return control_->Abort(&context, abort_request, &response);
  };
  EXPECT_TRUE(abort().ok());
  EXPECT_EQ(group->WaitForCancel(), submit.id());
  const grpc::Status status = call.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_THAT(status.error_message(), HasSubstr("Abort"));
  EXPECT_EQ(abort().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServerTest, LostGroupEndsItsRequests) {
  auto group = JoinGroup();
  Call call(inference_.get(), TextRequest("x"));
  group->WaitForSubmit();
  group->Break();
  const grpc::Status status = call.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(),
              HasSubstr("worker group 1 (host fake, pid 1234) was lost"));
  EXPECT_THAT(status.error_message(), HasSubstr("again"));
  EXPECT_EQ(GetLoad().groups_size(), 0);
}

TEST_F(ServerTest, GroupsErrorReachesTheClient) {
  const auto group = JoinGroup();
  Call call(inference_.get(), TextRequest("x"));
  v1::FromWorker message;
  message.mutable_failed()->set_id(group->WaitForSubmit().id());
  message.mutable_failed()->set_code(grpc::StatusCode::INTERNAL);
  message.mutable_failed()->set_message("out of luck");
  group->Send(message);
  const grpc::Status status = call.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("out of luck"));
}

TEST_F(ServerTest, NonsenseOfAGroupEndsTheRequest) {
  const auto group = JoinGroup();
  const std::vector<int32_t> ids = {1, 813};
  Call call(inference_.get(), TextRequest("x"));
  const v1::Submit submit = group->WaitForSubmit();
  group->SendTokens(submit.id(), {1, 813});
  EXPECT_EQ(group->WaitForCancel(), submit.id());
  const grpc::Status status = call.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("813"));
}

TEST_F(ServerTest, GroupThatSaysWhatNoGroupCanIsSentAwayWithTheReason) {
  const auto liar = JoinGroup(4, /*key=*/1);
  Call call(inference_.get(), TextRequest("x"));
  liar->WaitForSubmit();
  const auto group = JoinGroup(4, /*key=*/2);
  v1::FromWorker message;
  message.mutable_load()->set_running(-1);
  liar->Send(message);
  const absl::Status status = liar->WaitForEnd();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("Load.running = -1"));
  const grpc::Status lost = call.End();
  EXPECT_EQ(lost.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(lost.error_message(), HasSubstr("Load.running = -1"));
  Call next(inference_.get(), TextRequest("x"));
  group->SendTokens(group->WaitForSubmit().id(), {kEos}, v1::GROUP_FINISH_EOS);
  EXPECT_TRUE(next.End().ok());
}

TEST_F(ServerTest, OtherModelsAndProtocolsAreRefusedWithAReason) {
  v1::Hello other_model = GoodHello("0123");
  FakeGroup first(server_->address(), other_model);
  absl::Status status = first.WaitForEnd();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("0123"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(digest_));

  v1::Hello other_protocol = GoodHello(digest_);
  other_protocol.set_protocol_version(2);
  FakeGroup second(server_->address(), other_protocol);
  status = second.WaitForEnd();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("protocol version 2"));
  EXPECT_EQ(GetLoad().groups_size(), 0);
}

TEST_F(ServerTest, NewEpochReplacesTheOldOne) {
  const auto old_group = JoinGroup(4, /*key=*/9, /*epoch=*/3);
  Call call(inference_.get(), TextRequest("x"));
  old_group->WaitForSubmit();
  const auto new_group = JoinGroup(4, 9, 4);
  EXPECT_FALSE(old_group->WaitForEnd().ok());
  EXPECT_EQ(call.End().error_code(), grpc::StatusCode::UNAVAILABLE);
  ASSERT_EQ(GetLoad().groups_size(), 1);
  EXPECT_EQ(GetLoad().groups(0).epoch(), 4);

  v1::Hello late = GoodHello(digest_);
  late.set_group_key(9);
  late.set_epoch(3);
  FakeGroup late_group(server_->address(), late);
  EXPECT_EQ(late_group.WaitForEnd().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetLoad().groups_size(), 1);

  Call next(inference_.get(), TextRequest("x"));
  EXPECT_EQ(new_group->WaitForSubmit().epoch(), 4);
}

TEST_F(ServerTest, RequestsShardOverGroups) {
  const auto first = JoinGroup(2, 1);
  const auto second = JoinGroup(2, 2);
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 4; ++i) {
    calls.push_back(
        std::make_unique<Call>(inference_.get(), TextRequest("x y z")));
    EXPECT_EQ(calls.back()->NextAccepted().queue_position(), 0);
  }
  for (int i = 0; i < 2; ++i) {
    first->WaitForSubmit();
    second->WaitForSubmit();
  }
  // The fifth waits, the sixth behind it.
  Call fifth(inference_.get(), TextRequest("five"));
  EXPECT_EQ(fifth.NextAccepted().queue_position(), 0);
  Call sixth(inference_.get(), TextRequest("six"));
  EXPECT_EQ(sixth.NextAccepted().queue_position(), 1);
  EXPECT_EQ(GetLoad().queued(), 2);
  EXPECT_EQ(GetLoad().running(), 4);
  // They go in order when there is room.
  calls[0]->Cancel();
  calls[1]->Cancel();
  const auto text = [this](const v1::Submit& submit) {
    return tokenizer_->Decode(std::vector<int32_t>(submit.prompt_ids().begin(),
                                                   submit.prompt_ids().end()),
                              true);
  };
  EXPECT_THAT(text(first->WaitForSubmit()), ::testing::AnyOf("five", "six"));
  EXPECT_THAT(text(second->WaitForSubmit()), ::testing::AnyOf("five", "six"));
}

TEST_F(ServerTest, FullQueueSaysWhenToComeBack) {
  ServerOptions options;
  options.max_queued = 2;
  StartServer(options);
  const auto group = JoinGroup(/*max_sequences=*/1);
  std::vector<std::unique_ptr<Call>> admitted;
  for (int i = 0; i < 3; ++i) {
    admitted.push_back(
        std::make_unique<Call>(inference_.get(), TextRequest("x")));
    admitted.back()->NextAccepted();
  }
  const auto expect_refusal = [this](const v1::GenerateRequest& request) {
    Call refused(inference_.get(), request);
    const grpc::Status status = refused.End();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(status.error_message(), HasSubstr("--max-queued lets 2"));
    const int retry_ms = std::stoi(refused.TrailingMetadata("retry-after-ms"));
    EXPECT_GE(retry_ms, 100);
    EXPECT_LE(retry_ms, 60000);
  };
  expect_refusal(TextRequest("x"));
  // Known before the prompt is read.
  v1::GenerateRequest no_prompt;
  expect_refusal(no_prompt);

  for (const auto& call : admitted) {
    const v1::Submit submit = group->WaitForSubmit();
    group->SendTokens(submit.id(), {5}, v1::GROUP_FINISH_LENGTH);
    EXPECT_TRUE(call->End().ok());
  }
  Call next(inference_.get(), TextRequest("x"));
  EXPECT_EQ(next.NextAccepted().queue_position(), 0);
}

// A token with so many likely ones beside it makes an event of at least 100
// bytes, so that what a completion may hold is more than may wait.
constexpr int kLikelyTokens = 20;

TEST_F(ServerTest, ClientThatDoesNotReadIsCancelledWithTheLimit) {
  const auto group = JoinGroup();
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_output()->set_top_logprobs(kLikelyTokens);
  const auto narrow = NarrowStub();
  Call stalled(narrow.get(), request);
  stalled.NextAccepted();
  const uint64_t stalled_id = group->WaitForSubmit().id();
  Call reader(inference_.get(), TextRequest("x"));
  reader.NextAccepted();
  const uint64_t reader_id = group->WaitForSubmit().id();

  std::atomic<bool> cancelled{false};
  std::thread waiter([&] {
    EXPECT_EQ(group->WaitForCancel(), stalled_id);
    cancelled = true;
  });
  // As many as there may be: gRPC's own buffers fill as well.
  const std::vector<int32_t> tokens(100, 5);
  int64_t sent = 0;
  for (int i = 0; i < 160 && !cancelled; ++i) {
    group->SendTokens(stalled_id, tokens, v1::GROUP_FINISH_NONE, kLikelyTokens);
    sent += static_cast<int64_t>(tokens.size());
    // The other client of the group gets each token before the next.
    group->SendTokens(reader_id, {6});
    EXPECT_THAT(reader.NextDelta().token_ids(), ElementsAre(6));
  }
  waiter.join();
  EXPECT_EQ(GetLoad().groups(0).assigned_requests(), 1);

  const Completion rest = ReadAll(&stalled);
  EXPECT_EQ(rest.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(rest.status.error_message(),
              HasSubstr("does not read its stream: more than 1048576 bytes"));
  // What waited here was dropped: a MiB.
  const auto read = static_cast<int64_t>(rest.ids.size());
  EXPECT_GT((sent - read) * kLikelyTokens * 5,
            EventStream::kMaxWaitingBytes / 2);
  group->SendTokens(reader_id, {kEos}, v1::GROUP_FINISH_EOS);
  EXPECT_TRUE(reader.End().ok());
}

TEST_F(ServerTest, EndedStreamThatNobodyReadsGoes) {
  ServerOptions options;
  options.read_patience = std::chrono::milliseconds(20);
  StartServer(options);
  const auto group = JoinGroup();
  const auto narrow = NarrowStub();
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_output()->set_top_logprobs(kLikelyTokens);
  Call stalled(narrow.get(), request);
  stalled.NextAccepted();
  const uint64_t id = group->WaitForSubmit().id();
  // More than that, less than the bound.
  const std::vector<int32_t> tokens(2500, 5);
  for (int i = 0; i < 2; ++i) {
    group->SendTokens(id, tokens, v1::GROUP_FINISH_NONE, kLikelyTokens);
  }
  group->SendTokens(id, {kEos}, v1::GROUP_FINISH_EOS, kLikelyTokens);
  // By the deadline of a request that nobody answers, its patience is over.
  Call clock(inference_.get(), TextRequest("x"),
             std::chrono::milliseconds(500));
  group->WaitForSubmit();
  EXPECT_EQ(clock.End().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(GetLoad().finished_requests(), 1);

  const Completion rest = ReadAll(&stalled);
  EXPECT_EQ(rest.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(rest.status.error_message(), HasSubstr("waited for 20 ms"));

  // Who reads in time has nothing to fear from it.
  Call reader(inference_.get(), TextRequest("x"));
  const uint64_t reader_id = group->WaitForSubmit().id();
  group->SendTokens(reader_id, {kEos}, v1::GROUP_FINISH_EOS);
  EXPECT_TRUE(reader.End().ok());
}

TEST_F(ServerTest, WaitingRequestsEndWithTheLastGroup) {
  auto group = JoinGroup(/*max_sequences=*/1);
  Call running(inference_.get(), TextRequest("x"));
  running.NextAccepted();
  Call waiting(inference_.get(), TextRequest("x"));
  waiting.NextAccepted();
  group.reset();
  EXPECT_EQ(running.End().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(waiting.End().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, DrainFinishesWhatRunsAndAdmitsNothing) {
  const auto group = JoinGroup();
  Call call(inference_.get(), TextRequest("x"));
  const v1::Submit submit = group->WaitForSubmit();
  bool drained = false;
  std::thread drain([&] {
    drained = server_->Drain(std::chrono::steady_clock::now() +
                             std::chrono::seconds(10));
  });
  while (!GetLoad().draining()) {
  }
  EXPECT_EQ(Generate(TextRequest("x")).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  group->SendTokens(submit.id(), {kEos}, v1::GROUP_FINISH_EOS);
  EXPECT_TRUE(call.End().ok());
  drain.join();
  EXPECT_TRUE(drained);
}

TEST_F(ServerTest, DrainGivesUpAtItsDeadline) {
  const auto group = JoinGroup();
  Call call(inference_.get(), TextRequest("x"));
  group->WaitForSubmit();
  EXPECT_FALSE(server_->Drain(std::chrono::steady_clock::now() +
                              std::chrono::milliseconds(20)));
  server_.reset();
  EXPECT_EQ(call.End().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, DrainedGroupGetsNoMoreRequests) {
  const auto first = JoinGroup(4, 1);
  const auto second = JoinGroup(4, 2);
  grpc::ClientContext context;
  v1::DrainRequest request;
  v1::DrainResponse response;
  request.set_group_id(1);
  EXPECT_TRUE(control_->Drain(&context, request, &response).ok());
  EXPECT_TRUE(first->WaitForDrain());
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 3; ++i) {
    calls.push_back(std::make_unique<Call>(inference_.get(), TextRequest("x")));
    second->WaitForSubmit();
  }
  grpc::ClientContext missing_context;
  request.set_group_id(99);
  EXPECT_EQ(control_->Drain(&missing_context, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServerTest, LoadIsThatOfTheGroups) {
  const auto group = JoinGroup();
  v1::FromWorker message;
  message.mutable_load()->set_free_pages(12);
  group->Send(message);
  while (GetLoad().groups(0).free_pages() != 12) {
  }
  EXPECT_EQ(GetLoad().groups(0).host(), "fake");
  EXPECT_EQ(GetLoad().groups(0).max_sequences(), 4);
}

TEST_F(ServerTest, TokenizeAndGetModelNeedNoGroup) {
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  request.set_text("Hi<|role_end|>");
  ASSERT_TRUE(inference_->Tokenize(&context, request, &response).ok());
  EXPECT_EQ(response.token_ids(response.token_ids_size() - 1), kEos);

  grpc::ClientContext plain_context;
  v1::TokenizeResponse plain;
  request.set_parse_special(false);
  ASSERT_TRUE(inference_->Tokenize(&plain_context, request, &plain).ok());
  EXPECT_GT(plain.token_ids_size(), response.token_ids_size());

  grpc::ClientContext model_context;
  v1::GetModelResponse model;
  ASSERT_TRUE(inference_->GetModel(&model_context, {}, &model).ok());
  EXPECT_EQ(model.name(), "ring-tiny");
  EXPECT_EQ(model.digest(), digest_);
  EXPECT_EQ(model.num_token_ids(), 813);
  EXPECT_EQ(model.vocab_size(), 1024);
  EXPECT_EQ(model.context_length(), 16384);
  EXPECT_TRUE(model.has_chat_template());
}

TEST_F(ServerTest, TooLargeMessageIsRefusedWithTheLimit) {
  const auto group = JoinGroup();
  const grpc::Status status =
      Generate(TextRequest(std::string((64 << 20) + 1, 'x')));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("67108864"));
}

absl::Status StartOn(const std::string& listen, bool insecure) {
  ServerOptions options;
  options.listen = listen;
  options.insecure = insecure;
  auto model = LoadServedModel(kModelDir);
  EXPECT_TRUE(model.ok()) << model.status();
  return Server::Start(options, *std::move(model)).status();
}

TEST(ServerStartTest, RefusesPlaintextOffLoopback) {
  for (const char* listen : {"0.0.0.0:0", "[::]:0", "128.0.0.1:0", "[::2]:0",
                             "127.example.com:0", "localhost.example.com:0"}) {
    const absl::Status status = StartOn(listen, /*insecure=*/false);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << listen;
    EXPECT_THAT(std::string(status.message()),
                ::testing::AllOf(HasSubstr(listen), HasSubstr("--tls-cert"),
                                 HasSubstr("--insecure")));
  }
  for (const char* listen : {"127.0.0.1:0", "127.9.8.7:0", "localhost:0"}) {
    EXPECT_TRUE(StartOn(listen, /*insecure=*/false).ok()) << listen;
  }
  EXPECT_TRUE(StartOn("0.0.0.0:0", /*insecure=*/true).ok());
}

TEST(ServerStartTest, SaysThatAPortIsTaken) {
  auto first_model = LoadServedModel(kModelDir);
  auto second_model = LoadServedModel(kModelDir);
  ASSERT_TRUE(first_model.ok() && second_model.ok());
  const auto first = Server::Start({}, *std::move(first_model));
  ASSERT_TRUE(first.ok()) << first.status();
  ServerOptions options;
  options.listen = (*first)->address();
  const auto second = Server::Start(options, *std::move(second_model));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr((*first)->address()));
}

}  // namespace
}  // namespace ring
