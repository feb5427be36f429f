#include "coordinator/request.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

// Of what a group may say that a step took: sums of it stay in range.
constexpr int64_t kMaxTimeUs = int64_t{1} << 50;

int64_t Microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration)
      .count();
}

absl::Status CheckFinite(
    const google::protobuf::RepeatedField<float>& logprobs) {
  for (const float logprob : logprobs) {
    if (std::isfinite(logprob)) continue;
    return absl::InternalError(
        absl::StrCat("the worker group sent the logprob ", logprob));
  }
  return absl::OkStatus();
}

// Also as many of one as of the other.
absl::Status CheckTop(
    const google::protobuf::RepeatedPtrField<v1::TopLogprobs>& places) {
  for (const v1::TopLogprobs& top : places) {
    if (top.token_ids_size() != top.logprobs_size()) {
      return absl::InternalError(absl::StrCat(
          "the worker group sent ", top.logprobs_size(), " logprobs of ",
          top.token_ids_size(), " likely tokens"));
    }
    RING_RETURN_IF_ERROR(CheckFinite(top.logprobs()));
  }
  return absl::OkStatus();
}

int64_t MaxTokens(const Request::Args& args) {
  if (args.options.max_tokens > 0) return args.options.max_tokens;
  return args.model->context_length -
         static_cast<int64_t>(args.prompt.ids.size());
}

}  // namespace

Request::Request(Args args)
    : args_(std::move(args)),
      max_tokens_(MaxTokens(args_)),
      live_choices_(args_.options.choices) {
  for (int i = 0; i < args_.options.choices; ++i) {
    choices_.emplace_back(i, args_);
  }
}

void Request::Accept(int64_t queue_position) {
  v1::GenerateEvent event;
  v1::Accepted* accepted = event.mutable_accepted();
  accepted->set_request_id(args_.name);
  accepted->set_queue_position(queue_position);
  accepted->set_prompt_tokens(prompt_tokens());
  EchoOptions(args_.options, accepted);
  accepted->mutable_stopping()->set_max_tokens(max_tokens_);
  MutexLock lock(&mutex_);
  if (!ended_) args_.stream->Send(std::move(event));
}

v1::Submit Request::MakeSubmit(int64_t epoch) {
  v1::Submit submit;
  submit.set_id(args_.id);
  submit.set_epoch(epoch);
  submit.mutable_prompt_ids()->Add(args_.prompt.ids.begin(),
                                   args_.prompt.ids.end());
  const RequestOptions& options = args_.options;
  submit.set_temperature(options.temperature);
  submit.set_top_k(options.top_k);
  submit.set_top_p(options.top_p);
  submit.set_min_p(options.min_p);
  submit.set_seed(options.seed);
  submit.set_repetition_penalty(options.repetition_penalty);
  submit.set_presence_penalty(options.presence_penalty);
  submit.set_frequency_penalty(options.frequency_penalty);
  for (const v1::LogitBias& entry : options.logit_bias) {
    v1::SubmitLogitBias* const bias = submit.add_logit_bias();
    bias->set_token_id(entry.token_id());
    bias->set_bias(static_cast<float>(entry.bias()));
  }
  submit.set_max_tokens(max_tokens_);
  submit.set_min_tokens(options.min_tokens);
  if (!options.ignore_eos) {
    submit.mutable_eos_token_ids()->Add(args_.model->eos_token_ids.begin(),
                                        args_.model->eos_token_ids.end());
  }
  submit.mutable_stop_token_ids()->Add(options.stop_token_ids.begin(),
                                       options.stop_token_ids.end());
  submit.set_choices(options.choices);
  submit.set_logprobs(options.logprobs);
  submit.set_top_logprobs(options.top_logprobs);
  if (options.prompt_logprobs.has_value()) {
    submit.set_prompt_logprobs(*options.prompt_logprobs);
  }
  if (args_.deadline != SystemTime::max()) {
    const auto left = args_.deadline - std::chrono::system_clock::now();
    submit.set_timeout_us(std::max<int64_t>(
        0,
        std::chrono::duration_cast<std::chrono::microseconds>(left).count()));
  }
  MutexLock lock(&mutex_);
  // A completion can be continued, several cannot.
  if (choices_.size() == 1) {
    submit.mutable_generated_ids()->Add(choices_[0].generated.begin(),
                                        choices_[0].generated.end());
  }
  submitted_at_ = std::chrono::steady_clock::now();
  return submit;
}

