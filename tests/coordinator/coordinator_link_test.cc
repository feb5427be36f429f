// A leader's link against a real coordinator on loopback.
#include "worker/coordinator_link.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/served_model.h"
#include "coordinator/server.h"
#include "kernels/base/mutex.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kModelDir[] = RING_TEST_DATA "/ring-tiny";

// Remembers what the coordinator asked for.
class RecordingSink : public RequestSink {
 public:
  absl::Status Submit(GenerationRequest request) override {
    MutexLock lock(&mutex_);
    if (!answer_.ok()) return answer_;
    submitted_.push_back(std::move(request));
    changed_.NotifyAll();
    return absl::OkStatus();
  }
  void Cancel(uint64_t id) override {
    MutexLock lock(&mutex_);
    cancelled_.push_back(id);
    changed_.NotifyAll();
  }
  void CancelCompletion(uint64_t id, int completion) override {
    MutexLock lock(&mutex_);
    cancelled_completions_.emplace_back(id, completion);
    changed_.NotifyAll();
  }
  void CancelAll() override {
    MutexLock lock(&mutex_);
    ++cancelled_all_;
    changed_.NotifyAll();
  }
  void Drain() override {
    MutexLock lock(&mutex_);
    drained_ = true;
    changed_.NotifyAll();
  }

  void AnswerWith(absl::Status answer) {
    MutexLock lock(&mutex_);
    answer_ = std::move(answer);
  }
  // The n-th request, counted from 0.
  GenerationRequest WaitForRequest(size_t n) {
    MutexLock lock(&mutex_);
    while (submitted_.size() <= n) changed_.Wait(&mutex_);
    return submitted_[n];
  }
  uint64_t WaitForCancel() {
    MutexLock lock(&mutex_);
    while (cancelled_.empty()) changed_.Wait(&mutex_);
    return cancelled_.back();
  }
  // The n-th, counted from 0.
  std::pair<uint64_t, int> WaitForCancelledCompletion(size_t n) {
    MutexLock lock(&mutex_);
    while (cancelled_completions_.size() <= n) changed_.Wait(&mutex_);
    return cancelled_completions_[n];
  }
  void WaitForCancelAll() {
    MutexLock lock(&mutex_);
    while (cancelled_all_ == 0) changed_.Wait(&mutex_);
  }
  void WaitForDrain() {
    MutexLock lock(&mutex_);
    while (!drained_) changed_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  absl::Status answer_ GUARDED_BY(mutex_);
  std::vector<GenerationRequest> submitted_ GUARDED_BY(mutex_);
  std::vector<uint64_t> cancelled_ GUARDED_BY(mutex_);
  std::vector<std::pair<uint64_t, int>> cancelled_completions_
      GUARDED_BY(mutex_);
  int cancelled_all_ GUARDED_BY(mutex_) = 0;
  bool drained_ GUARDED_BY(mutex_) = false;
};

// One coordinator, its link and a client.
class CoordinatorLinkTest : public ::testing::Test {
 protected:
  void StartServer(const std::string& listen) {
    auto model = LoadServedModel(kModelDir);
    ASSERT_TRUE(model.ok()) << model.status();
    digest_ = (*model)->digest;
    ServerOptions options;
    options.listen = listen;
    auto server = Server::Start(options, *std::move(model));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = grpc::CreateCustomChannel(
        server_->address(), grpc::InsecureChannelCredentials(), arguments);
    inference_ = v1::Inference::NewStub(channel);
    control_ = v1::Control::NewStub(channel);
  }

  CoordinatorLink::Options LinkOptions() {
    CoordinatorLink::Options options;
    options.coordinator = server_->address();
    options.group = {.model_digest = digest_,
                     .device = "cpu",
                     .dp = 2,
                     .tp = 2,
                     .max_sequences = 4,
                     .kv_tokens = 4096,
                     .max_batch_tokens = 128,
                     .context_length = 16384};
    return options;
  }

  void StartLink() {
    auto link = CoordinatorLink::Start(LinkOptions(), &sink_);
    ASSERT_TRUE(link.ok()) << link.status();
    link_ = *std::move(link);
    WaitForGroups(1);
  }

  void WaitForGroups(int groups) {
    while (GetLoad().groups_size() != groups) {
    }
  }

