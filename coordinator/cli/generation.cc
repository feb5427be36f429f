#include "coordinator/cli/generation.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "coordinator/cli/connection.h"
#include "coordinator/retry_after.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/signal_watcher.h"
#include "kernels/base/status_macros.h"
#include "proto/status.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {

void SetOptions(const GenerationFlags& flags, v1::GenerateRequest* request) {
  v1::Sampling* sampling = request->mutable_sampling();
  if (flags.temperature) sampling->set_temperature(*flags.temperature);
  if (flags.top_k) sampling->set_top_k(*flags.top_k);
  if (flags.top_p) sampling->set_top_p(*flags.top_p);
  if (flags.min_p) sampling->set_min_p(*flags.min_p);
  if (flags.seed) sampling->set_seed(*flags.seed);
  if (flags.repetition_penalty) {
    sampling->set_repetition_penalty(*flags.repetition_penalty);
  }
  if (flags.presence_penalty) {
    sampling->set_presence_penalty(*flags.presence_penalty);
  }
  if (flags.frequency_penalty) {
    sampling->set_frequency_penalty(*flags.frequency_penalty);
  }
  for (const TokenBias& bias : flags.logit_bias) {
    v1::LogitBias* const entry = sampling->add_logit_bias();
    entry->set_token_id(bias.id);
    entry->set_bias(bias.bias);
  }
  v1::Stopping* stopping = request->mutable_stopping();
  if (flags.max_tokens) stopping->set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens) stopping->set_min_tokens(*flags.min_tokens);
  if (flags.ignore_eos) stopping->set_ignore_eos(true);
  for (const std::string& stop : flags.stop) stopping->add_stop_strings(stop);
  for (const int32_t id : flags.stop_ids) stopping->add_stop_token_ids(id);
  if (flags.no_thinking && request->has_chat()) {
    request->mutable_chat()->set_enable_thinking(false);
  }
}

absl::Status CheckUtf8(const std::string& what, const std::string& text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is not UTF-8: byte ", valid, " of ", text.size()));
}

absl::Status CheckPrompt(const std::string& what, const std::string& text) {
  if (text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is empty: there is nothing to complete"));
  }
  return CheckUtf8(what, text);
}

void AddMessage(const std::string& role, const std::string& content,
                v1::Chat* chat) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->set_content(content);
}

absl::Status CheckWritten() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError("standard output takes no more");
}

absl::Status EndOf(grpc::ClientReader<v1::GenerateEvent>* reader,
                   const grpc::ClientContext& context) {
  absl::Status status = FromGrpcStatus(reader->Finish());
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto found = metadata.find(kRetryAfterMetadata);
  int64_t retry_after_ms = 0;
  if (status.ok() || found == metadata.end() ||
      !absl::SimpleAtoi(
          absl::string_view(found->second.data(), found->second.size()),
          &retry_after_ms)) {
    return status;
  }
  return WithRetryAfter(std::move(status),
                        std::chrono::milliseconds(retry_after_ms));
}


namespace {

// Adds an event other than Accepted to its choice.
void AddTo(const v1::GenerateEvent& event, Completion* completion) {
  if (event.has_finished()) completion->finished = event.finished();
  const v1::TokenDelta& delta = event.delta();
  completion->token_ids.insert(completion->token_ids.end(),
                               delta.token_ids().begin(),
                               delta.token_ids().end());
  completion->logprobs.insert(completion->logprobs.end(),
                              delta.logprobs().begin(), delta.logprobs().end());
  completion->top_logprobs.insert(completion->top_logprobs.end(),
                                  delta.top_logprobs().begin(),
                                  delta.top_logprobs().end());
  completion->text += delta.text();
  completion->reasoning += delta.reasoning();
}

}  // namespace

absl::Status RunGeneration(
    const Connection& connection, const v1::GenerateRequest& request,
    const std::function<absl::Status(const v1::TokenDelta&)>& on_delta,
    Generation* generation) {
  grpc::ClientContext context;
  // Before gRPC starts threads, so that none of them takes the signals.
  const SignalWatcher interrupt([&context, generation](int signal, int) {
    if (signal == SIGTERM) generation->terminated = true;
    context.TryCancel();
  });
  const std::shared_ptr<grpc::Channel> channel = Connect(connection);
  SetDeadline(connection, &context);
  const auto stub = v1::Inference::NewStub(channel);
  const auto reader = stub->Generate(&context, request);
  v1::GenerateEvent event;
  int unfinished = 1;
  absl::Status taken;
  while (reader->Read(&event)) {
    if (event.has_accepted()) {
      generation->accepted = event.accepted();
      unfinished = std::max(1, event.accepted().output().choices());
      generation->others.resize(unfinished - 1);
      continue;
    }
    if (event.has_finished()) --unfinished;
    const size_t choice = event.has_finished() ? event.finished().choice()
                                               : event.delta().choice();
    if (choice > generation->others.size()) {
      return absl::InternalError(absl::StrCat("the server sent choice ", choice,
                                              " of ",
                                              generation->others.size() + 1));
    }
    AddTo(event, choice == 0 ? generation : &generation->others[choice - 1]);
    if (event.has_delta() && taken.ok()) {
      taken = on_delta(event.delta());
      if (!taken.ok()) context.TryCancel();
    }
  }
  const absl::Status call = EndOf(reader.get(), context);
  RING_RETURN_IF_ERROR(taken);
  RING_RETURN_IF_ERROR(call);
  if (unfinished == 0) return absl::OkStatus();
  return absl::InternalError("the stream ended without a Finished event");
}

std::string ReasonName(v1::FinishReason reason) {
  const std::string name = v1::FinishReason_Name(reason);
  return std::string(absl::StripPrefix(name, "FINISH_REASON_"));
}

}  // namespace ring
