// ring generate: one prompt, one completion or several.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "coordinator/cli/answer_printer.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/connection.h"
#include "coordinator/cli/generation.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"
#include "nlohmann/json.hpp"
#include "proto/protocol.h"

namespace ring {
namespace {

// `what` is where the question comes from.
absl::Status SetChat(const GenerateFlags& flags, const std::string& what,
                     const std::string& question,
                     v1::GenerateRequest* request) {
  RING_RETURN_IF_ERROR(CheckPrompt(what, question));
  RING_RETURN_IF_ERROR(CheckUtf8("--system", flags.generation.system));
  v1::Chat* const chat = request->mutable_chat();
  if (!flags.generation.system.empty()) {
    AddMessage("system", flags.generation.system, chat);
  }
  AddMessage("user", question, chat);
  return absl::OkStatus();
}

absl::Status SetPrompt(const GenerateFlags& flags,
                       v1::GenerateRequest* request) {
  if (flags.raw) {
    RING_RETURN_IF_ERROR(CheckPrompt("--raw", *flags.raw));
    request->set_text(*flags.raw);
    return absl::OkStatus();
  }
  if (!flags.ids.empty()) {
    request->mutable_token_ids()->mutable_ids()->Add(flags.ids.begin(),
                                                     flags.ids.end());
    return absl::OkStatus();
  }
  if (flags.prompt) return SetChat(flags, "--prompt", *flags.prompt, request);
  if (flags.file) {
    const auto question = ReadTextFile(*flags.file, kMaxMessageBytes);
    if (!question.ok()) {
      return absl::Status(
          question.status().code(),
          absl::StrCat("--file: ", question.status().message()));
    }
    return SetChat(flags, "--file " + *flags.file, *question, request);
  }
  const std::string question(std::istreambuf_iterator<char>(std::cin), {});
  return SetChat(flags, "standard input", question, request);
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  RING_RETURN_IF_ERROR(SetPrompt(flags, &request));
  if (!flags.generation.system.empty() && !request.has_chat()) {
    return absl::InvalidArgumentError(
        "--system needs a chat prompt: --prompt or --file");
  }
  for (const std::string& stop : flags.generation.stop) {
    RING_RETURN_IF_ERROR(CheckUtf8("--stop", stop));
  }
  RING_RETURN_IF_ERROR(CheckUtf8("--request-id", flags.request_id));
  request.set_request_id(flags.request_id);
  request.mutable_output()->set_logprobs(flags.logprobs);
  if (flags.top_logprobs) {
    request.mutable_output()->set_top_logprobs(*flags.top_logprobs);
  }
  if (flags.choices) request.mutable_output()->set_choices(*flags.choices);
  SetOptions(flags.generation, &request);
  return request;
}

// Adds a choice to an object.
void AddJson(const GenerateFlags& flags, const Completion& completion,
             nlohmann::ordered_json* to) {
  const v1::Finished& finished = completion.finished;
  nlohmann::ordered_json& json = *to;
  json["text"] = completion.text;
  json["reasoning"] = completion.reasoning;
  json["token_ids"] = completion.token_ids;
  if (flags.logprobs) json["logprobs"] = completion.logprobs;
  if (flags.top_logprobs) {
    auto& places = json["top_logprobs"] = nlohmann::ordered_json::array();
    for (const v1::TopLogprobs& top : completion.top_logprobs) {
      auto& place = places.emplace_back(nlohmann::ordered_json::array());
      for (int i = 0; i < top.token_ids_size(); ++i) {
        place.push_back(
            {{"id", top.token_ids(i)}, {"logprob", top.logprobs(i)}});
      }
    }
  }
  json["finish_reason"] = ReasonName(finished.reason());
  if (!finished.stop_string().empty()) {
    json["stop_string"] = finished.stop_string();
  }
  json["usage"] = {{"prompt_tokens", finished.usage().prompt_tokens()},
                   {"completion_tokens", finished.usage().completion_tokens()},
                   {"reasoning_tokens", finished.usage().reasoning_tokens()}};
  const v1::Timings& timings = finished.timings();
  json["timings"] = {{"queue_us", timings.queue_us()},
                     {"prefill_us", timings.prefill_us()},
                     {"decode_us", timings.decode_us()},
                     {"ttft_us", timings.ttft_us()},
                     {"total_us", timings.total_us()}};
}

void PrintJson(const GenerateFlags& flags, const Generation& generation) {
  nlohmann::ordered_json json;
  json["request_id"] = generation.accepted.request_id();
  json["seed"] = generation.accepted.sampling().seed();
  AddJson(flags, generation, &json);
  if (flags.choices) {
    auto& choices = json["choices"] = nlohmann::ordered_json::array();
    AddJson(flags, generation, &choices.emplace_back());
    for (const Completion& other : generation.others) {
      AddJson(flags, other, &choices.emplace_back());
    }
  }
  std::printf("%s\n", json.dump().c_str());
}

void PrintStats(const Generation& generation) {
  const v1::Usage& usage = generation.finished.usage();
  const v1::Timings& timings = generation.finished.timings();
  // The first token belongs to the prefill.
  const double decoded = static_cast<double>(usage.completion_tokens() - 1);
  const double seconds = static_cast<double>(timings.decode_us()) * 1e-6;
  std::fprintf(stderr,
               "%lld prompt tokens, %lld tokens, first after %.1f ms, then "
               "%.0f tokens/s (%s)\n",
               static_cast<long long>(usage.prompt_tokens()),
               static_cast<long long>(usage.completion_tokens()),
               static_cast<double>(timings.ttft_us()) * 1e-3,
               seconds > 0 ? decoded / seconds : 0.0,
               ReasonName(generation.finished.reason()).c_str());
}

}  // namespace

int RunGenerate(const GenerateFlags& flags) {
  const absl::StatusOr<v1::GenerateRequest> request = MakeRequest(flags);
  if (!request.ok()) return ReportMistake("generate", request.status());
  const absl::StatusOr<Connection> connection =
      ReadConnection(flags.connection);
  if (!connection.ok()) return ReportMistake("generate", connection.status());
  Generation generation;
  // The reasoning goes to stderr, so that a pipe gets the answer alone.
  AnswerPrinter printer(stderr, stdout);
  const absl::Status status = RunGeneration(
      *connection, *request,
      [&flags, &printer](const v1::TokenDelta& delta) {
        if (!flags.json) printer.Print(delta);
        return CheckWritten();
      },
      &generation);
  printer.Finish();
  if (!status.ok()) {
    return ReportFailure("generate", *connection, status);
  }
  if (flags.json) PrintJson(flags, generation);
  if (const absl::Status written = CheckWritten(); !written.ok()) {
    return ReportFailure("generate", *connection, written);
  }
  if (flags.stats) PrintStats(generation);
  return 0;
}

}  // namespace ring