  v1::GetLoadResponse GetLoad() {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    EXPECT_TRUE(control_->GetLoad(&context, {}, &response).ok());
    return response;
  }

  static v1::GenerateRequest Request() {
    v1::GenerateRequest request;
    request.mutable_token_ids()->add_ids(5);
    request.mutable_token_ids()->add_ids(6);
    request.mutable_sampling()->set_temperature(0.5);
    request.mutable_sampling()->set_seed(99);
    request.mutable_stopping()->set_max_tokens(3);
    request.mutable_stopping()->add_stop_token_ids(12);
    request.mutable_output()->set_logprobs(true);
    return request;
  }

  void Publish(uint64_t id, int64_t start, std::vector<int32_t> tokens,
               FinishReason finish = FinishReason::kNone, int completion = 0) {
    TokenEvent event;
    event.id = id;
    event.completion = completion;
    event.start_index = start;
    event.logprobs.assign(tokens.size(), -1.5f);
    event.tokens = std::move(tokens);
    event.finish = finish;
    link_->Publish({event});
  }

  std::string digest_;
  RecordingSink sink_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<CoordinatorLink> link_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Control::Stub> control_;
};

TEST_F(CoordinatorLinkTest, CarriesARequestDownAndTokensUp) {
  StartServer("127.0.0.1:0");
  StartLink();
  EXPECT_EQ(GetLoad().groups(0).dp(), 2);
  EXPECT_EQ(GetLoad().groups(0).max_sequences(), 8);
  grpc::ClientContext context;
  const auto stream = inference_->Generate(&context, Request());
  const GenerationRequest request = sink_.WaitForRequest(0);
  EXPECT_EQ(request.prompt, (std::vector<int32_t>{5, 6}));
  EXPECT_TRUE(request.generated.empty());
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.seed, 99u);
  EXPECT_EQ(request.max_new_tokens, 3);
  EXPECT_EQ(request.stop_token_ids, std::vector<int32_t>{12});
  EXPECT_EQ(request.eos_token_ids, (std::vector<int32_t>{807, 808}));
  EXPECT_EQ(request.num_token_ids, 813);
  EXPECT_TRUE(request.logprobs);
  EXPECT_FALSE(request.deadline.has_value());

  Publish(request.id, 0, {10});
  Publish(request.id, 1, {11, 12}, FinishReason::kStopToken);
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  v1::GenerateEvent event;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  while (stream->Read(&event)) {
    for (const int32_t id : event.delta().token_ids()) ids.push_back(id);
    for (const float p : event.delta().logprobs()) logprobs.push_back(p);
    if (event.has_finished()) reason = event.finished().reason();
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(ids, (std::vector<int32_t>{10, 11, 12}));
  EXPECT_EQ(logprobs, std::vector<float>(3, -1.5f));
  EXPECT_EQ(reason, v1::FINISH_REASON_STOP_TOKEN);
}

TEST_F(CoordinatorLinkTest, CarriesPenaltiesBiasesAndStoppingDown) {
  StartServer("127.0.0.1:0");
  StartLink();
  v1::GenerateRequest asked = Request();
  v1::Sampling* const sampling = asked.mutable_sampling();
  sampling->set_repetition_penalty(1.25);
  sampling->set_presence_penalty(0.5);
  sampling->set_frequency_penalty(-0.75);
  for (const int32_t id : {40, 30}) {
    v1::LogitBias* const bias = sampling->add_logit_bias();
    bias->set_token_id(id);
    bias->set_bias(id == 40 ? -100 : 2.5);
  }
  asked.mutable_stopping()->set_min_tokens(2);
  asked.mutable_stopping()->set_ignore_eos(true);
  grpc::ClientContext context;
  const auto stream = inference_->Generate(&context, asked);
  const GenerationRequest request = sink_.WaitForRequest(0);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(request.sampling.presence_penalty, 0.5f);
  EXPECT_EQ(request.sampling.frequency_penalty, -0.75f);
  ASSERT_EQ(request.sampling.logit_bias.size(), 2u);
  EXPECT_EQ(request.sampling.logit_bias[0].id, 40);
  EXPECT_EQ(request.sampling.logit_bias[0].bias, -100);
  EXPECT_EQ(request.sampling.logit_bias[1].id, 30);
  EXPECT_EQ(request.sampling.logit_bias[1].bias, 2.5f);
  EXPECT_EQ(request.min_new_tokens, 2);
  EXPECT_TRUE(request.eos_token_ids.empty());
  EXPECT_EQ(request.stop_token_ids, std::vector<int32_t>{12});

  // The client sees what holds.
  v1::GenerateEvent event;
  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.accepted().sampling().repetition_penalty(), 1.25);
  EXPECT_EQ(event.accepted().sampling().logit_bias_size(), 2);
  EXPECT_TRUE(event.accepted().stopping().ignore_eos());
  context.TryCancel();
}