Request::Outcome Request::OnTokens(const v1::RequestTokens& tokens) {
  MutexLock lock(&mutex_);
  if (ended_) return Outcome::kFinished;
  error_ = Check(tokens);
  if (!error_.ok()) {
    ended_ = true;
    return Outcome::kFailed;
  }
  if (tokens.has_prompt_logprobs() && !SendPrompt(tokens.prompt_logprobs())) {
    return FailSlowClient();
  }
  Choice& choice = choices_[tokens.choice()];
  // What was on its way when a stop string ended it.
  if (choice.ended) return Outcome::kLive;
  const bool group_ended = tokens.finish() != v1::GROUP_FINISH_NONE;

  v1::GenerateEvent event;
  v1::TokenDelta* delta = event.mutable_delta();
  delta->set_choice(choice.index);
  AppendTokens(tokens, &choice, delta);
  choice.ended = group_ended || choice.text.stopped();
  if (choice.ended) {
    CompletionText::Text rest;
    choice.text.Finish(&rest);
    delta->mutable_text()->append(rest.answer);
    delta->mutable_reasoning()->append(rest.reasoning);
  }
  const bool has_news = delta->token_ids_size() > 0 || !delta->text().empty() ||
                        !delta->reasoning().empty();
  if (has_news && !args_.stream->Send(std::move(event))) {
    return FailSlowClient();
  }
  if (!choice.ended) return Outcome::kLive;
  v1::GenerateEvent finished =
      MakeFinished(choice, Reason(choice, tokens.finish()));
  if (--live_choices_ > 0) {
    args_.stream->Send(std::move(finished));
    return group_ended ? Outcome::kLive : Outcome::kChoiceStopped;
  }
  ended_ = true;
  finished_ = std::move(finished);
  return group_ended ? Outcome::kFinished : Outcome::kStopped;
}

bool Request::SendPrompt(const v1::PromptLogprobs& prompt) {
  scored_ += prompt.logprobs_size();
  v1::GenerateEvent event;
  *event.mutable_prompt_logprobs() = prompt;
  return args_.stream->Send(std::move(event));
}

Request::Outcome Request::FailSlowClient() {
  ended_ = true;
  error_ = absl::ResourceExhaustedError(
      absl::StrCat("the client does not read its stream: more than ",
                   EventStream::kMaxWaitingBytes, " bytes would wait for it"));
  return Outcome::kFailed;
}

void Request::Conclude() {
  MutexLock lock(&mutex_);
  if (closed_) return;
  closed_ = true;
  if (error_.ok()) args_.stream->Send(std::move(finished_));
  args_.stream->Close(error_);
}

void Request::Fail(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (ended_) return;
  ended_ = true;
  closed_ = true;
  args_.stream->Close(status);
}

absl::Status Request::CheckPrompt(const v1::RequestTokens& tokens) const {
  if (!args_.options.prompt_logprobs.has_value()) {
    if (!tokens.has_prompt_logprobs()) return absl::OkStatus();
    return absl::InternalError(
        "the worker group sent prompt_logprobs that nobody asked for");
  }
  const v1::PromptLogprobs& prompt = tokens.prompt_logprobs();
  if (tokens.has_prompt_logprobs() && prompt.start_index() != 1 + scored_) {
    return absl::InternalError(absl::StrCat(
        "the worker group sent prompt_logprobs from token ",
        prompt.start_index(), " where token ", 1 + scored_, " comes next"));
  }
  const bool has_top = *args_.options.prompt_logprobs > 0;
  if (prompt.top_logprobs_size() != (has_top ? prompt.logprobs_size() : 0)) {
    return absl::InternalError(absl::StrCat(
        "the worker group sent ", prompt.top_logprobs_size(),
        " top_logprobs for ", prompt.logprobs_size(), " tokens of the prompt"));
  }
  const int64_t scored = scored_ + prompt.logprobs_size();
  const int64_t all = prompt_tokens() - 1;
  if (scored > all || (scored < all && tokens.token_ids_size() > 0)) {
    return absl::InternalError(
        absl::StrCat("the worker group sent ", scored, " prompt_logprobs for ",
                     "the ", all, " tokens after the prompt's first"));
  }
  RING_RETURN_IF_ERROR(CheckFinite(prompt.logprobs()));
  return CheckTop(prompt.top_logprobs());
}

absl::Status Request::Check(const v1::RequestTokens& tokens) const {
  if (tokens.choice() < 0 || tokens.choice() >= choices()) {
    return absl::InternalError(
        absl::StrCat("the worker group sent choice ", tokens.choice(),
                     " of a request for choices [0, ", choices() - 1, "]"));
  }
  RING_RETURN_IF_ERROR(CheckPrompt(tokens));
  const Choice& choice = choices_[tokens.choice()];
  if (choice.ended) return absl::OkStatus();
  const auto expected = static_cast<int64_t>(choice.generated.size());
  if (tokens.start_index() != expected) {
    return absl::InternalError(
        absl::StrCat("the worker group sent token ", tokens.start_index(),
                     " where token ", expected, " comes next"));
  }
  for (const int32_t id : tokens.token_ids()) {
    if (id >= 0 && id < args_.model->num_token_ids) continue;
    return absl::InternalError(absl::StrCat(
        "the worker group sent token id ", id, ", which is not in [0, ",
        args_.model->num_token_ids - 1, "]"));
  }
  if (tokens.token_ids_size() > max_tokens_ - expected) {
    return absl::InternalError(absl::StrCat(
        "the worker group sent ", tokens.token_ids_size(),
        " tokens where at most ", max_tokens_ - expected, " can follow"));
  }
  if (!v1::GroupFinish_IsValid(tokens.finish())) {
    return absl::InternalError(absl::StrCat(
        "the worker group sent the unknown finish ", tokens.finish()));
  }
  for (const int64_t time_us : {tokens.queue_us(), tokens.prefill_us()}) {
    if (time_us >= 0 && time_us <= kMaxTimeUs) continue;
    return absl::InternalError(
        absl::StrCat("the worker group sent a time of ", time_us,
                     " us, which is not in [0, ", kMaxTimeUs, "]"));
  }
  if (args_.options.logprobs &&
      tokens.logprobs_size() != tokens.token_ids_size()) {
    return absl::InternalError(
        absl::StrCat("the worker group sent ", tokens.logprobs_size(),
                     " logprobs for ", tokens.token_ids_size(), " tokens"));
  }
  if (args_.options.top_logprobs > 0 &&
      tokens.top_logprobs_size() != tokens.token_ids_size()) {
    return absl::InternalError(
        absl::StrCat("the worker group sent ", tokens.top_logprobs_size(),
                     " top_logprobs for ", tokens.token_ids_size(), " tokens"));
  }
  RING_RETURN_IF_ERROR(CheckFinite(tokens.logprobs()));
  return CheckTop(tokens.top_logprobs());
}

