// One Generate call as `generate` and `chat` use it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/cli/connection.h"
#include "coordinator/cli/flags.h"
#include "ring/v1/inference.pb.h"

namespace grpc {
class ClientContext;
template <class R>
class ClientReader;
}  // namespace grpc

namespace ring {

// Fills in everything but the prompt. REQUIRES: the prompt is set already
// (no_thinking concerns chat prompts).
void SetOptions(const GenerationFlags& flags, v1::GenerateRequest* request);

// One choice of what came back.
struct Completion {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
  std::vector<v1::TopLogprobs> top_logprobs;
  std::string text;
  std::string reasoning;
  v1::Finished finished;
};

// What came back: the first choice, and what there is besides.
struct Generation : Completion {
  v1::Accepted accepted;
  std::vector<Completion> others;  // choices 1, 2, ...
  bool terminated = false;         // SIGTERM has cancelled the call
};

// The status of a stream that has been read to its end, with RetryAfter where
// the server said when to try again.
absl::Status EndOf(grpc::ClientReader<v1::GenerateEvent>* reader,
                   const grpc::ClientContext& context);

// Calls Generate and hands each delta to `on_delta`, whose error cancels the
// call and is returned. OK only when the request finished. SIGINT and
// SIGTERM cancel the call.
absl::Status RunGeneration(
    const Connection& connection, const v1::GenerateRequest& request,
    const std::function<absl::Status(const v1::TokenDelta&)>& on_delta,
    Generation* generation);

// INVALID_ARGUMENT unless `text` is UTF-8; `what` names it.
absl::Status CheckUtf8(const std::string& what, const std::string& text);
// The same, and it must not be empty.
absl::Status CheckPrompt(const std::string& what, const std::string& text);

// Adds a message to the conversation.
void AddMessage(const std::string& role, const std::string& content,
                v1::Chat* chat);

// FAILED_PRECONDITION if something could not be written to stdout so far.
absl::Status CheckWritten();

// "EOS", "STOP_STRING", ...
std::string ReasonName(v1::FinishReason reason);

}  // namespace ring