TEST_F(CoordinatorLinkTest, CarriesTopLogprobsUp) {
  StartServer("127.0.0.1:0");
  StartLink();
  v1::GenerateRequest asked = Request();
  asked.mutable_output()->set_top_logprobs(2);
  grpc::ClientContext context;
  const auto stream = inference_->Generate(&context, asked);
  const GenerationRequest request = sink_.WaitForRequest(0);
  EXPECT_EQ(request.top_logprobs, 2);

  // Both may reach the client in one message.
  TokenEvent first;
  first.id = request.id;
  first.tokens = {10};
  first.logprobs = {-1};
  first.top_logprobs = {{{10, -1}, {4, -2}}};
  TokenEvent second = first;
  second.start_index = 1;
  second.tokens = {11};
  second.top_logprobs = {{{7, -0.5f}}};
  second.finish = FinishReason::kEos;
  link_->Publish({first, second});
  std::vector<v1::TopLogprobs> top;
  v1::GenerateEvent event;
  while (stream->Read(&event)) {
    for (const auto& place : event.delta().top_logprobs()) top.push_back(place);
  }
  EXPECT_TRUE(stream->Finish().ok());
  ASSERT_EQ(top.size(), 2u);
  EXPECT_THAT(top[0].token_ids(), ElementsAre(10, 4));
  EXPECT_THAT(top[0].logprobs(), ElementsAre(-1, -2));
  EXPECT_THAT(top[1].token_ids(), ElementsAre(7));
  EXPECT_THAT(top[1].logprobs(), ElementsAre(-0.5f));
}

TEST_F(CoordinatorLinkTest, CarriesPromptLogprobsUpBeforeTheTokens) {
  StartServer("127.0.0.1:0");
  StartLink();
  for (const bool complete : {true, false}) {
    v1::GenerateRequest asked = Request();
    asked.mutable_token_ids()->add_ids(7);
    asked.mutable_output()->set_choices(2);
    asked.mutable_output()->set_prompt_logprobs(1);
    grpc::ClientContext context;
    const auto stream = inference_->Generate(&context, asked);
    const GenerationRequest request = sink_.WaitForRequest(complete ? 0 : 1);
    EXPECT_EQ(request.prompt_logprobs, 1);

    TokenEvent first, second, other, token;
    for (TokenEvent* event : {&first, &second, &other, &token}) {
      event->id = request.id;
    }
    first.prompt_logprobs = {{-1.5f, {{8, -0.5f}}}};
    second.prompt_logprobs = {{-2.5f, {{9, -0.25f}}}};
    other.completion = 1;
    for (TokenEvent* event : {&other, &token}) {
      event->tokens = {12};
      event->logprobs = {-1};
      event->finish = FinishReason::kStopToken;
    }
    link_->Publish({first});
    if (complete) link_->Publish({second});
    link_->Publish({other, token});
    std::vector<float> logprobs;
    std::vector<int32_t> top_ids;
    bool tokens_came = false;
    v1::GenerateEvent event;
    while (stream->Read(&event)) {
      tokens_came = tokens_came || event.has_delta();
      if (!event.has_prompt_logprobs()) continue;
      EXPECT_FALSE(tokens_came);
      const v1::PromptLogprobs& prompt = event.prompt_logprobs();
      EXPECT_EQ(prompt.start_index(), 1 + static_cast<int>(logprobs.size()));
      for (const float p : prompt.logprobs()) logprobs.push_back(p);
      for (const v1::TopLogprobs& top : prompt.top_logprobs()) {
        top_ids.push_back(top.token_ids(0));
      }
    }
    const grpc::Status status = stream->Finish();
    if (complete) {
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_THAT(logprobs, ElementsAre(-1.5f, -2.5f));
      EXPECT_THAT(top_ids, ElementsAre(8, 9));
    } else {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
      EXPECT_THAT(status.error_message(),
                  HasSubstr("1 prompt_logprobs for the 2 tokens"));
    }
  }
}