void Request::AppendTokens(const v1::RequestTokens& tokens, Choice* choice,
                           v1::TokenDelta* delta) {
  const SteadyTime now = std::chrono::steady_clock::now();
  if (tokens.token_ids_size() > 0) {
    if (choice->generated.empty()) {
      choice->first_token_at = now;
      choice->group_queue_us = tokens.queue_us();
      choice->prefill_us = tokens.prefill_us();
    }
    choice->last_token_at = now;
  }
  // The token that ends the completion is no text of it.
  const bool ends_with_token = tokens.finish() == v1::GROUP_FINISH_EOS ||
                               tokens.finish() == v1::GROUP_FINISH_STOP_TOKEN;
  delta->set_start_index(static_cast<int64_t>(choice->generated.size()));
  CompletionText::Text text;
  for (int i = 0; i < tokens.token_ids_size() && !choice->text.stopped(); ++i) {
    const int32_t id = tokens.token_ids(i);
    choice->generated.push_back(id);
    delta->add_token_ids(id);
    if (args_.options.logprobs) delta->add_logprobs(tokens.logprobs(i));
    if (args_.options.top_logprobs > 0) {
      *delta->add_top_logprobs() = tokens.top_logprobs(i);
    }
    const bool is_end = ends_with_token && i + 1 == tokens.token_ids_size();
    if (choice->text.in_reasoning() && !is_end) ++choice->reasoning_tokens;
    if (!is_end || args_.options.special_tokens) choice->text.Append(id, &text);
  }
  delta->set_text(std::move(text.answer));
  delta->set_reasoning(std::move(text.reasoning));
}

v1::FinishReason Request::Reason(const Choice& choice,
                                 v1::GroupFinish finish) const {
  if (choice.text.stopped()) return v1::FINISH_REASON_STOP_STRING;
  switch (finish) {
    case v1::GROUP_FINISH_EOS:
      return v1::FINISH_REASON_EOS;
    case v1::GROUP_FINISH_STOP_TOKEN:
      return v1::FINISH_REASON_STOP_TOKEN;
    case v1::GROUP_FINISH_LENGTH:
      // A length that the client did not ask for is that of the context.
      return args_.options.max_tokens > 0 ? v1::FINISH_REASON_LENGTH
                                          : v1::FINISH_REASON_CONTEXT_FULL;
    default:
      return v1::FINISH_REASON_CONTEXT_FULL;
  }
}

v1::GenerateEvent Request::MakeFinished(const Choice& choice,
                                        v1::FinishReason reason) const {
  v1::GenerateEvent event;
  v1::Finished* finished = event.mutable_finished();
  finished->set_choice(choice.index);
  finished->set_reason(reason);
  if (reason == v1::FINISH_REASON_STOP_STRING) {
    finished->set_stop_string(
        args_.options
            .stop_strings[static_cast<size_t>(choice.text.stop_string())]);
  }
  v1::Usage* usage = finished->mutable_usage();
  usage->set_prompt_tokens(prompt_tokens());
  usage->set_completion_tokens(static_cast<int64_t>(choice.generated.size()));
  usage->set_reasoning_tokens(choice.reasoning_tokens);

  v1::Timings* timings = finished->mutable_timings();
  const SteadyTime now = std::chrono::steady_clock::now();
  timings->set_queue_us(Microseconds(submitted_at_ - args_.arrived_at) +
                        choice.group_queue_us);
  timings->set_prefill_us(choice.prefill_us);
  if (!choice.generated.empty()) {
    timings->set_decode_us(
        Microseconds(choice.last_token_at - choice.first_token_at));
    timings->set_ttft_us(
        Microseconds(choice.first_token_at - args_.arrived_at));
  }
  timings->set_total_us(Microseconds(now - args_.arrived_at));
  return event;
}

}  // namespace ring
