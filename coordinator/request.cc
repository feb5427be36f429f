#include "coordinator/request.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ring {
namespace {

// Of what a group may say that a step took: sums of it stay in range.
constexpr int64_t kMaxTimeUs = int64_t{1} << 50;

int64_t Microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration)
      .count();
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
      text_(args_.model, args_.options, args_.prompt.starts_in_thinking) {}

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
  submit.set_logprobs(options.logprobs);
  if (args_.deadline != SystemTime::max()) {
    const auto left = args_.deadline - std::chrono::system_clock::now();
    submit.set_timeout_us(std::max<int64_t>(
        0,
        std::chrono::duration_cast<std::chrono::microseconds>(left).count()));
  }
  MutexLock lock(&mutex_);
  submit.mutable_generated_ids()->Add(generated_.begin(), generated_.end());
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
  const bool group_ended = tokens.finish() != v1::GROUP_FINISH_NONE;

  v1::GenerateEvent event;
  v1::TokenDelta* delta = event.mutable_delta();
  AppendTokens(tokens, delta);
  ended_ = group_ended || text_.stopped();
  if (ended_) {
    CompletionText::Text rest;
    text_.Finish(&rest);
    delta->mutable_text()->append(rest.answer);
    delta->mutable_reasoning()->append(rest.reasoning);
  }
  const bool has_news = delta->token_ids_size() > 0 || !delta->text().empty() ||
                        !delta->reasoning().empty();
  if (has_news && !args_.stream->Send(std::move(event))) {
    ended_ = true;
    error_ = absl::ResourceExhaustedError(
        "the client does not read its stream: too many tokens wait for it");
    return Outcome::kFailed;
  }
  if (!ended_) return Outcome::kLive;
  finished_ = MakeFinished(Reason(tokens.finish()));
  return group_ended ? Outcome::kFinished : Outcome::kStopped;
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

absl::Status Request::Check(const v1::RequestTokens& tokens) const {
  const auto expected = static_cast<int64_t>(generated_.size());
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
  for (const float logprob : tokens.logprobs()) {
    if (std::isfinite(logprob)) continue;
    return absl::InternalError(
        absl::StrCat("the worker group sent the logprob ", logprob));
  }
  return absl::OkStatus();
}

void Request::AppendTokens(const v1::RequestTokens& tokens,
                           v1::TokenDelta* delta) {
  const SteadyTime now = std::chrono::steady_clock::now();
  if (tokens.token_ids_size() > 0) {
    if (generated_.empty()) {
      first_token_at_ = now;
      group_queue_us_ = tokens.queue_us();
      prefill_us_ = tokens.prefill_us();
    }
    last_token_at_ = now;
  }
  // The token that ends the completion is no text of it.
  const bool ends_with_token = tokens.finish() == v1::GROUP_FINISH_EOS ||
                               tokens.finish() == v1::GROUP_FINISH_STOP_TOKEN;
  delta->set_start_index(static_cast<int64_t>(generated_.size()));
  CompletionText::Text text;
  for (int i = 0; i < tokens.token_ids_size() && !text_.stopped(); ++i) {
    const int32_t id = tokens.token_ids(i);
    generated_.push_back(id);
    delta->add_token_ids(id);
    if (args_.options.logprobs) delta->add_logprobs(tokens.logprobs(i));
    const bool is_end = ends_with_token && i + 1 == tokens.token_ids_size();
    if (text_.in_reasoning() && !is_end) ++reasoning_tokens_;
    if (!is_end || args_.options.special_tokens) text_.Append(id, &text);
  }
  delta->set_text(std::move(text.answer));
  delta->set_reasoning(std::move(text.reasoning));
}

v1::FinishReason Request::Reason(v1::GroupFinish finish) const {
  if (text_.stopped()) return v1::FINISH_REASON_STOP_STRING;
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

v1::GenerateEvent Request::MakeFinished(v1::FinishReason reason) const {
  v1::GenerateEvent event;
  v1::Finished* finished = event.mutable_finished();
  finished->set_reason(reason);
  if (reason == v1::FINISH_REASON_STOP_STRING) {
    finished->set_stop_string(
        args_.options.stop_strings[static_cast<size_t>(text_.stop_string())]);
  }
  v1::Usage* usage = finished->mutable_usage();
  usage->set_prompt_tokens(prompt_tokens());
  usage->set_completion_tokens(static_cast<int64_t>(generated_.size()));
  usage->set_reasoning_tokens(reasoning_tokens_);

  v1::Timings* timings = finished->mutable_timings();
  const SteadyTime now = std::chrono::steady_clock::now();
  timings->set_queue_us(Microseconds(submitted_at_ - args_.arrived_at) +
                        group_queue_us_);
  timings->set_prefill_us(prefill_us_);
  if (!generated_.empty()) {
    timings->set_decode_us(Microseconds(last_token_at_ - first_token_at_));
    timings->set_ttft_us(Microseconds(first_token_at_ - args_.arrived_at));
  }
  timings->set_total_us(Microseconds(now - args_.arrived_at));
  return event;
}

}  // namespace ring
