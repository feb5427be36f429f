#include "worker/coordinator_link.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "proto/credentials.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "ring/v1/cluster.grpc.pb.h"

namespace ring {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kFirstBackoff{50};
constexpr milliseconds kLastBackoff{2000};
constexpr milliseconds kAskPatience{3000};

using Stream = grpc::ClientReaderWriter<v1::FromWorker, v1::ToWorker>;

// A channel of its own for each attempt: gRPC's own back-off, which channels
// share by default, would delay the next one.
std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

v1::Hello MakeHello(const GroupDescription& group, uint64_t group_key,
                    int64_t epoch) {
  v1::Hello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_group_key(group_key);
  hello.set_epoch(epoch);
  hello.set_model_digest(group.model_digest);
  hello.set_dp(group.dp);
  hello.set_tp(group.tp);
  hello.set_max_sequences(group.max_sequences);
  hello.set_kv_tokens(group.kv_tokens);
  hello.set_max_batch_tokens(group.max_batch_tokens);
  hello.set_context_length(group.context_length);
  hello.set_host(HostName());
  hello.set_pid(getpid());
  hello.set_device(group.device);
  return hello;
}

v1::GroupFinish ToWire(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return v1::GROUP_FINISH_NONE;
    case FinishReason::kEos:
      return v1::GROUP_FINISH_EOS;
    case FinishReason::kStopToken:
      return v1::GROUP_FINISH_STOP_TOKEN;
    case FinishReason::kLength:
      return v1::GROUP_FINISH_LENGTH;
    case FinishReason::kContextFull:
      return v1::GROUP_FINISH_CONTEXT_FULL;
  }
  return v1::GROUP_FINISH_NONE;
}

void AddTop(const std::vector<IdLogprob>& top, v1::TopLogprobs* to) {
  for (const IdLogprob& entry : top) {
    to->add_token_ids(entry.id);
    to->add_logprobs(entry.logprob);
  }
}

GenerationRequest FromWire(const v1::Submit& submit, uint64_t id,
                           int num_token_ids) {
  GenerationRequest request;
  request.id = id;
  request.prompt.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
  request.generated.assign(submit.generated_ids().begin(),
                           submit.generated_ids().end());
  request.sampling = {
      .temperature = static_cast<float>(submit.temperature()),
      .top_k = submit.top_k(),
      .top_p = static_cast<float>(submit.top_p()),
      .min_p = static_cast<float>(submit.min_p()),
      .seed = submit.seed(),
      .repetition_penalty = static_cast<float>(submit.repetition_penalty()),
      .presence_penalty = static_cast<float>(submit.presence_penalty()),
      .frequency_penalty = static_cast<float>(submit.frequency_penalty())};
  for (const v1::SubmitLogitBias& bias : submit.logit_bias()) {
    request.sampling.logit_bias.push_back({bias.token_id(), bias.bias()});
  }
  request.num_completions = submit.choices();
  request.max_new_tokens = static_cast<int>(submit.max_tokens());
  request.min_new_tokens = static_cast<int>(submit.min_tokens());
  request.eos_token_ids.assign(submit.eos_token_ids().begin(),
                               submit.eos_token_ids().end());
  request.stop_token_ids.assign(submit.stop_token_ids().begin(),
                                submit.stop_token_ids().end());
  request.num_token_ids = num_token_ids;
  request.logprobs = submit.logprobs();
  request.top_logprobs = submit.top_logprobs();
  if (submit.has_prompt_logprobs()) {
    request.prompt_logprobs = submit.prompt_logprobs();
  }
  if (submit.has_timeout_us()) {
    request.deadline =
        steady_clock::now() + std::chrono::microseconds(submit.timeout_us());
  }
  return request;
}

}  // namespace

// Ids: the coordinator numbers requests per stream, the engine sees numbers
// that are unique over all streams of this process, so that late news of an
// earlier stream cannot be taken for news of this one.
class CoordinatorLink::Impl {
 public:
  Impl(Options options, std::shared_ptr<grpc::ChannelCredentials> credentials,
       RequestSink* sink)
      : options_(std::move(options)),
        credentials_(std::move(credentials)),
        sink_(sink),
        group_key_((uint64_t{random_()} << 32) | random_()),
        reader_([this] { JoinForEver(); }),
        writer_([this] { WriteForEver(); }) {}