// Three choices: one ends, one is stopped by the coordinator, one fails all
// that is left.
TEST_F(CoordinatorLinkTest, KeepsChoicesApart) {
  StartServer("127.0.0.1:0");
  StartLink();
  for (const bool fails : {false, true}) {
    v1::GenerateRequest asked = Request();
    asked.mutable_stopping()->set_max_tokens(100);
    asked.mutable_output()->set_choices(3);
    asked.mutable_output()->set_special_tokens(true);
    asked.mutable_stopping()->add_stop_strings("<|endoftext|>");
    grpc::ClientContext context;
    const auto stream = inference_->Generate(&context, asked);
    const GenerationRequest request = sink_.WaitForRequest(fails ? 1 : 0);
    EXPECT_EQ(request.num_completions, 3);

    Publish(request.id, 0, {10}, FinishReason::kNone, 0);
    Publish(request.id, 0, {20}, FinishReason::kNone, 1);
    Publish(request.id, 0, {807}, FinishReason::kNone, 2);  // its text stops it
    EXPECT_EQ(sink_.WaitForCancelledCompletion(fails ? 1 : 0),
              std::pair(request.id, 2));
    Publish(request.id, 1, {30}, FinishReason::kNone, 2);  // was on its way
    Publish(request.id, 1, {11}, FinishReason::kEos, 0);
    Publish(request.id, 1, {21}, FinishReason::kNone, 1);
    if (fails) {
      TokenEvent error;
      error.id = request.id;
      error.completion = 1;
      error.error = absl::InternalError("no numbers");
      link_->Publish({error});
    } else {
      Publish(request.id, 2, {22}, FinishReason::kStopToken, 1);
    }
    std::map<int, std::vector<int32_t>> ids;
    std::map<int, v1::FinishReason> reasons;
    v1::GenerateEvent event;
    while (stream->Read(&event)) {
      for (const int32_t id : event.delta().token_ids()) {
        ids[event.delta().choice()].push_back(id);
      }
      if (!event.has_finished()) continue;
      EXPECT_TRUE(
          reasons.emplace(event.finished().choice(), event.finished().reason())
              .second);
    }
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(),
              fails ? grpc::StatusCode::INTERNAL : grpc::StatusCode::OK);
    EXPECT_EQ(ids[0], (std::vector<int32_t>{10, 11}));
    EXPECT_EQ(ids[1], fails ? (std::vector<int32_t>{20, 21})
                            : (std::vector<int32_t>{20, 21, 22}));
    EXPECT_EQ(ids[2], (std::vector<int32_t>{807}));
    EXPECT_EQ(reasons[0], v1::FINISH_REASON_EOS);
    EXPECT_EQ(reasons[2], v1::FINISH_REASON_STOP_STRING);
    EXPECT_EQ(reasons.size(), fails ? 2u : 3u);
    const v1::GetLoadResponse load = GetLoad();
    EXPECT_EQ(load.groups(0).assigned_requests(), 0);
    EXPECT_EQ(load.groups(0).assigned_tokens(), 0);
  }
}

TEST_F(CoordinatorLinkTest, NothingIsAdjustedUnlessAsked) {
  StartServer("127.0.0.1:0");
  StartLink();
  grpc::ClientContext context;
  const auto stream = inference_->Generate(&context, Request());
  const GenerationRequest request = sink_.WaitForRequest(0);
  EXPECT_EQ(request.sampling.repetition_penalty, 1);
  EXPECT_EQ(request.top_logprobs, 0);
  EXPECT_FALSE(request.prompt_logprobs.has_value());
  EXPECT_EQ(request.num_completions, 1);
  EXPECT_EQ(request.sampling.presence_penalty, 0);
  EXPECT_EQ(request.sampling.frequency_penalty, 0);
  EXPECT_TRUE(request.sampling.logit_bias.empty());
  EXPECT_EQ(request.min_new_tokens, 0);
  context.TryCancel();
}

TEST_F(CoordinatorLinkTest, CancelReachesTheSink) {
  StartServer("127.0.0.1:0");
  StartLink();
  grpc::ClientContext context;
  const auto stream = inference_->Generate(&context, Request());
  const GenerationRequest request = sink_.WaitForRequest(0);
  context.TryCancel();
  EXPECT_EQ(sink_.WaitForCancel(), request.id);
  stream->Finish();
}

