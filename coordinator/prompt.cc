#include "coordinator/prompt.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/text/reasoning_splitter.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

// A prompt's last tokens: enough for "<think>" spelled letter by letter and
// some white space.
constexpr size_t kTailTokens = 32;

// The words of a message, so that they cannot end it or begin another.
// Templates look for the tags of reasoning in an assistant's: those stay.
std::string GuardContent(const v1::ChatMessage& message,
                         const Tokenizer& tokenizer) {
  const absl::string_view text = message.content();
  if (message.role() != "assistant") return tokenizer.Guard(text);
  std::string guarded;
  size_t done = 0;
  for (size_t at = text.find('<'); at != text.npos; at = text.find('<', at)) {
    absl::string_view tag;
    for (const absl::string_view known : {kThinkOpenTag, kThinkCloseTag}) {
      if (absl::StartsWith(text.substr(at), known)) tag = known;
    }
    if (tag.empty()) {
      ++at;
      continue;
    }
    absl::StrAppend(&guarded, tokenizer.Guard(text.substr(done, at - done)),
                    tag);
    done = at += tag.size();
  }
  return guarded + tokenizer.Guard(text.substr(done));
}

absl::StatusOr<std::string> Render(const v1::Chat& chat, AddedTokens mode,
                                   const ServedModel& model) {
  if (model.chat_template == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model ", model.name, " has no chat template: send text or token_ids"));
  }
  if (chat.messages_size() == 0) {
    return absl::InvalidArgumentError("chat.messages is empty");
  }
  ChatRequest request;
  for (const v1::ChatMessage& message : chat.messages()) {
    if (message.role().empty()) {
      return absl::InvalidArgumentError("a chat message has no role");
    }
    ChatMessage& to = request.messages.emplace_back();
    const bool guards = mode == AddedTokens::kGuarded;
    to.role = guards ? model.tokenizer->Guard(message.role()) : message.role();
    to.content =
        guards ? GuardContent(message, *model.tokenizer) : message.content();
  }
  if (chat.has_add_generation_prompt()) {
    request.add_generation_prompt = chat.add_generation_prompt();
  }
  if (chat.has_enable_thinking()) {
    request.enable_thinking = chat.enable_thinking();
  }
  return model.chat_template->Render(request);
}

absl::StatusOr<Prompt> FromText(std::string text, AddedTokens mode,
                                const ServedModel& model) {
  Prompt prompt;
  RING_ASSIGN_OR_RETURN(prompt.ids, model.tokenizer->Encode(text, mode));
  prompt.starts_in_thinking = PromptEndsInThinking(text);
  prompt.text = mode == AddedTokens::kGuarded ? Tokenizer::Unguard(text)
                                              : std::move(text);
  return prompt;
}

absl::StatusOr<Prompt> FromChat(const v1::Chat& chat, AddedTokens mode,
                                const ServedModel& model) {
  RING_ASSIGN_OR_RETURN(std::string text, Render(chat, mode, model));
  return FromText(std::move(text), mode, model);
}

absl::StatusOr<Prompt> FromIds(const v1::TokenIds& list,
                               const ServedModel& model) {
  Prompt prompt;
  prompt.ids.assign(list.ids().begin(), list.ids().end());
  for (size_t i = 0; i < prompt.ids.size(); ++i) {
    const int32_t id = prompt.ids[i];
    if (id < 0 || id >= model.num_token_ids) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids: id ", id, " at position ", i,
                       " is not in [0, ", model.num_token_ids - 1, "]"));
    }
  }
  const absl::Span<const int32_t> ids(prompt.ids);
  const size_t tail = std::min(kTailTokens, ids.size());
  prompt.starts_in_thinking = PromptEndsInThinking(model.tokenizer->Decode(
      ids.subspan(ids.size() - tail), /*keep_special=*/true));
  return prompt;
}

// parse_special of a request, or its default.
template <typename Request>
AddedTokens Mode(const Request& request) {
  const bool parses = request.has_parse_special() ? request.parse_special()
                                                  : !request.has_chat();
  if (parses) return AddedTokens::kRecognise;
  return request.has_chat() ? AddedTokens::kGuarded : AddedTokens::kPlainText;
}

}  // namespace

absl::StatusOr<Prompt> ReadPrompt(const v1::GenerateRequest& request,
                                  const ServedModel& model) {
  if (request.has_parse_special() && request.has_token_ids()) {
    return absl::InvalidArgumentError(
        "parse_special is for a prompt of the kind text or chat only");
  }
  absl::StatusOr<Prompt> prompt;
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kTokenIds:
      prompt = FromIds(request.token_ids(), model);
      break;
    case v1::GenerateRequest::kText:
      prompt = FromText(request.text(), Mode(request), model);
      break;
    case v1::GenerateRequest::kChat:
      prompt = FromChat(request.chat(), Mode(request), model);
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return absl::InvalidArgumentError(
          "the request has no prompt: set token_ids, text or chat");
  }
  RING_RETURN_IF_ERROR(prompt.status());
  if (prompt->ids.empty()) {
    return absl::InvalidArgumentError("the prompt is empty");
  }
  const auto size = static_cast<int64_t>(prompt->ids.size());
  const int64_t asked = request.stopping().max_tokens();
  if (size + std::max<int64_t>(asked, 1) > model.context_length) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", size, " tokens",
        asked > 0 ? absl::StrCat(" and max_tokens is ", asked) : "",
        ", but the context is ", model.context_length,
        " tokens for prompt and completion together"));
  }
  return prompt;
}

absl::StatusOr<Prompt> ReadPrompt(const v1::TokenizeRequest& request,
                                  const ServedModel& model) {
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      return FromText(request.text(), Mode(request), model);
    case v1::TokenizeRequest::kChat:
      return FromChat(request.chat(), Mode(request), model);
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "the request has no input: set text or chat");
}

}  // namespace ring