  ~Impl() {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      if (context_ != nullptr) context_->TryCancel();
      changed_.NotifyAll();
    }
    reader_.join();
    writer_.join();
  }

  void Publish(std::vector<TokenEvent> events) {
    MutexLock lock(&mutex_);
    for (TokenEvent& event : events) Add(std::move(event));
    if (HasNews()) changed_.NotifyAll();
  }

  void PublishLoad(const LoadReport& load) {
    MutexLock lock(&mutex_);
    load_ = load;
    if (stream_ != nullptr) changed_.NotifyAll();
  }

 private:
  // ----- the reading thread -----

  void JoinForEver() {
    milliseconds backoff = kFirstBackoff;
    for (int64_t epoch = 1; !Stopping(); ++epoch) {
      const steady_clock::time_point start = steady_clock::now();
      const absl::Status status = Join(epoch);
      if (Stopping()) return;
      if (absl::IsFailedPrecondition(status) ||
          absl::IsInvalidArgument(status)) {
        LogError("coordinator refused the group", "coordinator",
                 options_.coordinator, "why", status.message());
        if (options_.on_refused) options_.on_refused(status);
        return;
      }
      // A stream that held shows that the coordinator is well.
      if (steady_clock::now() - start > kLastBackoff) backoff = kFirstBackoff;
      LogWarning("no stream to the coordinator", "coordinator",
                 options_.coordinator, "why", status.message(), "retry_ms",
                 backoff.count());
      Sleep(backoff);
      backoff = std::min(2 * backoff, kLastBackoff);
    }
  }

  // One stream, from Hello to its end; returns how it ended.
  absl::Status Join(int64_t epoch) {
    grpc::ClientContext context;
    const auto stub =
        v1::Cluster::NewStub(MakeChannel(options_.coordinator, credentials_));
    {
      MutexLock lock(&mutex_);
      if (stopping_) return absl::CancelledError("stopping");
      context_ = &context;
    }
    const std::unique_ptr<Stream> stream = stub->Join(&context);
    v1::FromWorker hello;
    *hello.mutable_hello() = MakeHello(options_.group, group_key_, epoch);
    v1::ToWorker message;
    absl::Status error = absl::OkStatus();
    if (stream->Write(hello) && stream->Read(&message)) {
      error = Serve(epoch, message, stream.get());
    }
    {
      MutexLock lock(&mutex_);
      stream_ = nullptr;
      while (writing_) changed_.Wait(&mutex_);
      context_ = nullptr;
    }
    if (!error.ok()) context.TryCancel();
    const absl::Status status = FromGrpcStatus(stream->Finish());
    if (!error.ok()) return error;
    return status.ok() ? absl::UnavailableError("the stream was closed")
                       : status;
  }

  // Takes requests until the stream ends. An error: the coordinator broke the
  // protocol.
  absl::Status Serve(int64_t epoch, const v1::ToWorker& first, Stream* stream) {
    if (!first.has_welcome()) {
      return absl::InternalError("the first message was not Welcome");
    }
    num_token_ids_ = first.welcome().num_token_ids();
    LogInfo("joined the coordinator", "coordinator", options_.coordinator,
            "group", first.welcome().group_id(), "epoch", epoch,
            "num_token_ids", num_token_ids_);
    {
      MutexLock lock(&mutex_);
      stream_ = stream;
      changed_.NotifyAll();
    }
    v1::ToWorker message;
    while (stream->Read(&message)) Receive(message);
    {
      MutexLock lock(&mutex_);
      stream_ = nullptr;
      engine_ids_.clear();
      live_.clear();
      news_.clear();
      failed_.clear();
    }
    sink_->CancelAll();
    return absl::OkStatus();
  }

  void Receive(const v1::ToWorker& message) {
    switch (message.message_case()) {
      case v1::ToWorker::kSubmit:
        Submit(message.submit());
        return;
      case v1::ToWorker::kCancel:
        Cancel(message.cancel());
        return;
      case v1::ToWorker::kDrain:
        sink_->Drain();
        return;
      case v1::ToWorker::kWelcome:
      case v1::ToWorker::MESSAGE_NOT_SET:
        LogWarning("message of the coordinator ignored", "kind",
                   message.message_case());
        return;
    }
  }

  void Submit(const v1::Submit& submit) {
    const uint64_t id = ++last_engine_id_;
    {
      MutexLock lock(&mutex_);
      engine_ids_[submit.id()] = id;
      live_[id] = {
          submit.id(),
          std::vector<bool>(std::clamp(submit.choices(), 1, kMaxCompletions)),
          submit.prompt_logprobs() > 0};
    }
    const absl::Status status =
        sink_->Submit(FromWire(submit, id, num_token_ids_));
    if (status.ok()) return;
    std::vector<TokenEvent> events(1);
    events[0].id = id;
    events[0].error = status;
    Publish(std::move(events));
  }

  void Cancel(const v1::Cancel& cancel) {
    uint64_t id = 0;
    {
      MutexLock lock(&mutex_);
      const auto it = engine_ids_.find(cancel.id());
      if (it == engine_ids_.end()) return;  // has ended
      id = it->second;
      if (cancel.has_choice()) {
        const auto choices = static_cast<int>(live_.at(id).ended.size());
        if (cancel.choice() < 0 || cancel.choice() >= choices) return;
        EndCompletion(id, cancel.choice());
      } else {
        Forget(id);
      }
    }
    if (cancel.has_choice()) {
      sink_->CancelCompletion(id, cancel.choice());
    } else {
      sink_->Cancel(id);
    }
  }

  bool Stopping() {
    MutexLock lock(&mutex_);
    return stopping_;
  }

  // Returns early when the link stops.
  void Sleep(milliseconds duration) {
    const steady_clock::time_point deadline = steady_clock::now() + duration;
    MutexLock lock(&mutex_);
    while (!stopping_ && changed_.WaitUntil(&mutex_, deadline)) {
    }
  }

  // ----- news of the engine -----

  // Merges an event into what the writer sends next.
  void Add(TokenEvent event) REQUIRES(mutex_) {
    const auto live = live_.find(event.id);
    if (live == live_.end()) return;  // cancelled, or of another stream
    if (live->second.ended[event.completion]) return;  // cancelled
    const uint64_t wire_id = live->second.wire_id;
    if (!event.tokens.empty() || !event.prompt_logprobs.empty() ||
        event.finish != FinishReason::kNone) {
      v1::RequestTokens& news = news_[{wire_id, event.completion}];
      if (news.id() == 0) {
        news.set_id(wire_id);
        news.set_choice(event.completion);
        news.set_start_index(event.start_index);
      }
      news.mutable_token_ids()->Add(event.tokens.begin(), event.tokens.end());
      news.mutable_logprobs()->Add(event.logprobs.begin(),
                                   event.logprobs.end());
      for (const std::vector<IdLogprob>& top : event.top_logprobs) {
        AddTop(top, news.add_top_logprobs());
      }
      AddPrompt(event, &live->second, &news);
      news.set_finish(ToWire(event.finish));
      news.set_queue_us(std::max(news.queue_us(), event.queue_us));
      news.set_prefill_us(std::max(news.prefill_us(), event.prefill_us));
    }
    if (!event.error.ok()) {
      v1::RequestFailed& failed = failed_.emplace_back();
      failed.set_id(wire_id);
      failed.set_code(static_cast<int>(event.error.code()));
      failed.set_message(std::string(event.error.message()));
    }
    if (!event.error.ok()) {
      Forget(event.id);
    } else if (event.finish != FinishReason::kNone) {
      EndCompletion(event.id, event.completion);
    }
  }

  struct Live {
    uint64_t wire_id = 0;
    std::vector<bool> ended;     // by completion
    bool top_of_prompt = false;  // likeliest ids of the prompt are asked for
    int64_t scored = 0;          // tokens of the prompt that came
  };

  // The prompt's tokens in an event, if there are any.
  static void AddPrompt(const TokenEvent& event, Live* live,
                        v1::RequestTokens* news) {
    if (event.prompt_logprobs.empty()) return;
    v1::PromptLogprobs* const prompt = news->mutable_prompt_logprobs();
    if (prompt->start_index() == 0) prompt->set_start_index(1 + live->scored);
    for (const PromptLogprob& token : event.prompt_logprobs) {
      prompt->add_logprobs(token.logprob);
      if (live->top_of_prompt) AddTop(token.top, prompt->add_top_logprobs());
    }
    live->scored += static_cast<int64_t>(event.prompt_logprobs.size());
  }

  // The request is forgotten with its last completion.
  void EndCompletion(uint64_t id, int completion) REQUIRES(mutex_) {
    std::vector<bool>& ended = live_.at(id).ended;
    ended[completion] = true;
    if (std::all_of(ended.begin(), ended.end(), [](bool e) { return e; })) {
      Forget(id);
    }
  }

  void Forget(uint64_t id) REQUIRES(mutex_) {
    const auto it = live_.find(id);
    if (it == live_.end()) return;
    engine_ids_.erase(it->second.wire_id);
    live_.erase(it);
  }

  bool HasNews() const REQUIRES(mutex_) {
    return stream_ != nullptr &&
           (!news_.empty() || !failed_.empty() || load_.has_value());
  }

  // ----- the writing thread -----

  void WriteForEver() {
    while (true) {
      Stream* stream = nullptr;
      std::vector<v1::FromWorker> messages;
      {
        MutexLock lock(&mutex_);
        while (!stopping_ && !HasNews()) changed_.Wait(&mutex_);
        if (stopping_) return;
        stream = stream_;
        messages = TakeNews();
        writing_ = true;  // keeps the stream alive
      }
      // A failed write needs no answer: the reader notices the same.
      for (const v1::FromWorker& message : messages) {
        if (!stream->Write(message)) break;
      }
      MutexLock lock(&mutex_);
      writing_ = false;
      changed_.NotifyAll();
    }
  }

  std::vector<v1::FromWorker> TakeNews() REQUIRES(mutex_) {
    std::vector<v1::FromWorker> messages;
    v1::TokenEvents tokens;
    for (auto& [key, news] : news_) {
      // Before all tokens; in a message of its own, which is as large as the
      // prompt makes it.
      v1::TokenEvents* const to = news.has_prompt_logprobs()
                                      ? messages.emplace_back().mutable_tokens()
                                      : &tokens;
      *to->add_requests() = std::move(news);
    }
    news_.clear();
    if (tokens.requests_size() > 0) {
      *messages.emplace_back().mutable_tokens() = std::move(tokens);
    }
    for (v1::RequestFailed& failed : failed_) {
      *messages.emplace_back().mutable_failed() = std::move(failed);
    }
    failed_.clear();
    if (load_.has_value()) {
      v1::Load* load = messages.emplace_back().mutable_load();
      load->set_free_pages(load_->free_pages);
      load->set_free_slots(load_->free_slots);
      load->set_free_tokens(load_->free_tokens);
      load->set_queued(load_->queued);
      load->set_running(load_->running);
      load_.reset();
    }
    return messages;
  }

  const Options options_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  RequestSink* const sink_;
  std::random_device random_;
  const uint64_t group_key_;

  // Of the reading thread.
  uint64_t last_engine_id_ = 0;
  int num_token_ids_ = 0;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ GUARDED_BY(mutex_) = nullptr;
  Stream* stream_ GUARDED_BY(mutex_) = nullptr;  // null: not joined
  bool writing_ GUARDED_BY(mutex_) = false;
  // Live requests of this stream, by the number of either side.
  absl::flat_hash_map<uint64_t, uint64_t> engine_ids_ GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, Live> live_ GUARDED_BY(mutex_);
  // What the writer sends next, by the coordinator's number and completion.
  absl::flat_hash_map<std::pair<uint64_t, int>, v1::RequestTokens> news_
      GUARDED_BY(mutex_);
  std::vector<v1::RequestFailed> failed_ GUARDED_BY(mutex_);
  std::optional<LoadReport> load_ GUARDED_BY(mutex_);

  // Last: they use all of the above.
  std::thread reader_;
  std::thread writer_;
};