TEST_F(CoordinatorLinkTest, RefusedRequestReachesTheClient) {
  StartServer("127.0.0.1:0");
  StartLink();
  sink_.AnswerWith(absl::ResourceExhaustedError("no room at all"));
  grpc::ClientContext context;
  const auto stream = inference_->Generate(&context, Request());
  v1::GenerateEvent event;
  while (stream->Read(&event)) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("no room at all"));
}

TEST_F(CoordinatorLinkTest, ReportsLoadAndDrains) {
  StartServer("127.0.0.1:0");
  StartLink();
  link_->PublishLoad({.free_pages = 3, .running = 1});
  link_->PublishLoad({.free_pages = 4, .running = 2});
  while (GetLoad().groups(0).free_pages() != 4) {
  }
  EXPECT_EQ(GetLoad().groups(0).running(), 2);
  grpc::ClientContext context;
  v1::DrainRequest request;
  v1::DrainResponse response;
  request.set_group_id(GetLoad().groups(0).group_id());
  EXPECT_TRUE(control_->Drain(&context, request, &response).ok());
  sink_.WaitForDrain();
}

TEST_F(CoordinatorLinkTest, JoinsAgainWhenTheCoordinatorIsBack) {
  StartServer("127.0.0.1:0");
  StartLink();
  grpc::ClientContext context;
  const auto stream = inference_->Generate(&context, Request());
  const GenerationRequest old_request = sink_.WaitForRequest(0);
  const std::string address = server_->address();
  server_.reset();
  v1::GenerateEvent event;
  while (stream->Read(&event)) {
  }
  EXPECT_FALSE(stream->Finish().ok());
  sink_.WaitForCancelAll();

  StartServer(address);
  WaitForGroups(1);
  EXPECT_GT(GetLoad().groups(0).epoch(), 1);
  grpc::ClientContext next_context;
  const auto next = inference_->Generate(&next_context, Request());
  const GenerationRequest request = sink_.WaitForRequest(1);
  EXPECT_NE(request.id, old_request.id);
  Publish(old_request.id, 0, {700, 701});  // late news of the old stream
  Publish(request.id, 0, {12}, FinishReason::kStopToken);
  std::vector<int32_t> ids;
  while (next->Read(&event)) {
    for (const int32_t id : event.delta().token_ids()) ids.push_back(id);
  }
  EXPECT_TRUE(next->Finish().ok());
  EXPECT_EQ(ids, std::vector<int32_t>{12});
}

TEST_F(CoordinatorLinkTest, AsksWithoutJoining) {
  StartServer("127.0.0.1:0");
  CoordinatorLink::Options options = LinkOptions();
  EXPECT_TRUE(CoordinatorLink::Ask(options).ok());
  options.group.model_digest = "other";
  const absl::Status other = CoordinatorLink::Ask(options);
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.message()), HasSubstr("another model"));
  options.group.kv_tokens = 0;
  options.group.model_digest = digest_;
  EXPECT_EQ(CoordinatorLink::Ask(options).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetLoad().groups_size(), 0);

  options.tls.cert = "/nonexistent";
  EXPECT_EQ(CoordinatorLink::Ask(options).code(),
            absl::StatusCode::kInvalidArgument);
  options.tls = {.ca = "/nonexistent", .cert = "", .key = ""};
  EXPECT_EQ(CoordinatorLink::Ask(options).code(), absl::StatusCode::kNotFound);
  options.tls = {};
  server_.reset();
  EXPECT_EQ(CoordinatorLink::Ask(options).code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(CoordinatorLinkTest, AnotherModelEndsTheLinkWithTheReason) {
  StartServer("127.0.0.1:0");
  Mutex mutex;
  CondVar changed;
  absl::Status refusal;
  CoordinatorLink::Options options = LinkOptions();
  options.group.model_digest = "other";
  options.on_refused = [&](const absl::Status& status) {
    MutexLock lock(&mutex);
    refusal = status;
    changed.NotifyAll();
  };
  const auto link = CoordinatorLink::Start(options, &sink_);
  ASSERT_TRUE(link.ok());
  MutexLock lock(&mutex);
  while (refusal.ok()) changed.Wait(&mutex);
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("another model"));
}

}  // namespace
}  // namespace ring