absl::Status CoordinatorLink::Ask(const Options& options) {
  RING_ASSIGN_OR_RETURN(const TlsPem tls, ReadClientTls(options.tls));
  const auto stub = v1::Cluster::NewStub(
      MakeChannel(options.coordinator, MakeChannelCredentials(tls)));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kAskPatience);
  v1::CheckGroupResponse response;
  return FromGrpcStatus(stub->CheckGroup(
      &context, MakeHello(options.group, /*group_key=*/0, /*epoch=*/0),
      &response));
}

absl::StatusOr<std::unique_ptr<CoordinatorLink>> CoordinatorLink::Start(
    Options options, RequestSink* sink) {
  RING_ASSIGN_OR_RETURN(const TlsPem tls, ReadClientTls(options.tls));
  auto impl = std::make_unique<Impl>(std::move(options),
                                     MakeChannelCredentials(tls), sink);
  return std::unique_ptr<CoordinatorLink>(new CoordinatorLink(std::move(impl)));
}

CoordinatorLink::CoordinatorLink(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}

CoordinatorLink::~CoordinatorLink() = default;

void CoordinatorLink::Publish(std::vector<TokenEvent> events) {
  impl_->Publish(std::move(events));
}

void CoordinatorLink::PublishLoad(const LoadReport& load) {
  impl_->PublishLoad(load);
}

}  // namespace ring
